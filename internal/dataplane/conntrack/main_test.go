package conntrack

import (
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/endpointd/endpointd/internal/testkit"
)

// TestMain runs the tests in a user and a network namespace of their own, so that none can touch the machine's network.
func TestMain(m *testing.M) { testkit.MainInside(m, syscall.CLONE_NEWNET|syscall.CLONE_NEWNS) }

// place is a network namespace in which lo has all addresses that a test needs: the node's 192.0.2.1, clients' 10.2.0.1, pods' 10.1.0.1 to .9
// and the like of IPv6. Packets to Services that nobody translates leave through a pair of interfaces of which the other end leads nowhere.
type place struct {
	ns netns.NsHandle
	// table is one of our own in which tests lead addresses to others.
	table *nftables.Table
	dnat  map[bool]*nftables.Set // IPv6? → address, protocol, port → address, port
}

func newPlace(t testing.TB) *place {
	t.Helper()
	testkit.NeedInside(t)
	p := &place{}
	thread(t, func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		var err error
		p.ns, err = netns.Get()
		return err
	})
	t.Cleanup(func() { _ = p.ns.Close() })
	p.do(t, p.setUp)
	testkit.Await(t, patience, func() (err error) {
		p.do(t, func() error { err = settled(); return nil })
		return err
	})
	return p
}

// settled says which address the kernel does not take packets for yet: it does some of that in the background.
func settled() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	addrs, err := netlink.AddrList(lo, netlink.FAMILY_ALL)
	if err != nil {
		return err
	}
	for _, a := range addrs {
		routes, err := netlink.RouteGet(a.IP)
		if err != nil {
			return fmt.Errorf("%s: %w", a.IP, err)
		}
		if len(routes) == 0 || routes[0].Type != unix.RTN_LOCAL {
			return fmt.Errorf("%s is not local yet", a.IP)
		}
	}
	if len(addrs) < 20 {
		return fmt.Errorf("only %d addresses", len(addrs))
	}
	return nil
}

// thread runs f on a thread that ends with it.
func thread(t testing.TB, f func() error) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked
		done <- f()
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// do runs f in the place.
func (p *place) do(t testing.TB, f func() error) {
	t.Helper()
	thread(t, func() error {
		if err := netns.Set(p.ns); err != nil {
			return err
		}
		return f()
	})
}

func (p *place) setUp() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	addrs := []string{"192.0.2.1/32", "2001:db8::1/128", "10.2.0.1/32", "fd00:2::1/128"}
	for i := range 9 {
		addrs = append(addrs, fmt.Sprintf("10.1.0.%d/32", i+1), fmt.Sprintf("fd00:1::%d/128", i+1))
	}
	if err := netlink.LinkSetUp(lo); err != nil { // first: else addresses of IPv6 come a while after it
		return err
	}
	for _, a := range addrs {
		addr, err := netlink.ParseAddr(a)
		if err != nil {
			return err
		}
		addr.Flags = unix.IFA_F_NODAD
		if err := netlink.AddrAdd(lo, addr); err != nil {
			return err
		}
	}
	if err := errors.Join(netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "out"}, PeerName: "nowhere"})); err != nil {
		return err
	}
	out, err := netlink.LinkByName("out")
	if err != nil {
		return err
	}
	nowhere, err := netlink.LinkByName("nowhere")
	if err != nil {
		return err
	}
	if err := errors.Join(netlink.LinkSetARPOff(out), netlink.LinkSetUp(nowhere), netlink.LinkSetUp(out)); err != nil {
		return err
	}
	for _, r := range []string{"10.96.0.0/16", "198.51.100.0/24", "fd00:96::/112", "2001:db8:1::/64"} {
		dst, err := netlink.ParseIPNet(r)
		if err != nil {
			return err
		}
		if err := netlink.RouteAdd(&netlink.Route{LinkIndex: out.Attrs().Index, Dst: dst, Scope: netlink.SCOPE_LINK}); err != nil {
			return fmt.Errorf("route %s: %w", r, err)
		}
	}
	return p.rules()
}

// rules makes a table that translates what its maps say, for packets of this place, and drops what is sent to port 9.
func (p *place) rules() error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	p.table = c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "test"})
	chain := c.AddChain(&nftables.Chain{
		Table: p.table, Name: "output", Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityNATDest,
	})
	drop := c.AddChain(&nftables.Chain{
		Table: p.table, Name: "input", Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityFilter,
	})
	c.AddRule(&nftables.Rule{Table: p.table, Chain: drop, Exprs: []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(9)},
		&expr.Verdict{Kind: expr.VerdictDrop},
	}})
	p.dnat = map[bool]*nftables.Set{}
	for _, v6 := range []bool{false, true} {
		name, address, family, offset, size := "dnat4", nftables.TypeIPAddr, byte(unix.NFPROTO_IPV4), uint32(16), uint32(4)
		if v6 {
			name, address, family, offset, size = "dnat6", nftables.TypeIP6Addr, unix.NFPROTO_IPV6, 24, 16
		}
		set := &nftables.Set{
			Table: p.table, Name: name, IsMap: true,
			KeyType:  nftables.MustConcatSetType(address, nftables.TypeInetProto, nftables.TypeInetService),
			DataType: nftables.MustConcatSetType(address, nftables.TypeInetService),
		}
		if err := c.AddSet(set, nil); err != nil {
			return err
		}
		p.dnat[v6] = set
		after := unix.NFT_REG32_00 + size/4
		c.AddRule(&nftables.Rule{Table: p.table, Chain: chain, Exprs: []expr.Any{
			&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{family}},
			&expr.Payload{DestRegister: unix.NFT_REG32_00, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size},
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: after},
			&expr.Payload{DestRegister: after + 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
			&expr.Lookup{SourceRegister: unix.NFT_REG32_00, DestRegister: unix.NFT_REG32_00, IsDestRegSet: true, SetName: name, SetID: set.ID},
			&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(family), RegAddrMin: unix.NFT_REG32_00, RegProtoMin: after, Specified: true},
		}})
	}
	return c.Flush()
}

// lead replaces all that the place translates.
func (p *place) lead(t testing.TB, to map[frontend]netip.AddrPort) {
	t.Helper()
	p.do(t, func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		for v6, set := range p.dnat {
			c.FlushSet(set)
			var elements []nftables.SetElement
			for key, endpoint := range to {
				if key.Addr.Is6() == v6 {
					elements = append(elements, nftables.SetElement{
						Key: concat(key.Addr.AsSlice(), []byte{byte(key.Protocol)}, binaryutil.BigEndian.PutUint16(key.Port)),
						Val: concat(endpoint.Addr().AsSlice(), binaryutil.BigEndian.PutUint16(endpoint.Port())),
					})
				}
			}
			if err := c.SetAddElements(set, elements); err != nil {
				return err
			}
		}
		return c.Flush()
	})
}

// concat puts each part at a multiple of four bytes, as the kernel has it in registers.
func concat(parts ...[]byte) []byte {
	var all []byte
	for _, p := range parts {
		all = append(all, p...)
		for len(all)%4 != 0 {
			all = append(all, 0)
		}
	}
	return all
}

const patience = 20 * time.Second
