package app

import (
	"net/netip"
	"testing"

	"github.com/miekg/dns"
)

// TestWhoMayTransfer: those who were named, who may ask, too; not the nodes and pods, which ask for all else.
func TestWhoMayTransfer(t *testing.T) {
	named := netip.MustParsePrefix("192.0.2.0/24")
	n := namesOf(t, func(o *namesOptions) {
		o.Transfers, o.Clients = []netip.Prefix{named}, []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}
	})
	n.set(snapshotOf(t, webAndPeers))
	for _, c := range []struct {
		client        string
		ask, transfer bool
	}{
		{"192.0.2.7", true, true}, {"198.51.100.7", true, false}, {"10.244.1.9", true, false}, {"127.0.0.1", true, false}, {"203.0.113.1", false, false},
	} {
		addr := netip.MustParseAddr(c.client)
		if ask, transfer := n.mayAsk(addr), n.mayTransfer(addr); ask != c.ask || transfer != c.transfer {
			t.Errorf("%s may ask: %v, and transfer: %v", c.client, ask, transfer)
		}
	}
}

// TestTransfer asks a server for the whole zone.
func TestTransfer(t *testing.T) {
	for _, c := range []struct {
		transfers []netip.Prefix
		want      bool
	}{{nil, false}, {[]netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}, true}} {
		n := runNames(t, func(o *namesOptions) { o.Transfers = c.transfers })
		n.set(snapshotOf(t, webAndPeers))
		in, err := (&dns.Transfer{ReadTimeout: askPatience}).In(new(dns.Msg).SetAxfr("cluster.local."), n.server.Addrs()[0].String())
		check(t, err)
		found := map[string]bool{}
		for e := range in {
			if (e.Error == nil) != c.want {
				t.Errorf("to %v: %v", c.transfers, e.Error)
			}
			for _, rr := range e.RR {
				if a, ok := rr.(*dns.A); ok {
					found[a.Hdr.Name+" "+a.A.String()] = true
				}
			}
		}
		for _, record := range []string{"web.default.svc.cluster.local. 10.96.0.7", "peers.default.svc.cluster.local. 10.244.2.9"} {
			if found[record] != c.want {
				t.Errorf("to %v: %v", c.transfers, found)
			}
		}
	}
}
