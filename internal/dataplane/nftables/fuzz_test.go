package nftables

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/endpointd/endpointd/internal/dataplane/slots"
	"github.com/endpointd/endpointd/internal/model"
)

// FuzzKernel holds that whatever comes from a kernel is read without a panic, and that what was accepted is written back as it came.
func FuzzKernel(f *testing.F) {
	key := model.FrontendKey{Addr: netip.MustParseAddr("10.96.0.1"), Protocol: model.TCP, Port: 80}
	target := slots.Target{Pool: 77, Size: 2}
	for _, e := range []element{
		{set: frontends.of(v4), key: frontendKey(nil, key), data: frontendValue(nil, slots.Frontend{Present: true, Internal: target, External: target})},
		{set: poolSlots.of(v4), key: slotKey(nil, slots.Slot{Pool: 77, Index: 1}), data: appendTarget(nil, netip.MustParseAddrPort("10.1.0.1:80"))},
		{set: sources.of(v4), key: sourceKey(nil, slots.Source{Frontend: key, Range: netip.MustParsePrefix("192.0.2.0/24")})},
		{set: stickyEndpoints.of(v6), key: stickyKey(nil, stickyEndpoint{77, netip.MustParseAddrPort("[fd00::1]:80")})},
		{set: hairpins.of(v4), key: hairpinElement(key.Addr).key},
		{set: serviceRanges.of(v4), key: key.Addr.AsSlice(), end: true},
		{set: rememberInternal.of(v4), key: native32(10), leads: true, code: unix.NFT_GOTO, chain: "remember-internal4-10"},
		{set: entry.of(v4), key: native32(classDrop), leads: true},
	} {
		f.Add(byte(e.set), message(nil, unix.NFT_MSG_NEWSETELEM, 0, 1, e.append(nil)))
	}
	f.Add(byte(0), raw(nil, unix.NLMSG_ERROR, 0, 1, 255, 255, make([]byte, 40)))
	f.Fuzz(func(t *testing.T, set byte, b []byte) {
		r := elementReader{state: newState(), verdicts: map[verdictElement]bool{}, timeouts: map[uint32]int{}}
		w := &watch{}
		for m := range messages(b) {
			complaintOf(m)
			w.take(m, []tableName{"t"})
			if len(m.body) < 4 {
				continue
			}
			chainFrom(m.body[4:])
			for _, value := range attrs(m.body[4:]) {
				e := elementFrom(value)
				e.set = setID(set) % setCount
				l := e.set.kind().layout()
				_, _ = e.set.render(l.key, e.key), e.set.render(l.data, e.data)
				r.read(e)
			}
		}
		r.finish()
		if r.damage != "" {
			return
		}
		size := 0
		for _, held := range r.state.table.Pools {
			size += len(held)
		}
		if size > len(r.slots)*len(r.slots) {
			t.Errorf("%d slots became %d", len(r.slots), size)
		}
		for key, frontend := range r.state.table.Frontends {
			if back, ok := frontendKeyOf(frontendKey(nil, key), familyOf(key.Addr)); !ok || back != key {
				t.Errorf("%v is read as %v", key, back)
			}
			if got := frontendOf(frontendValue(nil, frontend)); got != frontend && frontend.Internal != (slots.Target{}) {
				t.Errorf("%+v is read as %+v", frontend, got)
			}
		}
	})
}
