package dptest

import (
	"net/netip"
	"testing"
	"time"
	"github.com/endpointd/endpointd/internal/model"
)

func BenchmarkAsk(b *testing.B) {
	for _, name := range []string{"direct", "cluster"} {
	b.Run(name, func(b *testing.B) {
	s := NewSuite(b, Options{New: compose(newTracked)})
	n := Numbered(3)
	stop, err := s.Place("a").Serve(n.Target())
	if err != nil { b.Fatal(err) }
	defer stop()
	if err := s.Change(b.Context(), func(o *Objects) error { return o.Put(s.World, n, "", "a") }); err != nil { b.Fatal(err) }
	to := netip.AddrPortFrom(n.ClusterIP(false), 80)
	if name == "direct" { to = netip.AddrPortFrom(s.Place("a").V4, n.Target()) }
	for b.Loop() {
		if _, err := s.Outside.Ask(model.TCP, to, time.Second); err != nil { b.Fatal(err) }
	}
	})
	}
}
func BenchmarkChange(b *testing.B) {
	s := NewSuite(b, Options{New: compose(newTracked)})
	n := Numbered(3)
	i := 0
	for b.Loop() {
		i++
	if err := s.Change(b.Context(), func(o *Objects) error { return o.Put(s.World, n, "", []string{"a", "b"}[i%2]) }); err != nil { b.Fatal(err) }
	}
}
