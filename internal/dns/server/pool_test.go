package server

import (
	"context"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestPoolIsShared lets one client have half, and everybody together no more than there is.
func TestPoolIsShared(t *testing.T) {
	t.Parallel()
	p := newPool(5, time.Hour)
	defer p.wait(0)
	one, two, three := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("10.0.0.3")
	for i, c := range []struct {
		client netip.Addr
		want   bool
	}{{one, true}, {one, true}, {one, true}, {one, false}, {two, true}, {three, true}, {three, false}} {
		if got := p.take(c.client); got != c.want {
			t.Errorf("place %d of %s: %v, want %v", i, c.client, got, c.want)
		}
	}
	for _, c := range []netip.Addr{one, one, one, two, three} {
		done := make(chan struct{})
		p.start(c, func(c call) {
			defer close(done)
			c.release()
			c.release() // and once more at the end
		})
		<-done
	}
	p.running.Wait()
	if p.waiting() != 0 || len(p.byClient) != 0 {
		t.Errorf("%d places and %v are not given back", p.waiting(), p.byClient)
	}
}

// TestPodsAreBounded asks for more pods than are kept, at more times at once than the API is asked.
func TestPodsAreBounded(t *testing.T) {
	t.Parallel()
	var now, most atomic.Int32
	p := newPods(&Options{Now: time.Now, PodExists: func(context.Context, string, netip.Addr) (bool, error) {
		defer now.Add(-1)
		for n := now.Add(1); ; {
			if was := most.Load(); was >= n || most.CompareAndSwap(was, n) {
				return true, nil
			}
		}
	}})
	var group sync.WaitGroup
	const askers, each = 4 * podsAsking, 2 * podsKnown / (4 * podsAsking)
	for i := range askers {
		group.Go(func() {
			for j := range each {
				if exists, err := p.ask(t.Context(), "ns", netip.AddrFrom4([4]byte{10, 0, byte(i), byte(j)})); !exists || err != nil {
					t.Error(exists, err)
				}
			}
		})
	}
	group.Wait()
	if len(p.known) > podsKnown || most.Load() > podsAsking {
		t.Errorf("%d pods are kept, and the API was asked %d times at once", len(p.known), most.Load())
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range podsAsking {
		p.asking <- struct{}{}
	}
	if _, err := p.ask(ctx, "ns", netip.MustParseAddr("10.9.9.9")); err == nil {
		t.Error("asked after the end")
	}
}
