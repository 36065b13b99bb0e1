package slots_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/endpointd/endpointd/internal/dataplane/slots"
	"github.com/endpointd/endpointd/internal/model"
)

// world is what the API has; a Service s-N has address 10.96.0.N and as many endpoints as ready says.
type world struct {
	input model.Input
	snap  *model.Snapshot
}

func newWorld() *world {
	w := &world{}
	w.input = w.input.WithNetwork(model.Network{Node: "here", NodePortAddrs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}})
	w.build()
	return w
}

func (w *world) build() *model.Snapshot {
	w.snap = model.Build(w.input, w.snap)
	return w.snap
}

// spec of a Service for tests.
type spec struct {
	n         int   // its number
	endpoints []int // 1 is 10.1.0.1; odd ones are on this node
	port      int32
	local     bool // externalTrafficPolicy
	affinity  bool
	ranges    []string
}

func (w *world) set(s spec) {
	name := fmt.Sprintf("s-%d", s.n)
	service := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: "1"},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeLoadBalancer, ClusterIP: fmt.Sprintf("10.96.0.%d", s.n), ClusterIPs: []string{fmt.Sprintf("10.96.0.%d", s.n)},
			IPFamilies:               []corev1.IPFamily{corev1.IPv4Protocol},
			Ports:                    []corev1.ServicePort{{Protocol: corev1.ProtocolTCP, Port: s.port, NodePort: int32(30000 + s.n)}},
			InternalTrafficPolicy:    ptr.To(corev1.ServiceInternalTrafficPolicyCluster),
			ExternalTrafficPolicy:    corev1.ServiceExternalTrafficPolicyCluster,
			LoadBalancerSourceRanges: s.ranges,
		},
		Status: corev1.ServiceStatus{LoadBalancer: corev1.LoadBalancerStatus{Ingress: []corev1.LoadBalancerIngress{{IP: fmt.Sprintf("198.51.100.%d", s.n)}}}},
	}
	if s.local {
		service.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
	}
	if s.affinity {
		service.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
		service.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: ptr.To[int32](60)}}
	}
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "default", Name: name + "-a", Labels: map[string]string{discoveryv1.LabelServiceName: name}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: new(""), Protocol: ptr.To(corev1.ProtocolTCP), Port: ptr.To[int32](8080)}},
	}
	for _, e := range s.endpoints {
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{
			Addresses: []string{endpoint(e).Addr().String()}, NodeName: new([]string{"there", "here"}[e%2]),
		})
	}
	w.input = w.input.WithService(service).WithSlice(slice)
}

func (w *world) unset(n int) {
	name := fmt.Sprintf("s-%d", n)
	w.input = w.input.WithoutService(model.ServiceKey{Namespace: "default", Name: name}).WithoutSlice("default", name+"-a")
}

func endpoint(n int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, byte(n >> 8), byte(n)}), 8080)
}

func endpoints(ns ...int) (addrs []netip.AddrPort) {
	for _, n := range ns {
		addrs = append(addrs, endpoint(n))
	}
	return addrs
}

var (
	cluster = slots.ID(model.PoolKey{Service: model.ServiceKey{Namespace: "default", Name: "s-1"}, Protocol: model.TCP})
	local   = slots.ID(model.PoolKey{Service: model.ServiceKey{Namespace: "default", Name: "s-1"}, Protocol: model.TCP, Local: true})
)

func key(addr string, port uint16) model.FrontendKey {
	return model.FrontendKey{Addr: netip.MustParseAddr(addr), Protocol: model.TCP, Port: port}
}

