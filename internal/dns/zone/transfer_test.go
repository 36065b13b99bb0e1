package zone

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"github.com/endpointd/endpointd/internal/dns/wire"
	"github.com/endpointd/endpointd/internal/model"
)

// transferred holds a transfer against the oracle's table: all records of the domain but those of pods, each once, and nothing else.
func transferred(t *testing.T, z *Zone, o *oracle) {
	t.Helper()
	var want []string
	for name, types := range o.records {
		if !strings.HasSuffix("."+name, "."+domain) || strings.HasSuffix(name, ".pod."+domain) {
			continue
		}
		for rtype, list := range types {
			for _, data := range list {
				want = append(want, fmt.Sprintf("%s %d %s %s", name, o.ttl[name], rtype, data))
			}
		}
	}
	got := transfer(t, z, domain)
	if len(got) == 0 || !strings.Contains(got[0], " SOA ") {
		t.Errorf("the SOA is not the first of %q", got)
	}
	for i, line := range got { // what belongs together is together
		words := strings.SplitN(line, " ", 4)
		set := words[0] + " " + words[2] + " "
		for j := range i - 1 {
			other := strings.SplitN(got[j], " ", 4)
			between := strings.SplitN(got[i-1], " ", 4)
			if other[0]+" "+other[2]+" " == set && between[0]+" "+between[2]+" " != set {
				t.Errorf("%s is in two places", set)
			}
		}
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("transferred\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// transfer is one as text, which has been through a message.
func transfer(t *testing.T, z *Zone, of string) []string {
	t.Helper()
	q, _ := begin(t, asked(t, of, dns.TypeAXFR), true)
	records, rcode := z.Transfer(q.Name)
	if rcode != dns.RcodeSuccess {
		t.Fatalf("RCODE %d", rcode)
	}
	var lines []string
	for record := range records {
		var r wire.Response
		r.Begin(nil, q, 1<<16, 0)
		if r.AddNamed(wire.Answer, record.Name, record.Type, record.TTL, record.Data) == 0 {
			t.Fatalf("%q does not fit", record.Name)
		}
		m := new(dns.Msg)
		if err := m.Unpack(r.Finish()); err != nil || len(m.Answer) != 1 {
			t.Fatalf("%v: %v", err, m)
		}
		h := m.Answer[0].Header()
		lines = append(lines, fmt.Sprintf("%s %d %s %s", strings.ToLower(h.Name), h.Ttl, dns.TypeToString[h.Rrtype], strings.TrimPrefix(m.Answer[0].String(), h.String())))
	}
	return lines
}

// TestTransferIsAnswered asks for each record of a transfer: all that the answer has are in the transfer, and this one is among them.
func TestTransferIsAnswered(t *testing.T) {
	t.Parallel()
	z := newZone(t).Next(model.Build(many(40), nil))
	all := transfer(t, z, "CLUSTER.local.")
	if len(all) < 40 {
		t.Fatalf("%d records", len(all))
	}
	for _, line := range all {
		words := strings.SplitN(line, " ", 4)
		got, _ := put(t, z, words[0], dns.StringToType[words[2]], 7)
		if !slices.Contains(got.answer, line) {
			t.Errorf("%s: the answer is %+v", line, got)
		}
		for _, other := range got.answer {
			if !slices.Contains(all, other) {
				t.Errorf("%s is not transferred", other)
			}
		}
	}
}

// TestTransferEnds when nobody wants more, after any number of records.
func TestTransferEnds(t *testing.T) {
	t.Parallel()
	z := newZone(t).Next(model.Build(many(5), nil))
	q, _ := begin(t, asked(t, domain, dns.TypeAXFR), true)
	records, _ := z.Transfer(q.Name)
	total := 0
	for range records {
		total++
	}
	for most := 1; most <= total; most++ {
		n := 0
		for range records {
			if n++; n == most {
				break
			}
		}
		if n != most {
			t.Fatalf("%d records, want %d", n, most)
		}
	}
}

// TestNoTransfer: of what is not a zone of ours, or has no Snapshot yet.
func TestNoTransfer(t *testing.T) {
	t.Parallel()
	empty := newZone(t)
	z := empty.Next(model.Build(many(1), nil))
	for _, c := range []struct {
		z     *Zone
		name  string
		rcode int
	}{
		{empty, domain, dns.RcodeServerFailure}, {empty, "svc." + domain, dns.RcodeNotAuth}, {z, "svc." + domain, dns.RcodeNotAuth}, {z, "local.", dns.RcodeNotAuth},
		{z, ".", dns.RcodeNotAuth}, {z, "96.10.in-addr.arpa.", dns.RcodeNotAuth}, {z, "Cluster.Local.", dns.RcodeSuccess},
	} {
		q, _ := begin(t, asked(t, c.name, dns.TypeAXFR), true)
		if _, got := c.z.Transfer(q.Name); got != c.rcode {
			t.Errorf("%s: %s, want %s", c.name, dns.RcodeToString[got], dns.RcodeToString[c.rcode])
		}
	}
}
