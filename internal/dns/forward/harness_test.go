package forward

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/endpointd/endpointd/internal/dns/wire"
	"github.com/endpointd/endpointd/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// patient is how long a test waits for what does come.
const patient = 20 * time.Second

// A teller answers a request; nil is silence.
type teller func(r *dns.Msg) *dns.Msg

// A fake is an upstream on loopback, over UDP and TCP.
type fake struct {
	addr     netip.AddrPort
	udp, tcp atomic.Int64 // requests
	conns    atomic.Int64

	mu    sync.Mutex
	tell  teller
	noise int // packets with a wrong ID before each answer over UDP
}

func (s *fake) say(tell teller) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tell = tell
}

func (s *fake) upstream() Upstream { return Upstream{Addr: s.addr} }

func (s *fake) ServeDNS(w dns.ResponseWriter, r *dns.Msg) {
	if w.LocalAddr().Network() == "udp" {
		s.udp.Add(1)
	} else {
		s.tcp.Add(1)
	}
	s.mu.Lock()
	tell, noise := s.tell, s.noise
	s.mu.Unlock()
	m := tell(r)
	if m == nil {
		return
	}
	if w.LocalAddr().Network() == "udp" && m.Len() > udpSize {
		m.Answer, m.Truncated = m.Answer[:1], true
	}
	if w.LocalAddr().Network() == "udp" {
		for range noise {
			forged := m.Copy()
			forged.Id++
			_ = w.WriteMsg(forged)
		}
	}
	_ = w.WriteMsg(m)
}

// countingListener counts connections.
type countingListener struct {
	net.Listener
	n *atomic.Int64
}

func (l countingListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err == nil {
		l.n.Add(1)
	}
	return conn, err
}

func newFake(t testing.TB, tell teller) *fake {
	t.Helper()
	s := &fake{tell: tell}
	s.listen(t, netip.MustParseAddrPort("127.0.0.1:0"))
	return s
}

// listen serves UDP and TCP on one port until the test ends.
func (s *fake) listen(t testing.TB, at netip.AddrPort) (stop func()) {
	t.Helper()
	for range 50 {
		packets, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
		if err != nil {
			t.Fatal(err)
		}
		s.addr = packets.LocalAddr().(*net.UDPAddr).AddrPort()
		l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(s.addr))
		if err != nil {
			_ = packets.Close()
			continue
		}
		return serve(t, &dns.Server{PacketConn: packets, Handler: s}, &dns.Server{Listener: countingListener{l, &s.conns}, Handler: s})
	}
	t.Fatal("no port is free for both UDP and TCP")
	return nil
}

func serve(t testing.TB, servers ...*dns.Server) (stop func()) {
	t.Helper()
	var wg sync.WaitGroup
	for _, server := range servers {
		started := make(chan struct{})
		server.NotifyStartedFunc = func() { close(started) }
		server.MsgAcceptFunc = func(dns.Header) dns.MsgAcceptAction { return dns.MsgAccept }
		wg.Go(func() { _ = server.ActivateAndServe() })
		<-started
	}
	stop = sync.OnceFunc(func() {
		for _, server := range servers {
			_ = server.Shutdown()
		}
		wg.Wait()
	})
	t.Cleanup(stop)
	return stop
}

// records answers with these, written as in a zone file.
func records(t testing.TB, lines ...string) teller {
	t.Helper()
	var rrs []dns.RR
	for _, line := range lines {
		rrs = append(rrs, record(t, line))
	}
	return func(r *dns.Msg) *dns.Msg {
		m := new(dns.Msg).SetReply(r)
		m.RecursionAvailable = true
		for _, rr := range rrs {
			m.Answer = append(m.Answer, dns.Copy(rr))
		}
		return m
	}
}

// negative answers with an RCODE and this in the authority section.
func negative(t testing.TB, rcode int, lines ...string) teller {
	t.Helper()
	var rrs []dns.RR
	for _, line := range lines {
		rrs = append(rrs, record(t, line))
	}
	return func(r *dns.Msg) *dns.Msg {
		m := new(dns.Msg).SetRcode(r, rcode)
		m.Ns = append(m.Ns, rrs...)
		return m
	}
}

