package names

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"github.com/endpointd/endpointd/internal/dns/wire"
	"github.com/endpointd/endpointd/internal/dns/zone"
	"github.com/endpointd/endpointd/internal/model"
)

// TestSameTransfer compares what both transfer of Services. CoreDNS leaves out some of what it answers, such as SRV records at the name of a headless
// Service, so these are not compared; nor are weights, which it makes for each slice.
func TestSameTransfer(t *testing.T) {
	for _, seed := range []uint64{4, 5} {
		w := newWorld(t, seed)
		theirs := start(t, w.api, last+".a.svc.cluster.local")
		z, err := zone.New(zone.Options{Domain: "cluster.local", Servers: []netip.Addr{netip.MustParseAddr("10.96.0.10")}})
		if err != nil {
			t.Fatal(err)
		}
		z = z.Next(model.Build(w.in, nil))
		got, want := ourTransfer(t, z), theirTransfer(t, theirs.addr)
		if len(want) < 100 {
			t.Fatalf("CoreDNS transfers %d records", len(want))
		}
		for _, rr := range got {
			if !slices.Contains(want, rr) {
				t.Errorf("seed %d: only we transfer %s", seed, rr)
			}
		}
		for _, rr := range want {
			if !slices.Contains(got, rr) {
				t.Errorf("seed %d: only CoreDNS transfers %s", seed, rr)
			}
		}
	}
}

func ourTransfer(t *testing.T, z *zone.Zone) []string {
	t.Helper()
	records, rcode := z.Transfer([]byte("\x07cluster\x05local\x00"))
	if rcode != dns.RcodeSuccess {
		t.Fatalf("RCODE %d", rcode)
	}
	var all []dns.RR
	for r := range records {
		header := dns.RR_Header{Name: wire.NameString(r.Name), Rrtype: r.Type, Class: dns.ClassINET, Ttl: r.TTL, Rdlength: uint16(len(r.Data))}
		rr, _, err := dns.UnpackRRWithHeader(header, slices.Clone(r.Data), 0)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, rr)
	}
	return inBoth(all)
}

func theirTransfer(t *testing.T, addr string) []string {
	t.Helper()
	in, err := new(dns.Transfer).In(new(dns.Msg).SetAxfr("cluster.local."), addr)
	if err != nil {
		t.Fatal(err)
	}
	var all []dns.RR
	for e := range in {
		if e.Error != nil {
			t.Fatal(e.Error)
		}
		all = append(all, e.RR...)
	}
	return inBoth(all)
}

// inBoth are the records of Services that both have, each once, as text.
func inBoth(records []dns.RR) []string {
	var all []string
	for _, rr := range records {
		h := rr.Header()
		name := strings.ToLower(h.Name)
		if !strings.HasSuffix(name, ".svc.cluster.local.") {
			continue
		}
		if srv, ok := rr.(*dns.SRV); ok {
			if !strings.HasPrefix(name, "_") || srv.Port == 65535 { // which is CoreDNS's -1, of a port without a number
				continue
			}
			srv.Weight = 0
		}
		all = append(all, strings.ToLower(strings.Join(strings.Fields(rr.String()), " ")))
	}
	slices.Sort(all)
	return slices.Compact(all)
}
