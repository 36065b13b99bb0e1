package zone

import (
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/endpointd/endpointd/internal/dns/wire"
	"github.com/endpointd/endpointd/internal/model"
)

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	for title, domain := range map[string]string{
		"nothing": "", "the root": ".", "an empty label": "cluster..local", "a label too long": strings.Repeat("a", 64),
		"what leaves no room": strings.Repeat(strings.Repeat("a", 58)+".", 4) + "local",
	} {
		if _, err := New(Options{Domain: domain}); err == nil || !strings.Contains(err.Error(), "cluster.local") {
			t.Errorf("%s: %v", title, err)
		}
	}
}

// soa is that of a Zone, nil if it has none.
func soa(t testing.TB, z *Zone, domain string) *dns.SOA {
	t.Helper()
	q, r := begin(t, asked(t, domain, dns.TypeSOA), true)
	z.Answer(q, r, 0)
	m := new(dns.Msg)
	if err := m.Unpack(r.Finish()); err != nil {
		t.Fatal(err)
	}
	if len(m.Answer) == 0 {
		return nil
	}
	return m.Answer[0].(*dns.SOA)
}

func TestTTL(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		ttl  time.Duration
		want uint32
	}{{0, 5}, {-1, 0}, {time.Second, 1}, {30500 * time.Millisecond, 30}, {1 << 62, 1<<31 - 1}} {
		z, err := New(Options{Domain: "Other.Domain.", TTL: c.ttl})
		if err != nil {
			t.Fatal(err)
		}
		got := soa(t, z.Next(model.Build(model.Input{}, nil)), "other.domain.")
		if got == nil || got.Hdr.Ttl != c.want || got.Minttl != c.want || got.Ns != "ns.dns.other.domain." {
			t.Errorf("%v: %v, want %d", c.ttl, got, c.want)
		}
	}
}

// TestSerial: it is the time of the last change in hundredths of a second, and later than the one before whatever the clock says.
func TestSerial(t *testing.T) {
	t.Parallel()
	const wrap = 1 << 32
	var now int64
	z, err := New(Options{Domain: "cluster.local", Now: func() time.Time { return time.UnixMilli(10 * now) }})
	if err != nil {
		t.Fatal(err)
	}
	in := model.Input{}
	s := model.Build(in, nil)
	for i, step := range []struct{ now, want int64 }{
		{1000, 1000}, {1000, 1001}, {1001, 1002}, {900, 1003}, {1004, 1004}, {1 << 31, 1 << 31}, {wrap - 1, wrap - 1}, {wrap - 1, 0}, {wrap + 5, 5}, {wrap - 9, 6},
	} {
		now = step.now
		z = z.Next(s)
		if got := soa(t, z, domain); int64(got.Serial) != step.want {
			t.Errorf("step %d: %d, want %d", i, got.Serial, step.want)
		}
		if again := z.Next(s); again != z {
			t.Errorf("step %d: the same Snapshot makes another Zone", i)
		}
		in = in.WithService(clusterIPService(i, 0))
		s = model.Build(in, s)
	}
	if z.Next(nil) != z {
		t.Error("no Snapshot makes another Zone")
	}
}

// TestServers: each once, and none is no error.
func TestServers(t *testing.T) {
	t.Parallel()
	four := netip.MustParseAddr("192.0.2.1")
	for want, servers := range [][]netip.Addr{{}, {four, netip.MustParseAddr("::ffff:192.0.2.1"), {}}, {netip.MustParseAddr("192.0.2.2"), four}} {
		z, err := New(Options{Domain: "cluster.local", Servers: servers})
		if err != nil {
			t.Fatal(err)
		}
		got, _ := put(t, z.Next(model.Build(model.Input{}, nil)), "ns.dns."+domain, dns.TypeA, 0)
		if len(got.answer) != want || got.rcode != "NOERROR" {
			t.Errorf("%v: %+v", servers, got)
		}
	}
}

// TestAnswersDuringNext is for the race detector: who answers has a Zone while the next ones come of it, and sees no other's records.
func TestAnswersDuringNext(t *testing.T) {
	t.Parallel()
	in := many(50)
	snapshots := [2]*model.Snapshot{model.Build(in, nil), nil}
	snapshots[1] = model.Build(in.WithService(clusterIPService(7, 1)), snapshots[0])
	var current atomic.Pointer[Zone]
	current.Store(newZone(t).Next(snapshots[0]))
	packet := asked(t, "service-7.ns-7."+"svc."+domain, dns.TypeA)
	var readers sync.WaitGroup
	var done atomic.Bool
	for range 2 {
		readers.Go(func() {
			for !done.Load() {
				z := current.Load()
				want := fmt.Sprintf("10.%d.0.7", 96+map[*model.Snapshot]int{snapshots[1]: 1}[z.Snapshot()])
				var q wire.Query
				var r wire.Response
				q.Parse(packet)
				r.Begin(nil, &q, 512, 512)
				z.Answer(&q, &r, 1)
				var m dns.Msg
				if err := m.Unpack(r.Finish()); err != nil || len(m.Answer) != 1 || m.Answer[0].(*dns.A).A.String() != want {
					t.Errorf("%v: %v, want %s", err, &m, want)
					return
				}
			}
		})
	}
	for i := range 500 {
		current.Store(current.Load().Next(snapshots[(i+1)%2]))
	}
	done.Store(true)
	readers.Wait()
}
