package conntrack

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/endpointd/endpointd/internal/model"
)

const benchFlows = 50_000

// manyFlows are flows of UDP from as many sources; of each two, one leads to 10.1.0.1 and one to 10.1.0.2.
func manyFlows(n int, dst func(i int) netip.AddrPort) []*flow {
	flows := make([]*flow, n)
	for i := range flows {
		src := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 2, byte(i >> 8), byte(i)}), uint16(1+i>>16))
		flows[i] = &flow{
			protocol: model.UDP, src: src, dst: dst(i),
			endpoint: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, 0, byte(1 + i%2)}), 53),
		}
	}
	return flows
}

func toService(int) netip.AddrPort { return netip.MustParseAddrPort("10.96.0.1:53") }

// BenchmarkPass looks at a table of 50,000 flows in which nothing is wrong.
func BenchmarkPass(b *testing.B) {
	n := newNode(b)
	n.set("dns udp:10.96.0.1:53 >10.1.0.1:53 >10.1.0.2:53")
	n.create(manyFlows(benchFlows, toService)...)
	n.sweep()
	pass := func(want int, q ...question) func(b *testing.B) {
		return func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				seen := 0
				doomed := &batch{socket: n.tracker.ending}
				for _, q := range q {
					var result Result
					if err := n.tracker.ask(b.Context(), q, doomed, &result); err != nil {
						b.Fatal(err)
					}
					seen += result.Seen
				}
				if seen != want || doomed.size != 0 {
					b.Fatalf("saw %d flows and would delete %d, want %d and none", seen, doomed.size, want)
				}
			}
		}
	}
	udp := kind{protocol: model.UDP}
	b.Run("all", pass(benchFlows, question{kind: udp}))
	b.Run("one-address", pass(benchFlows, question{kind: udp, to: netip.MustParseAddr("10.96.0.1")}))
	b.Run("another-address", pass(0, question{kind: udp, to: netip.MustParseAddr("10.96.0.2")}))
	b.Run("tcp-unanswered", pass(0, question{kind: kind{protocol: model.TCP}, unanswered: true}))
	b.Run("sweep", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if deleted := n.sweep(); deleted != 0 {
				b.Fatalf("deleted %d", deleted)
			}
		}
	})
}

// BenchmarkForeign is the same of flows that are not ours.
func BenchmarkForeign(b *testing.B) {
	n := newNode(b)
	n.set("dns udp:10.96.0.1:53 >10.1.0.1:53 >10.1.0.2:53")
	flows := manyFlows(benchFlows, func(i int) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)}), 53)
	})
	for _, f := range flows {
		f.endpoint = f.dst
	}
	n.create(flows...)
	n.sweep()
	b.ReportAllocs()
	for b.Loop() {
		if deleted := n.sweep(); deleted != 0 {
			b.Fatalf("deleted %d", deleted)
		}
	}
}

// BenchmarkDelete deletes 25,000 flows of 50,000.
func BenchmarkDelete(b *testing.B) {
	n := newNode(b)
	flows := manyFlows(benchFlows, toService)
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		n.set("dns udp:10.96.0.1:53 >10.1.0.1:53 >10.1.0.2:53")
		some := flows
		if len(n.entries()) > 0 {
			some = nil
			for i := 0; i < len(flows); i += 2 {
				some = append(some, flows[i])
			}
		}
		n.create(some...)
		n.apply(worldOf("dns udp:10.96.0.1:53 >10.1.0.2:53"))
		b.StartTimer()
		if deleted := n.reconcile(); deleted != benchFlows/2 {
			b.Fatalf("deleted %d", deleted)
		}
	}
}

// BenchmarkCompare is what one endpoint less costs in a Service of 10,000.
func BenchmarkCompare(b *testing.B) {
	words := "big tcp:10.96.0.1:80"
	for i := range 10_000 {
		words += fmt.Sprintf(" >10.1.%d.%d:80", i/250, i%250)
	}
	was := worldOf(words)
	now := worldOf(words + ",unready")
	b.ReportAllocs()
	for b.Loop() {
		if d := compare(was, now, now.changed(was)); len(d.look) != 1 {
			b.Fatal(d.look)
		}
	}
}
