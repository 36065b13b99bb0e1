package podnet

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

// TestPool: addresses are given in turn, the one just freed last.
func TestPool(t *testing.T) {
	t.Parallel()
	p := newPool(prefix("10.244.1.0/28"))
	next := func() string {
		a, err := p.next()
		if err != nil {
			return err.Error()
		}
		return a.String()
	}
	for i := range 13 {
		if got, want := next(), fmt.Sprintf("10.244.1.%d", 2+i); got != want {
			t.Fatalf("address %d is %s, want %s", i, got, want)
		}
	}
	if _, err := p.next(); !errors.Is(err, ErrPoolEmpty) || !strings.Contains(err.Error(), "10.244.1.0/28: 13 of 13 are used") {
		t.Errorf("error %v", err)
	}
	for _, freed := range []string{"10.244.1.9", "10.244.1.4"} {
		p.release(addr(freed))
	}
	for _, want := range []string{"10.244.1.4", "10.244.1.9"} {
		if got := next(); got != want {
			t.Errorf("next is %s, want %s", got, want)
		}
	}
	p.release(addr("10.244.1.9"))
	p.release(addr("10.244.1.10"))
	if got := next(); got != "10.244.1.10" {
		t.Errorf("next is %s, want 10.244.1.10: 10.244.1.9 was freed last", got)
	}
}

func TestPoolTakesWhatItWouldGive(t *testing.T) {
	t.Parallel()
	p := newPool(prefix("fd00:244:0:1::/64"))
	for _, foreign := range []string{"fd00:244:0:1::", "fd00:244:0:1::1", "fd00:244:0:2::5", "fd00:244:0:1:ffff::", "10.0.0.1"} {
		p.take(addr(foreign))
	}
	if len(p.used) != 0 {
		t.Errorf("took %v", p.used)
	}
	p.take(addr("fd00:244:0:1::7"))
	if a, err := p.next(); err != nil || a != addr("fd00:244:0:1::8") {
		t.Errorf("next is %s, %v, want the one after the highest taken", a, err)
	}
}

func TestCapacity(t *testing.T) {
	t.Parallel()
	for cidr, want := range map[string]uint64{
		"10.0.0.0/32": 0, "10.0.0.0/31": 0, "10.0.0.0/30": 1, "10.0.0.0/24": 253, "10.0.0.0/8": 1<<24 - 3,
		"fd00::/128": 0, "fd00::/127": 0, "fd00::/126": 2, "fd00::/64": 1<<24 - 2, "fd00::/8": 1<<24 - 2,
	} {
		if got := capacity(prefix(cidr)); got != want {
			t.Errorf("%s has %d addresses for pods, want %d", cidr, got, want)
		}
	}
}

func TestUnion(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ in, want string }{
		{"", ""},
		{"10.0.1.0/24 10.0.0.0/24", "10.0.0.0-10.0.1.255"},
		{"10.0.0.0/16 10.0.7.0/24 10.0.255.255/32 10.2.0.0/32", "10.0.0.0-10.0.255.255 10.2.0.0-10.2.0.0"},
		{"fd00::/64 10.0.0.9/8 fd00:0:0:1::/64", "10.0.0.0-10.255.255.255 fd00::-fd00::1:ffff:ffff:ffff:ffff"},
		{"255.255.255.0/24 255.255.255.255/32 ::/128", "255.255.255.0-255.255.255.255 ::-::"},
	} {
		var prefixes []netip.Prefix
		for p := range strings.FieldsSeq(c.in) {
			prefixes = append(prefixes, prefix(p))
		}
		var got []string
		for _, r := range union(prefixes) {
			got = append(got, fmt.Sprintf("%s-%s", r.from, r.to))
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("union of %s: %s, want %s", c.in, got, c.want)
		}
	}
}