func TestPlanSlots(t *testing.T) {
	for name, c := range map[string]struct {
		was, now []int
		held     []int // order of the slots before
		want     []int // and after
		writes   int
	}{
		"first":                                   {now: []int{3, 1, 2}, want: []int{1, 2, 3}, writes: 3},
		"one more is the last":                    {was: []int{2, 4}, held: []int{4, 2}, now: []int{1, 2, 4}, want: []int{4, 2, 1}, writes: 1},
		"one less leaves its slot to the last":    {was: []int{1, 2, 3, 4}, held: []int{1, 2, 3, 4}, now: []int{2, 3, 4}, want: []int{4, 2, 3}, writes: 2},
		"the last one less":                       {was: []int{1, 2, 3}, held: []int{1, 2, 3}, now: []int{1, 2}, want: []int{1, 2}, writes: 1},
		"one for another takes its slot":          {was: []int{1, 2, 3}, held: []int{3, 2, 1}, now: []int{2, 3, 9}, want: []int{3, 2, 9}, writes: 1},
		"all others":                              {was: []int{1, 2}, held: []int{1, 2}, now: []int{3, 4, 5}, want: []int{3, 4, 5}, writes: 3},
		"several less, the last ones among them":  {was: []int{1, 2, 3, 4, 5}, held: []int{1, 2, 3, 4, 5}, now: []int{2, 4}, want: []int{4, 2}, writes: 4},
		"none":                                    {was: []int{1, 2, 3}, held: []int{1, 2, 3}, writes: 3},
		"the same in another order needs nothing": {was: []int{1, 2, 3}, held: []int{3, 1, 2}, now: []int{1, 2, 3}, want: []int{3, 1, 2}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld()
			table := slots.New()
			w.set(spec{n: 1, port: 80, endpoints: c.was})
			was := w.build()
			table.Apply(table.Plan(nil, was))
			if len(c.held) > 0 {
				table.Pools[cluster] = endpoints(c.held...)
			}
			w.set(spec{n: 1, port: 80, endpoints: c.now})
			change := table.Plan(was, w.build())
			table.Apply(change)
			if diff := cmp.Diff(endpoints(c.want...), table.Pools[cluster], compareAddrs); diff != "" {
				t.Errorf("slots (-want +got):\n%s", diff)
			}
			if len(change.Slots) != c.writes {
				t.Errorf("%d writes, want %d: %v", len(change.Slots), c.writes, change.Slots)
			}
			if again := table.Plan(nil, w.snap); !again.None() {
				t.Errorf("something is left to do: %+v", again)
			}
		})
	}
}

var compareAddrs = cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })

func TestPlanFrontends(t *testing.T) {
	w := newWorld()
	table := slots.New()
	w.set(spec{n: 1, port: 80, endpoints: []int{1, 2}, local: true, affinity: true, ranges: []string{"203.0.113.0/24"}})
	table.Apply(table.Plan(nil, w.build()))

	internal := slots.Target{Pool: cluster, Size: 2, Affinity: 60}
	external := slots.Target{Pool: local, Size: 1, Affinity: 60}
	want := map[model.FrontendKey]slots.Frontend{
		key("10.96.0.1", 80):    {Present: true, Internal: internal, External: internal},
		key("192.0.2.1", 30001): {Present: true, Internal: internal, External: external, KeepSource: true},
		key("198.51.100.1", 80): {Present: true, Internal: internal, External: external, KeepSource: true, Filtered: true},
	}
	if diff := cmp.Diff(want, table.Frontends, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("frontends (-want +got):\n%s", diff)
	}
	if len(table.Sources) != 1 || len(table.Sources[key("198.51.100.1", 80)]) != 1 {
		t.Errorf("source ranges %v, want one", table.Sources)
	}
	if len(table.Hairpins) != 1 || table.Hairpins[endpoint(1).Addr()] != 2 {
		t.Errorf("hairpins %v, want the endpoint on this node, from two pools", table.Hairpins)
	}

	was := w.snap
	w.set(spec{n: 1, port: 81, endpoints: []int{2}})
	change := table.Plan(was, w.build())
	table.Apply(change)
	for _, k := range []model.FrontendKey{key("10.96.0.1", 80), key("198.51.100.1", 80)} {
		if _, ok := table.Frontends[k]; ok {
			t.Errorf("%v is still there", k)
		}
	}
	if len(table.Sources) != 0 || len(table.Hairpins) != 0 || len(table.Pools) != 1 {
		t.Errorf("left over: sources %v, hairpins %v, pools %v", table.Sources, table.Hairpins, table.Pools)
	}
	if len(change.HairpinsGone) != 1 {
		t.Errorf("hairpins gone %v, want one", change.HairpinsGone)
	}

	was = w.snap
	w.unset(1)
	table.Apply(table.Plan(was, w.build()))
	if n := len(table.Frontends) + len(table.Pools); n != 0 {
		t.Errorf("%d things left of a Service that is gone", n)
	}
}

