package server

import (
	"net/netip"
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
