package conntrack

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/endpointd/endpointd/internal/model"
)

// randomWorld has some of three Services, any of which may have any of a few frontends and endpoints.
func randomWorld(r *rand.Rand) []string {
	taken := map[string]bool{}
	var services []string
	for _, name := range []string{"a", "b", "c"} {
		if r.IntN(4) == 0 {
			continue
		}
		if r.IntN(8) == 0 {
			services = append(services, name+" other:10.96.0.2")
			continue
		}
		words := []string{name}
		for _, addr := range []string{"10.96.0.1:53", "10.96.0.2:53", "192.0.2.1:30053"} {
			for _, protocol := range []string{"udp:", "tcp:", "sctp:"} {
				if word := protocol + addr; r.IntN(3) == 0 && !taken[word] {
					taken[word] = true
					words = append(words, word)
				}
			}
		}
		for i := range 3 {
			if condition := []string{"", "", ",drains", ",unready", ",far", ",dead", ",only", "-"}[r.IntN(8)]; condition != "-" {
				words = append(words, fmt.Sprintf(">10.1.0.%d:53%s", i+1, condition))
			}
		}
		if r.IntN(6) == 0 {
			words = append(words, "from:10.2.0.0/16")
		}
		services = append(services, strings.Join(words, " "))
	}
	return services
}

// everyFlow is each flow that could be.
func everyFlow() []*flow {
	var all []*flow
	for _, protocol := range []model.Protocol{model.UDP, model.TCP, model.SCTP} {
		for _, src := range []string{"10.2.0.1:1", "10.3.0.1:1"} {
			for _, dst := range []string{"10.96.0.1:53", "10.96.0.2:53", "192.0.2.1:30053"} {
				for _, endpoint := range []string{dst, "10.1.0.1:53", "10.1.0.2:53", "10.1.0.3:53"} {
					for _, status := range []uint32{0, statusSeenReply} {
						all = append(all, &flow{
							protocol: protocol, src: netip.MustParseAddrPort(src), dst: netip.MustParseAddrPort(dst),
							endpoint: netip.MustParseAddrPort(endpoint), status: status,
						})
					}
				}
			}
		}
	}
	return all
}

// TestWalk changes the world at random. After each step what the Tracker keeps is the same as if it had begun there, and each flow that was right and is not
// any more belongs to a frontend that is looked at.
func TestWalk(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	newTracker := func() *Tracker {
		return &Tracker{
			judge:     judge{owned: map[frontend]*model.Service{}, graves: map[frontend]grave{}, others: map[netip.Addr]int{}},
			frontends: map[kind]int{}, wake: make(chan struct{}, 1), later: make(chan struct{}, 1),
		}
	}
	tracker, was := newTracker(), worldOf()
	tracker.applied(nil, was, &was.network, was.changed(nil))
	turned := 0
	for range 300 {
		right := map[*flow]bool{}
		for _, f := range everyFlow() {
			right[f] = !tracker.lost(f)
		}
		before := was
		services := randomWorld(r)
		now := worldOf(services...)
		tracker.owed = owed{}
		tracker.applied(before, now, &now.network, now.changed(before))
		was = now
		fresh := newTracker()
		fresh.applied(nil, now, &now.network, now.changed(nil))
		if !maps.Equal(tracker.owned, fresh.owned) {
			t.Fatalf("owned %v, want %v", tracker.owned, fresh.owned)
		}
		if diff := cmp.Diff(fresh.others, tracker.others, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
			t.Fatalf("others:\n%s", diff)
		}
		if !maps.Equal(tracker.frontends, fresh.frontends) {
			t.Fatalf("frontends %v, want %v", tracker.frontends, fresh.frontends)
		}
		for f, wasRight := range right {
			key := frontend{Addr: f.dst.Addr(), Protocol: f.protocol, Port: f.dst.Port()}
			_, looks := tracker.look[key]
			// Left to a sweep: SYNs that were not translated, what somebody else did with a frontend before it was one, as far as that is a SYN or there
			// is no endpoint yet, and what another proxy did before it gave its address up.
			_, frontend := find(now.Owner(key), key)
			left := f.protocol == model.TCP && f.endpoint == f.dst ||
				before.Owner(key) == nil && frontend != nil && (f.protocol == model.TCP || empty(frontend)) ||
				frontend == nil && before.Owner(key) == nil
			if wasRight && tracker.lost(f) && !left {
				turned++
				if !looks {
					t.Fatalf("%v was right and is not any more, but nobody looks\nnow %s", f, strings.Join(services, "\n"))
				}
			}
		}
	}
	if turned < 100 {
		t.Errorf("only %d flows turned wrong: the walk is too tame", turned)
	}
}