func silence(*dns.Msg) *dns.Msg { return nil }

func record(t testing.TB, line string) dns.RR {
	t.Helper()
	rr, err := dns.NewRR(line)
	if err != nil || rr == nil {
		t.Fatalf("%s: %v", line, err)
	}
	return rr
}

// A clock is set by the test.
type clock struct{ passed atomic.Int64 }

func (c *clock) now() time.Time { return time.Unix(1_000_000, 0).Add(time.Duration(c.passed.Load())) }

func (c *clock) pass(d time.Duration) { c.passed.Add(int64(d)) }

// start makes a Forwarder; the upstreams are those of ".".
func start(t testing.TB, o Options, upstreams ...Upstream) *Forwarder {
	t.Helper()
	if o.Upstreams == nil {
		o.Upstreams = map[string][]Upstream{".": upstreams}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	o.Timeout = patient
	f, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	f.patience = [2]time.Duration{patient, patient} // a busy machine is no reason to ask twice
	t.Cleanup(func() { end(f) })
	return f
}

// end ends what a Forwarder does that is not run.
func end(f *Forwarder) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_ = f.Run(ctx)
}

// run has it watch its upstreams until the test ends.
func run(t testing.TB, f *Forwarder) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// ask makes a query as it comes from a client.
func ask(t testing.TB, name string, rtype uint16, options ...func(*dns.Msg)) *wire.Query {
	t.Helper()
	m := new(dns.Msg).SetQuestion(name, rtype)
	m.SetEdns0(4096, false)
	for _, option := range options {
		option(m)
	}
	packet, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	q := new(wire.Query)
	if rcode, ok := q.Parse(packet); rcode != 0 || !ok {
		t.Fatalf("%s: rcode %d", name, rcode)
	}
	return q
}

func withDNSSEC(m *dns.Msg) { m.IsEdns0().SetDo() }

// resolve is what a server does: from the cache or from upstreams.
func resolve(t testing.TB, f *Forwarder, q *wire.Query) *Answer {
	t.Helper()
	if a, ok := f.Lookup(q, f.o.Clock()); ok {
		return a
	}
	ctx, cancel := context.WithTimeout(t.Context(), patient)
	defer cancel()
	a, err := f.Resolve(ctx, q)
	if err != nil {
		t.Fatalf("resolve %s: %v", wire.NameString(q.Name), err)
	}
	return a
}

// respond is the message that a client gets.
func respond(t testing.TB, a *Answer, q *wire.Query, now time.Time) *dns.Msg {
	t.Helper()
	var r wire.Response
	r.Begin(make([]byte, 0, dns.MaxMsgSize), q, dns.MaxMsgSize, 1232)
	a.Append(&r, wire.QuestionAt, now)
	r.SetRCode(a.RCode())
	return unpack(t, r.Finish())
}

func unpack(t testing.TB, packet []byte) *dns.Msg {
	t.Helper()
	m := new(dns.Msg)
	if err := m.Unpack(packet); err != nil {
		t.Fatalf("%v in %x", err, packet)
	}
	return m
}

// text is a message as dig writes its records, one space between fields.
func text(m *dns.Msg) string {
	var lines []string
	if m.Rcode != dns.RcodeSuccess {
		lines = append(lines, dns.RcodeToString[m.Rcode])
	}
	for _, rr := range m.Answer {
		lines = append(lines, strings.Join(strings.Fields(rr.String()), " "))
	}
	for _, rr := range m.Ns {
		lines = append(lines, "authority: "+strings.Join(strings.Fields(rr.String()), " "))
	}
	return strings.Join(lines, "\n")
}

// want asks and compares what the client reads.
func want(t testing.TB, f *Forwarder, q *wire.Query, lines ...string) {
	t.Helper()
	got := text(respond(t, resolve(t, f, q), q, f.o.Clock()))
	if expected := strings.Join(lines, "\n"); got != expected {
		t.Errorf("%s: got\n%s\nwant\n%s", wire.NameString(q.Name), got, expected)
	}
}

func await(t testing.TB, what string, cond func() bool) {
	t.Helper()
	testkit.Await(t, patient, func() error {
		if !cond() {
			return errors.New(what)
		}
		return nil
	})
}
