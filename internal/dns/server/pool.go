package server

import (
	"context"
	"net/netip"
	"sync"
	"time"
)

// A pool bounds how many requests wait at one time. What it starts has ended when wait returns; nothing is started after that.
type pool struct {
	ctx     context.Context // the life of all that the pool has started, ended by cancel
	cancel  context.CancelFunc
	timeout time.Duration
	size    int
	running sync.WaitGroup

	mu       sync.Mutex
	taken    int                // places
	byClient map[netip.Addr]int // address → places
}

// A call is the time that one request may wait.
type call struct {
	ctx context.Context
	// release gives the place in the pool back; it is called at the end anyway.
	release func()
}

func newPool(size int, timeout time.Duration) *pool {
	ctx, cancel := context.WithCancel(context.Background())
	return &pool{ctx: ctx, cancel: cancel, timeout: timeout, size: size, byClient: map[netip.Addr]int{}}
}

// take takes a place for a client, of which one alone gets half. If there is one, start has to follow.
func (p *pool) take(client netip.Addr) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.taken >= p.size || p.byClient[client] >= (p.size+1)/2 {
		return false
	}
	p.taken++
	p.byClient[client]++
	return true
}

func (p *pool) give(client netip.Addr) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.taken--
	if p.byClient[client]--; p.byClient[client] == 0 {
		delete(p.byClient, client)
	}
}

func (p *pool) waiting() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.taken
}

// start runs f beside the caller, in the place that was taken for a client.
func (p *pool) start(client netip.Addr, f func(call)) {
	p.running.Go(func() {
		ctx, cancel := context.WithTimeout(p.ctx, p.timeout)
		defer cancel()
		release := sync.OnceFunc(func() { p.give(client) })
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
