package server

import (
	"context"
	"errors"
	"iter"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/endpointd/endpointd/internal/dns/wire"
	"github.com/endpointd/endpointd/internal/dns/zone"
)

// fakeZone is cluster.test: web.ns has an address, many.ns has 300, ext.ns is at target.example, in.ns is another name of web.ns, pod.ns may be a pod.
type fakeZone struct{ addr netip.Addr }

var _ Zone = fakeZone{} // and so does the real one:
var _ Zone = (*zone.Zone)(nil)

const fakeMany = 300

func newFakeZone() fakeZone { return fakeZone{netip.MustParseAddr("10.0.0.1")} }

func lower(name []byte) string { return string(wire.AppendLower(make([]byte, 0, wire.MaxName), name)) }

func (z fakeZone) Answer(q *wire.Query, r *wire.Response, _ uint64) zone.Outcome {
	var buf [wire.MaxName]byte
	name := wire.AppendLower(buf[:0], q.Name)
	const domain = "\x07cluster\x04test\x00"
	if len(name) < len(domain) || string(name[len(name)-len(domain):]) != domain {
		return zone.Outcome{Kind: zone.NotOurs}
	}
	r.SetAuthoritative()
	switch string(name[:len(name)-len(domain)]) {
	case "\x03web\x02ns\x03svc":
		if q.Type == dns.TypeA {
			r.AddAddr(wire.Answer, wire.QuestionAt, 5, z.addr)
		}
	case "\x04many\x02ns\x03svc":
		for i := range fakeMany {
			r.AddAddr(wire.Answer, wire.QuestionAt, 5, netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}))
		}
	case "\x03ext\x02ns\x03svc":
		at := r.AddName(wire.Answer, wire.QuestionAt, dns.TypeCNAME, 5, []byte("\x06target\x07example\x00"))
		return zone.Outcome{Kind: zone.Follow, Target: []byte("\x06target\x07example\x00"), At: at}
	case "\x0810-0-0-7\x02ns\x03pod":
		return zone.Outcome{Kind: zone.AskPod, Namespace: "ns", Addr: netip.MustParseAddr("10.0.0.7")}
	default:
		r.SetRCode(dns.RcodeNameError)
		r.AddSOA(wire.Authority, wire.QuestionAt, 5, &wire.SOA{MName: []byte(domain), RName: []byte(domain), Minimum: 5})
	}
	return zone.Outcome{}
}

func (z fakeZone) AnswerPod(_ *wire.Query, r *wire.Response, exists bool) zone.Outcome {
	r.SetAuthoritative()
	if exists {
		r.AddAddr(wire.Answer, wire.QuestionAt, 5, netip.MustParseAddr("10.0.0.7"))
	} else {
		r.SetRCode(dns.RcodeNameError)
	}
	return zone.Outcome{}
}

func (z fakeZone) Search(dst, name []byte, namespace string) ([]byte, bool) {
	suffix := string([]byte{byte(len(namespace))}) + namespace + "\x03svc\x07cluster\x04test\x00"
	for at := 0; name[at] != 0; at += 1 + int(name[at]) {
		if strings.EqualFold(string(name[at:]), suffix) {
			return append(append(dst, lower(name[:at])...), 0), true
		}
	}
	return dst, false
}

func (z fakeZone) Transfer([]byte) (iter.Seq[zone.Record], int) { return nil, dns.RcodeNotAuth }

func (z fakeZone) Serial() uint32 { return 0 }

func (z fakeZone) Namespace(netip.Addr) (string, bool) { return "ns", true }

// fakeForwarder knows names → addresses; nil is a name without any, and others do not exist. A name is in its cache once it was resolved.
type fakeForwarder struct {
	t     testing.TB
	names map[string][]netip.Addr

	mu     sync.Mutex
	cached map[string]bool
	asked  []string
	probes int
	block  chan struct{} // Resolve waits until it is closed
	broken bool
}

func newFakeForwarder(t testing.TB) *fakeForwarder {
	a := netip.MustParseAddr("192.0.2.1")
	return &fakeForwarder{t: t, cached: map[string]bool{}, names: map[string][]netip.Addr{
		"target.example.": {a}, "www.example.": {a}, "in.corp.example.": {a}, "single.corp.example.": {a}, "none.example.": nil,
	}}
}

type fakeAnswer struct {
	rcode int
	addrs []netip.Addr
	qtype uint16
}

func (a fakeAnswer) RCode() int          { return a.rcode }
func (a fakeAnswer) AuthenticData() bool { return true }
func (a fakeAnswer) Append(r *wire.Response, at int, _ time.Time) bool {
	for _, addr := range a.addrs {
		if addr.Is4() == (a.qtype == dns.TypeA) && !r.AddAddr(wire.Answer, at, 60, addr) {
			return false
		}
	}
	return true
}

func (f *fakeForwarder) Lookup(q *wire.Query, _ time.Time) (Answer, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	name := strings.ToLower(wire.NameString(q.Name))
	if !f.cached[name] {
		return nil, false
	}
	return f.answer(name, q.Type), true
}

func (f *fakeForwarder) answer(name string, qtype uint16) Answer {
	addrs, ok := f.names[name]
	if !ok {
		return fakeAnswer{rcode: dns.RcodeNameError}
	}
	return fakeAnswer{addrs: addrs, qtype: qtype}
}

func (f *fakeForwarder) Resolve(ctx context.Context, q *wire.Query) (Answer, error) {
	f.mu.Lock()
	name, block := strings.ToLower(wire.NameString(q.Name)), f.block
	f.asked = append(f.asked, name)
	f.mu.Unlock()
	if block != nil {
		select {
		case <-block:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.broken {
		return nil, errors.New("no upstream answers")
	}
	f.cached[name] = true
	return f.answer(name, q.Type), nil
}

func (f *fakeForwarder) IsLoopProbe(name []byte) bool {
	if !strings.HasPrefix(wire.NameString(name), "probe.") {
		return false
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.probes++
	return true
}

func (f *fakeForwarder) questions() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]string(nil), f.asked...)
}

func (f *fakeForwarder) resolving() int { return len(f.questions()) }
