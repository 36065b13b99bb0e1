package nftables

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"

	"github.com/endpointd/endpointd/internal/dataplane/dptest"
	"github.com/endpointd/endpointd/internal/model"
)

// tracked says whether conntrack on the node knows a connection by the client's port as it dialled.
func tracked(t *testing.T, w *dptest.World, client netip.AddrPort) bool {
	t.Helper()
	var found bool
	in(t, w, func() error {
		flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, netlink.InetFamily(familyNumber(client.Addr())))
		for _, f := range flows {
			src, _ := netip.AddrFromSlice(f.Forward.SrcIP)
			found = found || netip.AddrPortFrom(src.Unmap(), f.Forward.SrcPort) == client
		}
		return err
	})
	return found
}

func familyNumber(a netip.Addr) uint8 {
	if a.Is4() {
		return netlink.FAMILY_V4
	}
	return netlink.FAMILY_V6
}

// TestUntracked has clients with low and high ports dial servers with low and high ports, at their own addresses and through Services: all are answered,
// and conntrack knows those that it must know, and no others but where ports are of no help.
func TestUntracked(t *testing.T) {
	const low, high = 8080, 40_000
	w := dptest.NewWorld(t)
	server, remote := w.Pods[0], w.Pods[3]
	input := model.Input{}.WithNetwork(dptest.Network())
	for n, port := range map[int]uint16{1: low, 2: high} {
		for _, place := range []*dptest.Place{server, remote} {
			stop, err := place.Serve(port)
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := stop(); err != nil {
					t.Error(err)
				}
			}()
		}
		input = input.WithService(serviceObject(n)).WithSlice(slice(n, fmt.Sprintf("s-%d", n), corev1.ProtocolTCP, int32(port), server.V4))
	}
	p := synced(t, w, model.Build(input, nil))
	v4, v6 := server.V4, server.Addr(true)
	from := uint16(0)
	for _, c := range []struct {
		name    string
		client  *dptest.Place
		to      netip.AddrPort
		high    bool // the client's port
		tracked bool
	}{
		{"a pod dials a pod", w.Pods[1], netip.AddrPortFrom(v4, low), true, false},
		{"a pod dials a pod by IPv6", w.Pods[1], netip.AddrPortFrom(v6, low), true, false},
		{"a pod dials a pod of another node", w.Pods[1], netip.AddrPortFrom(remote.V4, low), true, false},
		{"a pod of another node dials a pod", remote, netip.AddrPortFrom(v4, low), true, false},
		{"a client with a low port", w.Pods[1], netip.AddrPortFrom(v4, low), false, true},
		{"a server with a high port", w.Pods[1], netip.AddrPortFrom(v4, high), true, true},
		{"a client with a low port, a server with a high one", w.Pods[1], netip.AddrPortFrom(v4, high), false, false},
		{"a Service", w.Pods[1], netip.AddrPortFrom(clusterIP(1), 80), true, true},
		{"a Service, by a client with a low port", w.Pods[1], netip.AddrPortFrom(clusterIP(1), 80), false, true},
		{"a Service of a server with a high port", w.Pods[1], netip.AddrPortFrom(clusterIP(2), 80), true, true},
		{"a Service of a server with a high port, by a client with a low one", w.Pods[1], netip.AddrPortFrom(clusterIP(2), 80), false, true},
		{"a Service, from another node", remote, netip.AddrPortFrom(clusterIP(1), 80), true, true},
		{"the node dials a pod", w.Node, netip.AddrPortFrom(v4, low), true, true},
		{"somebody outside dials a pod", w.Outside, netip.AddrPortFrom(v4, low), true, true},
	} {
		from++
		port := from + 5000
		if c.high {
			port = from + 50_000
		}
		conn, err := c.client.DialFrom(port, c.to, patience)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if answer, err := conn.Ask(patience); err != nil || answer.Server == "" {
			t.Errorf("%s: %v, %v", c.name, answer, err)
		}
		if is := tracked(t, w, netip.AddrPortFrom(c.client.Addr(c.to.Addr().Is6()), port)); is != c.tracked {
			t.Errorf("%s: tracked is %t", c.name, is)
		}
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	}
	t.Run("another table", func(t *testing.T) { beside(t, w, p, netip.AddrPortFrom(v4, low)) })
	t.Run("mistakable", func(t *testing.T) {
		object := serviceObject(3)
		object.Spec.ExternalIPs = []string{w.Pods[2].V4.String()}
		mistaken := input.WithService(object).WithSlice(slice(3, "s-3", corev1.ProtocolTCP, low, v4))
		if err := p.Sync(t.Context(), model.Build(mistaken, nil)); err != nil {
			t.Fatal(err)
		}
		if answer, err := w.Pods[1].Ask(model.TCP, netip.AddrPortFrom(w.Pods[2].V4, 80), patience); err != nil {
			t.Errorf("a Service whose external IP is a pod's: %v, %v", answer, err)
		}
	})
}

// beside has somebody else make a table while a connection is open, and delete it again.
func beside(t *testing.T, w *dptest.World, p *Proxier, to netip.AddrPort) {
	open, err := w.Pods[1].DialFrom(51_000, to, patience)
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close() //nolint:errcheck // nothing is left to say
	table := &nftables.Table{Name: "firewall", Family: nftables.TableFamilyIPv4}
	for i, step := range []struct {
		do      func(*nftables.Conn)
		tracked bool
	}{
		{func(c *nftables.Conn) { c.AddTable(table) }, true},
		{func(c *nftables.Conn) { c.DelTable(table) }, false},
	} {
		in(t, w, func() error {
			c, err := nftables.New()
			if err != nil {
				return err
			}
			step.do(c)
			return c.Flush()
		})
		err := w.Node.Do(func() error {
			_, err := p.Verify(t.Context())
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		port := uint16(51_001 + i)
		conn, err := w.Pods[1].DialFrom(port, to, patience)
		if err != nil {
			t.Fatal(err)
		}
		if is := tracked(t, w, netip.AddrPortFrom(w.Pods[1].V4, port)); is != step.tracked {
			t.Errorf("step %d: tracked is %t", i, is)
		}
		if _, err := open.Ask(patience); err != nil {
			t.Errorf("step %d: the open connection: %v", i, err)
		}
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	}
}
