package echo

import (
	"context"
	"net"
	"net/http"
	"sync"
	"time"
)

// state is how the server is told to behave.
type state struct {
	mu       sync.Mutex // guards everything below
	ready    bool
	healthy  bool
	failing  bool
	draining bool
	delay    time.Duration
	status   int
	recover  *time.Timer           // ends failing; nil = nothing does
	open     int                   // HTTP requests that are being answered, without streams that never end
	silent   map[net.Conn]struct{} // connections over which no request has come yet, HTTP or a line
	changed  chan struct{}         // closed at the next change of anything
}

func newState(o *options) *state {
	return &state{ready: o.ready, healthy: o.healthy, delay: o.delay, status: o.status, silent: map[net.Conn]struct{}{}, changed: make(chan struct{})}
}

// view is what the state comes to at a moment.
type view struct {
	Ready   bool          `json:"ready"`
	Healthy bool          `json:"healthy"`
	Delay   time.Duration `json:"-"`
	Status  int           `json:"-"`
	open    int
	silent  int
	changed <-chan struct{}
}

func (s *state) view() view {
	s.mu.Lock()
	defer s.mu.Unlock()
	return view{
		Ready: s.ready && !s.failing && !s.draining, Healthy: s.healthy && !s.failing,
		Delay: s.delay, Status: s.status, open: s.open, silent: len(s.silent), changed: s.changed,
	}
}

// change changes the state and wakes all who wait for that.
func (s *state) change(f func(*state)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(s)
	close(s.changed)
	s.changed = make(chan struct{})
}

// fail makes the server neither healthy nor ready: for a time, or (0) until heal.
func (s *state) fail(d time.Duration) {
	s.change(func(s *state) {
		s.calm()
		s.failing = true
		if d > 0 {
			var t *time.Timer
			t = time.AfterFunc(d, func() {
				s.change(func(s *state) {
					if s.recover == t {
						s.failing, s.recover = false, nil
					}
				})
			})
			s.recover = t
		}
	})
}

// calm ends a failure. It is called within change.
func (s *state) calm() {
	if s.recover != nil {
		s.recover.Stop()
	}
	s.failing, s.recover = false, nil
}

// enter counts a request; the function that it returns ends it.
func (s *state) enter() (leave func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open++
	return func() { s.change(func(s *state) { s.open-- }) }
}

// connection is a http.Server's ConnState.
func (s *state) connection(c net.Conn, now http.ConnState) {
	if now == http.StateNew {
		s.connected(c)
		return
	}
	s.heard(c)
}

// connected notes a connection that was made for a request and has not brought it yet.
func (s *state) connected(c net.Conn) { s.change(func(s *state) { s.silent[c] = struct{}{} }) }

// heard says that the request has come, or will not.
func (s *state) heard(c net.Conn) {
	s.mu.Lock()
	_, silent := s.silent[c]
	s.mu.Unlock()
	if silent {
		s.change(func(s *state) { delete(s.silent, c) })
	}
}

// linger is how long a drain lasts at least: a connection whose handshake the kernel has finished is not heard of before it is accepted, and is reset
// when its listener closes.
const linger = 250 * time.Millisecond

// patience is how long a connection that was made before a drain may take to bring its first request.
const patience = time.Second

// idle waits until at most n requests are open and, for a moment, until none is on its way, and says whether that was before ctx ended.
func (s *state) idle(ctx context.Context, n int) bool {
	early, late := time.NewTimer(linger), time.NewTimer(patience)
	defer early.Stop()
	defer late.Stop()
	lingering, waiting := true, true
	for {
		v := s.view()
		if !lingering && v.open <= n && (v.silent == 0 || !waiting) {
			return true
		}
		select {
		case <-v.changed:
		case <-early.C:
			lingering = false
		case <-late.C:
			waiting = false
		case <-ctx.Done():
			return false
		}
	}
}
