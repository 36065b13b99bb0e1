package node

import "sync"

// inbox hands what happens to the goroutine that owns a pod. It never blocks who puts something in, and keeps the order.
type inbox struct {
	ready chan struct{} // has room for one: set when there is something

	mu   sync.Mutex // guards todo
	todo []func()
}

func newInbox() *inbox { return &inbox{ready: make(chan struct{}, 1)} }

// post has f called soon by the owner.
func (b *inbox) post(f func()) {
	b.mu.Lock()
	b.todo = append(b.todo, f)
	b.mu.Unlock()
	select {
	case b.ready <- struct{}{}:
	default:
	}
}

// drain calls everything that was posted. Only the owner does so.
func (b *inbox) drain() {
	b.mu.Lock()
	todo := b.todo
	b.todo = nil
	b.mu.Unlock()
	for _, f := range todo {
		f()
	}
}
