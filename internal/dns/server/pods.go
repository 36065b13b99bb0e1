package server

import (
	"context"
	"net/netip"
	"sync"
	"time"
)

const (
	podsKnown  = 4096            // answers that are kept
	podsAsking = 32              // questions to the API at one time
	podExists  = 5 * time.Second // as long as the TTL of the answer
	podMissing = time.Second
)

// pods remembers for a short time which pods there are, so that questions for them do not become as many to the API.
type pods struct {
	exists func(ctx context.Context, namespace string, addr netip.Addr) (bool, error)
	now    func() time.Time
	asking chan struct{} // one for each question to the API

	mu    sync.Mutex
	known map[podKey]podAnswer
}

type podKey struct {
	namespace string
	addr      netip.Addr
}

type podAnswer struct {
	exists bool
	until  time.Time
}

func newPods(o *Options) *pods {
	return &pods{exists: o.PodExists, now: o.Now, asking: make(chan struct{}, podsAsking), known: map[podKey]podAnswer{}}
}

func (p *pods) lookup(namespace string, addr netip.Addr, now time.Time) (exists, known bool) {
	if p.exists == nil {
		return false, true
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	a, ok := p.known[podKey{namespace, addr}]
	return a.exists, ok && now.Before(a.until)
}

func (p *pods) ask(ctx context.Context, namespace string, addr netip.Addr) (bool, error) {
	select {
	case p.asking <- struct{}{}:
		defer func() { <-p.asking }()
	case <-ctx.Done():
		return false, ctx.Err()
	}
	if exists, known := p.lookup(namespace, addr, p.now()); known { // while we waited
		return exists, nil
	}
	exists, err := p.exists(ctx, namespace, addr)
	if err != nil {
		return false, err
	}
	a := podAnswer{exists: exists, until: p.now().Add(podMissing)}
	if exists {
		a.until = p.now().Add(podExists)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.known) >= podsKnown {
		clear(p.known) // it is full of what was asked in the last seconds: somebody asks for everything
	}
	p.known[podKey{namespace, addr}] = a
	return exists, nil
}