// TestPlanRepairs: whatever is in a kernel, the first Plan makes it right.
func TestPlanRepairs(t *testing.T) {
	w := newWorld()
	w.set(spec{n: 1, port: 80, endpoints: []int{1, 2, 3, 4, 5}, ranges: []string{"203.0.113.0/24"}})
	w.build()
	for name, damage := range map[string]func(*slots.Table){
		"a frontend gone":          func(t *slots.Table) { delete(t.Frontends, key("10.96.0.1", 80)) },
		"a frontend of another":    func(t *slots.Table) { t.Frontends[key("10.96.0.7", 80)] = slots.Frontend{Present: true} },
		"a frontend leads nowhere": func(t *slots.Table) { t.Frontends[key("10.96.0.1", 80)] = slots.Frontend{Present: true} },
		"a slot gone":              func(t *slots.Table) { t.Pools[cluster][2] = netip.AddrPort{} },
		"the last slot gone":       func(t *slots.Table) { t.Pools[cluster] = t.Pools[cluster][:4] },
		"all but the last":         func(t *slots.Table) { clear(t.Pools[cluster][:4]) },
		"an endpoint twice":        func(t *slots.Table) { t.Pools[cluster][0] = t.Pools[cluster][1] },
		"one that is gone":         func(t *slots.Table) { t.Pools[cluster] = append(t.Pools[cluster], endpoint(77)) },
		"a far slot":               func(t *slots.Table) { t.SetSlot(slots.Slot{Pool: cluster, Index: 40}, endpoint(78)) },
		"a pool of nobody":         func(t *slots.Table) { t.SetSlot(slots.Slot{Pool: 9, Index: 2}, endpoint(1)) },
		"a source range gone":      func(t *slots.Table) { clear(t.Sources) },
		"a source range of nobody": func(t *slots.Table) {
			t.AddSource(slots.Source{Frontend: key("10.9.9.9", 1), Range: netip.MustParsePrefix("::/0")})
		},
		"a hairpin gone":            func(t *slots.Table) { delete(t.Hairpins, endpoint(3).Addr()) },
		"a hairpin of nobody":       func(t *slots.Table) { t.Hairpins[endpoint(2).Addr()] = 1 },
		"hairpins as they are read": func(t *slots.Table) { t.Hairpins[endpoint(1).Addr()] = 1 },
	} {
		t.Run(name, func(t *testing.T) {
			table, right := slots.New(), slots.New()
			table.Apply(table.Plan(nil, w.snap))
			right.Apply(right.Plan(nil, w.snap))
			damage(table)
			table.Apply(table.Plan(nil, w.snap))
			same(t, right, table)
		})
	}
}

// same compares two Tables; the order of slots means nothing.
func same(t *testing.T, want, got *slots.Table) {
	t.Helper()
	byAddr := cmp.Transformer("sorted", func(p map[slots.PoolID][]netip.AddrPort) map[slots.PoolID][]string {
		sorted := map[slots.PoolID][]string{}
		for id, addrs := range p {
			for _, a := range slices.SortedFunc(slices.Values(addrs), netip.AddrPort.Compare) {
				sorted[id] = append(sorted[id], a.String())
			}
		}
		return sorted
	})
	equal := cmp.Options{byAddr, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })}
	if diff := cmp.Diff(want, got, equal); diff != "" {
		t.Errorf("tables differ (-want +got):\n%s", diff)
	}
}