// TestElementsRoundTrip: what is written to the kernel is read back as the same, in whatever order it answers.
func TestElementsRoundTrip(t *testing.T) {
	t.Parallel()
	ranges := union([]netip.Prefix{prefix("10.0.0.0/24"), prefix("10.0.2.0/24"), prefix("10.9.9.9/32"), prefix("255.255.255.0/24")})
	elements := elementsOf(ranges, true)
	rand.Shuffle(len(elements), func(i, j int) { elements[i], elements[j] = elements[j], elements[i] })
	if got := rangesOf(elements); !slices.Equal(got, ranges) {
		t.Errorf("ranges %v, want %v", got, ranges)
	}
	forwards, err := forwardsOf([]netip.Addr{addr("10.244.1.5"), addr("fd00::5")}, []HostPort{
		{Port: 8080, ContainerPort: 80}, {Port: 53, ContainerPort: 5353, Protocol: "UDP", HostIP: addr("10.0.0.1")},
		{Port: 1, ContainerPort: 65535, Protocol: "SCTP", HostIP: addr("fd00::1")}, {Port: 9, ContainerPort: 9, HostIP: addr("0.0.0.0")},
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(forwards) != 5 {
		t.Errorf("%d forwards, want both families only where no address is given: %v", len(forwards), forwards)
	}
	for _, f := range forwards {
		e := elementOf(f)
		if got, ok := forwardOf(e.set, e.element, f.host.Addr().Is4()); !ok || got != f {
			t.Errorf("%v is read back as %v", f, got)
		}
	}
}

func TestDiffRoutes(t *testing.T) {
	t.Parallel()
	type routes = map[netip.Prefix]netip.Addr
	a, b, c := prefix("10.1.0.0/24"), prefix("10.2.0.0/24"), prefix("10.3.0.0/24")
	x, y := addr("10.200.0.1"), addr("10.200.0.2")
	got := diffRoutes(routes{a: x, b: x}, routes{b: y, c: y})
	want := []routeChange{{dst: a, from: x}, {dst: b, from: x, to: y}, {dst: c, to: y}}
	if !slices.Equal(got, want) {
		t.Errorf("changes %v, want %v", got, want)
	}
	if again := diffRoutes(routes{b: y, c: y}, routes{b: y, c: y}); len(again) != 0 {
		t.Errorf("nothing differs, but the changes are %v", again)
	}
}

func TestPeerRoutes(t *testing.T) {
	t.Parallel()
	own, err := newConfig(dual(1))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name  string
		peers []Peer
		says  string
	}{
		{"no address of the family", []Peer{{Name: "b", Addrs: []netip.Addr{addr("10.200.0.12")}, PodCIDRs: []netip.Prefix{prefix("fd00:1::/64")}}}, "node b: pod range fd00:1::/64 cannot be reached: the node has no IPv6 address"},
		{"overlaps ours", []Peer{{Name: "b", Addrs: []netip.Addr{addr("10.200.0.12")}, PodCIDRs: []netip.Prefix{prefix("10.244.0.0/16")}}}, "overlaps this node's 10.244.1.0/24"},
		{"holds our address", []Peer{{Name: "b", Addrs: []netip.Addr{addr("10.200.0.12")}, PodCIDRs: []netip.Prefix{prefix("10.200.0.0/24")}}}, "holds this node's address 10.200.0.11"},
		{"two nodes with one range", []Peer{peer(2), {Name: "z", Addrs: []netip.Addr{addr("10.200.0.99")}, PodCIDRs: []netip.Prefix{prefix("10.244.2.128/25")}}}, "node z: pod range 10.244.2.128/25 overlaps 10.244.2.0/24 of node node-2"},
		{"not valid", []Peer{{Name: "b", PodCIDRs: []netip.Prefix{{}}}}, "node b: a pod range is not valid"},
	} {
		wanted, _, errs := peerRoutes(own, c.peers)
		if len(errs) != 1 || !strings.Contains(errs[0].Error(), c.says) {
			t.Errorf("%s: errors %v, want one that says %q", c.name, errs, c.says)
		}
		if len(wanted) != 2*(len(c.peers)-1) {
			t.Errorf("%s: routes %v", c.name, wanted)
		}
	}
}

// TestPortTable walks at random beside a model that compares each pair.
func TestPortTable(t *testing.T) {
	t.Parallel()
	table, model := newPortTable(), map[forward]string{}
	hosts := []string{"0.0.0.0", "10.0.0.1", "10.0.0.2", "::", "fd00::1"}
	for range 2000 {
		host := addr(hosts[rand.IntN(len(hosts))])
		f := forward{protocol: []uint8{6, 17}[rand.IntN(2)], host: netip.AddrPortFrom(host, uint16(1+rand.IntN(3))), target: netip.AddrPortFrom(host, 80)}
		if uid, there := model[f]; there {
			if !slices.Contains(table.of(uid), f) {
				t.Fatalf("%v of %s is forgotten", f, uid)
			}
			table.drop(f)
			delete(model, f)
			continue
		}
		clash := false
		for other := range model {
			a, b := f.host.Addr(), other.host.Addr()
			clash = clash || f.protocol == other.protocol && f.host.Port() == other.host.Port() && a.Is4() == b.Is4() &&
				(a == b || a.IsUnspecified() || b.IsUnspecified())
		}
		if got := table.conflict(f) != ""; got != clash {
			t.Fatalf("conflict of %v is %v, want %v beside %v", f, got, clash, model)
		}
		if !clash {
			model[f] = fmt.Sprint("pod-", len(model))
			table.put(f, model[f])
		}
	}
}

func TestNames(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for i := range 10000 {
		name := linkName(fmt.Sprint("uid-", i))
		if len(name) != 14 || !strings.HasPrefix(name, linkPrefix) || seen[name] {
			t.Fatalf("name %q: want 14 characters, the limit of the kernel is 15, and no other pod's", name)
		}
		seen[name] = true
	}
	mac := podMAC("uid")
	if mac[0]&3 != 2 || nodeMAC()[0]&3 != 2 {
		t.Errorf("hardware addresses %s and %s, want locally administered unicast", mac, nodeMAC())
	}
	if got, want := linkLocal(nodeMAC()), addr("fe80::eced:ff:fe00:1"); got != want {
		t.Errorf("link-local address %s, want %s", got, want)
	}
}
