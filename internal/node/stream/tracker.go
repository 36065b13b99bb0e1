package stream

import "sync"

// tracker counts what goes on, like a sync.WaitGroup to which something may be added while somebody waits: it is
// refused then. The zero value is ready.
type tracker struct {
	mu     sync.Mutex // guards all below
	count  int
	closed bool
	idle   chan struct{} // closed when count is zero after closed; made by wait
}

// begin counts one more, unless wait was called.
func (t *tracker) begin() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return false
	}
	t.count++
	return true
}

func (t *tracker) end() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.count--
	if t.count == 0 && t.closed {
		close(t.idle)
	}
}

// wait returns when all have ended. Nothing begins after it. It is called once.
func (t *tracker) wait() {
	t.mu.Lock()
	t.closed = true
	t.idle = make(chan struct{})
	if t.count == 0 {
		close(t.idle)
	}
	t.mu.Unlock()
	<-t.idle
}