// TestRandomWalk visits states in random order: each change is planned from the one before, and the Table is then what a Table that starts with the
// state would be. On the way, a client that is led by the frontends always finds its slot, in the order that Change's comment gives.
func TestRandomWalk(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	w := newWorld()
	table, kernel := slots.New(), newKernel()
	var was *model.Snapshot
	for range 400 {
		for range 1 + random.IntN(3) {
			n := 1 + random.IntN(4)
			if random.IntN(8) == 0 {
				w.unset(n)
				continue
			}
			s := spec{n: n, port: 80, local: random.IntN(2) == 0, affinity: random.IntN(4) == 0}
			for e := range 1 + random.IntN(12) {
				if random.IntN(3) > 0 {
					s.endpoints = append(s.endpoints, e+1)
				}
			}
			if random.IntN(3) == 0 {
				s.ranges = []string{"203.0.113.0/24", "198.51.100.0/25"}[:1+random.IntN(2)]
			}
			w.set(s)
		}
		now := w.build()
		change := table.Plan(was, now)
		kernel.take(t, change)
		table.Apply(change)
		was = now

		fresh := slots.New()
		fresh.Apply(fresh.Plan(nil, now))
		same(t, fresh, table)
		if again := table.Plan(nil, now); !again.None() {
			t.Fatalf("something is left to do: %+v", again)
		}
		if t.Failed() {
			return
		}
	}
}

// kernel takes a Change piece by piece.
type kernel struct {
	frontends map[model.FrontendKey]slots.Frontend
	slots     map[slots.Slot]netip.AddrPort
}

func newKernel() *kernel {
	return &kernel{frontends: map[model.FrontendKey]slots.Frontend{}, slots: map[slots.Slot]netip.AddrPort{}}
}

func (k *kernel) take(t *testing.T, c *slots.Change) {
	for _, s := range c.Slots {
		if k.slots[s.Slot] != s.Was {
			t.Fatalf("slot %v has %v, and the change takes it for %v", s.Slot, k.slots[s.Slot], s.Was)
		}
		if s.Now.IsValid() {
			k.slots[s.Slot] = s.Now
			k.check(t)
		}
	}
	for _, f := range c.Frontends {
		if k.frontends[f.Key] != f.Was {
			t.Fatalf("frontend %v is %v, and the change takes it for %v", f.Key, k.frontends[f.Key], f.Was)
		}
		if f.Now.Present {
			k.frontends[f.Key] = f.Now
		} else {
			delete(k.frontends, f.Key)
		}
		k.check(t)
	}
	for _, s := range c.Slots {
		if !s.Now.IsValid() {
			delete(k.slots, s.Slot)
			k.check(t)
		}
	}
}

// check that every frontend finds all its slots.
func (k *kernel) check(t *testing.T) {
	t.Helper()
	for key, f := range k.frontends {
		for _, target := range []slots.Target{f.Internal, f.External} {
			for i := range target.Size {
				if !k.slots[slots.Slot{Pool: target.Pool, Index: i}].IsValid() {
					t.Fatalf("%v leads to slot %d of %d, and there is none", key, i, target.Size)
				}
			}
		}
	}
}

func TestIDsDiffer(t *testing.T) {
	seen := map[slots.PoolID]model.PoolKey{}
	for _, names := range [][2]string{{"a", "bc"}, {"ab", "c"}, {"", "abc"}, {"abc", ""}} {
		for _, port := range []string{"", "http", "c"} {
			for _, protocol := range []model.Protocol{model.TCP, model.UDP, model.SCTP} {
				for flags := range 4 {
					k := model.PoolKey{Service: model.ServiceKey{Namespace: names[0], Name: names[1]}, Port: port, Protocol: protocol, IPv6: flags&1 > 0, Local: flags&2 > 0}
					if other, ok := seen[slots.ID(k)]; ok {
						t.Errorf("%v and %v have the same ID", k, other)
					}
					seen[slots.ID(k)] = k
				}
			}
		}
	}
}

func BenchmarkPlanOneChange(b *testing.B) {
	for _, size := range []int{2, 100, 10000} {
		b.Run(fmt.Sprintf("endpoints=%d", size), func(b *testing.B) {
			w := newWorld()
			all := slices.Collect(maps.Keys(numbers(size)))
			slices.Sort(all)
			w.set(spec{n: 1, port: 80, endpoints: all})
			with := w.build()
			w.set(spec{n: 1, port: 80, endpoints: all[1:]})
			without := w.build()
			table := slots.New()
			table.Apply(table.Plan(nil, with))
			for b.Loop() {
				table.Apply(table.Plan(with, without))
				table.Apply(table.Plan(without, with))
			}
		})
	}
}

func numbers(n int) map[int]bool {
	m := map[int]bool{}
	for i := range n {
		m[i+1] = true
	}
	return m
}
