package server

import (
	"context"
	"sync"
	"time"
)

// A pool bounds how many requests wait at one time. What it starts has ended when wait returns; nothing is started after that.
type pool struct {
	ctx     context.Context // the life of all that the pool has started, ended by cancel
	cancel  context.CancelFunc
	timeout time.Duration
	slots   chan struct{} // one for each request that waits
	running sync.WaitGroup
}

// A call is the time that one request may wait.
type call struct {
	ctx context.Context
	// release gives the place in the pool back; it is called at the end anyway.
	release func()
}

func newPool(size int, timeout time.Duration) *pool {
	ctx, cancel := context.WithCancel(context.Background())
	return &pool{ctx: ctx, cancel: cancel, timeout: timeout, slots: make(chan struct{}, size)}
}

// start runs f beside the caller, who has taken one of the slots for it.
func (p *pool) start(f func(call)) {
	p.running.Go(func() {
		ctx, cancel := context.WithTimeout(p.ctx, p.timeout)
		defer cancel()
		release := sync.OnceFunc(func() { <-p.slots })
		defer release()
		f(call{ctx, release})
	})
}

// wait waits for what is running, for grace at most; what is left is told to end, and waited for.
func (p *pool) wait(grace time.Duration) {
	timer := time.AfterFunc(grace, p.cancel)
	defer timer.Stop()
	p.running.Wait()
	p.cancel()
}
