package forward

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// upper is the question with its name in upper case, so that its letter case is not ours.
func upper(r *dns.Msg) *dns.Msg {
	r.Question[0].Name = strings.ToUpper(r.Question[0].Name)
	return r
}

func manyRecords(r *dns.Msg) *dns.Msg {
	m := new(dns.Msg).SetReply(r)
	for i := range 200 {
		m.Answer = append(m.Answer, &dns.A{
			Hdr: dns.RR_Header{Name: r.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60}, A: net.IPv4(10, 0, 0, byte(i)),
		})
	}
	return m
}

func TestLongAnswersComeOverTCP(t *testing.T) {
	up := newFake(t, nil)
	up.say(manyRecords)
	f := start(t, Options{}, up.upstream())
	for i := range 5 { // connections are used again
		q := ask(t, fmt.Sprintf("many%d.example.", i), dns.TypeA)
		if m := respond(t, resolve(t, f, q), q, time.Now()); len(m.Answer) != 200 {
			t.Fatalf("%d records, want 200", len(m.Answer))
		}
	}
	if n := up.conns.Load(); n != 1 {
		t.Errorf("%d connections for 5 questions, want 1", n)
	}
	if n := f.Upstreams()[0].Metrics.Truncated.Load(); n != 5 {
		t.Errorf("%d truncated answers are counted, want 5", n)
	}
}

func TestAConnectionThatEndedIsMadeAgain(t *testing.T) {
	up := newFake(t, nil)
	up.say(manyRecords)
	f := start(t, Options{}, up.upstream())
	resolve(t, f, ask(t, "a.example.", dns.TypeA))
	u := f.upstreams[0]
	u.streams.mu.Lock()
	first := u.streams.open[0]
	u.streams.mu.Unlock()
	_ = first.conn.(*net.TCPConn).CloseWrite() // the server hangs up then
	<-first.over
	if a := resolve(t, f, ask(t, "b.example.", dns.TypeA)); a.RCode() != dns.RcodeSuccess || a.counts[0] != 200 {
		t.Errorf("rcode %d with %d records", a.RCode(), a.counts[0])
	}
	if n := up.conns.Load(); n != 2 {
		t.Errorf("%d connections, want 2", n)
	}
}

// TestAConnectionThatEndsUnderAQuestion hangs up instead of answering the second one, as a server may that thought nobody would ask.
func TestAConnectionThatEndsUnderAQuestion(t *testing.T) {
	var questions atomic.Int64
	s := new(fake)
	up := serveTLS(t, s, dns.HandlerFunc(func(w dns.ResponseWriter, r *dns.Msg) {
		if questions.Add(1) == 2 {
			_ = w.Close()
			return
		}
		_ = w.WriteMsg(records(t, r.Question[0].Name+" 60 IN A 10.0.0.1")(r))
	}), certificate(t, "dns.test"))
	f := start(t, Options{RootCAs: up.roots}, up.upstream)
	for _, name := range []string{"a.example.", "b.example."} {
		want(t, f, ask(t, name, dns.TypeA), name+" 60 IN A 10.0.0.1")
	}
	if n, failures := s.conns.Load(), f.Upstreams()[0].Metrics.Failures.Load(); n != 2 || failures != 0 {
		t.Errorf("%d connections and %d failures, want 2 and 0", n, failures)
	}
}

func TestManyQuestionsShareConnections(t *testing.T) {
	const questions = 200
	var mu sync.Mutex
	var held []func()
	s := &fake{}
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, r *dns.Msg) {
		m := records(t, r.Question[0].Name+" 60 IN TXT "+r.Question[0].Name)(r)
		mu.Lock()
		defer mu.Unlock()
		if held = append(held, func() { _ = w.WriteMsg(m) }); len(held) == questions {
			for i := range held { // the last one first
				held[len(held)-1-i]()
			}
		}
	})
	up := serveTLS(t, s, handler, certificate(t, "dns.test"))
	f := start(t, Options{RootCAs: up.roots}, up.upstream)
	var wg sync.WaitGroup
	for i := range questions {
		wg.Go(func() {
			name := fmt.Sprintf("n%d.example.", i)
			m, err := f.upstreams[0].exchange(t.Context(), newQuestion([]byte(fmt.Sprintf("%c%s\x07example\x00", len(name)-9, name[:len(name)-9])), dns.TypeTXT))
			if err != nil || len(m.Answer) != 1 || m.Answer[0].(*dns.TXT).Txt[0] != name {
				t.Errorf("%s: %v, %v", name, m, err)
			}
		})
	}
	wg.Wait()
	if n := s.conns.Load(); n < 1 || n > maxStreams {
		t.Errorf("%d connections for %d questions, want at most %d", n, questions, maxStreams)
	}
}

// TestForgedPacketsAreIgnored sends what a forger would before what is right.
func TestForgedPacketsAreIgnored(t *testing.T) {
	socket, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	t.Cleanup(func() { _ = socket.Close(); wg.Wait() })
	wg.Go(func() {
		buf := make([]byte, 4096)
		for {
			n, from, err := socket.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			r := new(dns.Msg)
			if err := r.Unpack(buf[:n]); err != nil {
				t.Error(err)
				continue
			}
			send := func(addr string, change func(*dns.Msg)) {
				m := records(t, r.Question[0].Name+" 60 IN A "+addr)(r)
				m.Question = append([]dns.Question(nil), r.Question...)
				change(m)
				packet, err := m.Pack()
				if err != nil {
					t.Error(err)
				}
				_, _ = socket.WriteToUDPAddrPort(packet, from)
			}
			send("6.6.6.1", func(m *dns.Msg) { m.Id++ })
			send("6.6.6.2", func(m *dns.Msg) { m.Question[0].Name = "other.example." })
			send("6.6.6.3", func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeAAAA })
			send("6.6.6.4", func(m *dns.Msg) { m.Response = false })
			send("6.6.6.5", func(m *dns.Msg) { m.Question = nil })
			packet, _ := records(t, r.Question[0].Name+" 60 IN A 6.6.6.6")(r).Pack()
			_, _ = socket.WriteToUDPAddrPort(packet[:len(packet)-2], from)
			_, _ = socket.WriteToUDPAddrPort(packet[:5], from)
			if other, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(from)); err == nil { // the right packet from another port
				_, _ = other.Write(packet)
				_ = other.Close()
			}
			send("10.0.0.1", func(*dns.Msg) {})
		}
	})
	f := start(t, Options{}, Upstream{Addr: socket.LocalAddr().(*net.UDPAddr).AddrPort()})
	want(t, f, ask(t, "www.example.", dns.TypeA), "www.example. 60 IN A 10.0.0.1")
	m := f.Upstreams()[0].Metrics
	if wrong, malformed := m.Wrong.Load(), m.Malformed.Load(); wrong != 6 || malformed != 1 {
		t.Errorf("%d wrong and %d malformed packets are counted, want 6 and 1", wrong, malformed)
	}
}

func TestLetterCaseThatIsNotRepeated(t *testing.T) {
	up := newFake(t, nil)
	up.say(func(r *dns.Msg) *dns.Msg {
		return records(t, r.Question[0].Name+" 60 IN A 10.0.0.1")(upper(r))
	})
	f := start(t, Options{}, up.upstream())
	const name = "a-name-with-many-letters.so-that-chance-is-no-matter.example."
	want(t, f, ask(t, name, dns.TypeA), name+" 60 IN A 10.0.0.1")
	if udp, tcp := up.udp.Load(), up.tcp.Load(); udp != 1 || tcp != 1 {
		t.Errorf("%d questions over UDP and %d over TCP, want 1 and 1", udp, tcp)
	}
	if f.upstreams[0].mixes() {
		t.Error("an upstream that never repeated the letter case is asked in mixed case again")
	}

	// One that repeated it once is believed to do so: one answer that does not is somebody else's.
	up.say(func(r *dns.Msg) *dns.Msg { return records(t, r.Question[0].Name+" 60 IN A 10.0.0.1")(r) })
	f.upstreams[0].recased.Store(0)
	resolve(t, f, ask(t, "b."+name, dns.TypeA))
	up.say(func(r *dns.Msg) *dns.Msg { return records(t, r.Question[0].Name+" 60 IN A 10.0.0.1")(upper(r)) })
	for i := range maxRecased {
		if !f.upstreams[0].mixes() {
			t.Fatalf("after %d answers in other letter case it is not asked in mixed case", i)
		}
		resolve(t, f, ask(t, fmt.Sprintf("c%d.%s", i, name), dns.TypeA))
	}
	if f.upstreams[0].mixes() {
		t.Errorf("after %d answers in other letter case it is still asked in mixed case", maxRecased)
	}
}

func TestManyForgedPacketsLeadToTCP(t *testing.T) {
	up := newFake(t, records(t, "www.example. 60 IN A 10.0.0.1"))
	up.mu.Lock()
	up.noise = 2 * maxWrong
	up.mu.Unlock()
	f := start(t, Options{}, up.upstream())
	want(t, f, ask(t, "www.example.", dns.TypeA), "www.example. 60 IN A 10.0.0.1")
	if n := up.tcp.Load(); n != 1 {
		t.Errorf("%d questions over TCP, want 1", n)
	}
}

func TestIdleConnectionsAreClosed(t *testing.T) {
	up := newFake(t, manyRecords)
	f := start(t, Options{}, up.upstream())
	c := f.upstreams[0].streams
	c.idle = 200 * time.Millisecond
	for i := range 2 {
		resolve(t, f, ask(t, fmt.Sprintf("n%d.example.", i), dns.TypeA))
		await(t, "the connection is open", func() bool {
			c.mu.Lock()
			defer c.mu.Unlock()
			return len(c.open) == 0
		})
	}
	if n := up.conns.Load(); n != 2 {
		t.Errorf("%d connections, want 2", n)
	}
}

// TestBadStreams has upstreams over TCP that do what they should not.
func TestBadStreams(t *testing.T) {
	cases := map[string]func(net.Conn, []byte){ // what is done with a query
		"hang up":        func(net.Conn, []byte) {},
		"answer half":    func(c net.Conn, q []byte) { _, _ = c.Write(append([]byte{0xff, 0xff}, q...)) },
		"empty messages": func(c net.Conn, _ []byte) { _, _ = c.Write(make([]byte, 1000)) },
		"no message":     func(c net.Conn, q []byte) { _, _ = c.Write(append([]byte{0, byte(len(q))}, bad(q)...)) },
		"another's answer": func(c net.Conn, q []byte) {
			q[0]++
			_, _ = c.Write(append([]byte{0, byte(len(q))}, q...))
		},
	}
	for name, do := range cases {
		t.Run(name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			var wg sync.WaitGroup
			t.Cleanup(func() { _ = l.Close(); wg.Wait() })
			wg.Go(func() {
				for {
					conn, err := l.Accept()
					if err != nil {
						return
					}
					buf := make([]byte, 2+512)
					if n, err := conn.Read(buf); err == nil && n > 2 {
						do(conn, buf[2:n])
					}
					_ = conn.Close()
				}
			})
			f := start(t, Options{}, Upstream{Addr: l.Addr().(*net.TCPAddr).AddrPort()})
			f.upstreams[0].exchange = f.upstreams[0].overStream
			for i := range 3 {
				want(t, f, ask(t, fmt.Sprintf("n%d.example.", i), dns.TypeA), "SERVFAIL")
			}
		})
	}
}

// bad makes an answer of a query that says of more records than there are.
func bad(q []byte) []byte {
	q[2] |= 0x80
	q[7] = 200
	return q
}

// TestTheEndWaitsForNobody has an upstream that takes connections and never says anything.
func TestTheEndWaitsForNobody(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	addr := l.Addr().(*net.TCPAddr).AddrPort()
	for _, u := range []Upstream{{Addr: addr}, {Addr: addr, TLS: true}} {
		f := start(t, Options{}, u)
		f.upstreams[0].exchange = f.upstreams[0].overStream
		asked := make(chan error)
		go func() {
			_, err := f.Resolve(t.Context(), ask(t, "www.example.", dns.TypeA))
			asked <- err
		}()
		await(t, "nobody asks", func() bool { return f.upstreams[0].metrics.Questions.Load() == 1 })
		began := time.Now()
		end(f)
		if err := <-asked; !errors.Is(err, ErrClosed) {
			t.Errorf("%s: %v, want %v", u, err, ErrClosed)
		}
		if took := time.Since(began); took > streamDial {
			t.Errorf("%s: the end took %v", u, took)
		}
	}
}

func TestUpstreamsWithoutEDNS(t *testing.T) {
	up := newFake(t, func(r *dns.Msg) *dns.Msg {
		if r.IsEdns0() != nil {
			m := new(dns.Msg).SetRcode(r, dns.RcodeFormatError)
			m.Question = nil
			return m
		}
		return records(t, r.Question[0].Name+" 60 IN A 10.0.0.1")(r)
	})
	f := start(t, Options{}, up.upstream())
	want(t, f, ask(t, "a.example.", dns.TypeA), "a.example. 60 IN A 10.0.0.1")
	want(t, f, ask(t, "b.example.", dns.TypeA), "b.example. 60 IN A 10.0.0.1")
	if n := up.udp.Load(); n != 3 {
		t.Errorf("%d packets for two questions, want 3", n)
	}
}

func TestARefusedPortIsDownAtOnceAndComesBack(t *testing.T) {
	gone := &fake{}
	random := mathrand.Uint32()
	nobodys := netip.AddrFrom4([4]byte{127, byte(1 + random%250), byte(random >> 8), byte(1 + (random>>16)%250)}) // so that no other test takes the port
	gone.listen(t, netip.AddrPortFrom(nobodys, 0))()
	f := start(t, Options{}, gone.upstream())
	c := new(clock)
	f.o.Clock = c.now
	for i := range failsDown {
		c.pass(failureTTL)
		want(t, f, ask(t, fmt.Sprintf("n%d.example.", i), dns.TypeA), "SERVFAIL")
	}
	if f.Upstreams()[0].Healthy {
		t.Fatal("an upstream whose port is closed is healthy")
	}
	run(t, f)
	gone.say(records(t, "www.example. 60 IN A 10.0.0.1"))
	gone.listen(t, gone.addr)
	await(t, "it is back and not healthy", func() bool { return f.Upstreams()[0].Healthy })
	want(t, f, ask(t, "www.example.", dns.TypeA), "www.example. 60 IN A 10.0.0.1")
}

// A tlsUpstream is one with the authority that its certificate is of.
type tlsUpstream struct {
	upstream Upstream
	roots    *x509.CertPool
}

func serveTLS(t *testing.T, s *fake, handler dns.Handler, cert tls.Certificate) tlsUpstream {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	config := &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
	serve(t, &dns.Server{Listener: tls.NewListener(countingListener{l, &s.conns}, config), Handler: handler})
	roots := x509.NewCertPool()
	roots.AddCert(cert.Leaf)
	return tlsUpstream{Upstream{Addr: l.Addr().(*net.TCPAddr).AddrPort(), TLS: true, ServerName: "dns.test"}, roots}
}

// certificate is one that signs itself, for a name and for 127.0.0.1.
func certificate(t *testing.T, name string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

func TestTLS(t *testing.T) {
	s := &fake{}
	var lengths sync.Map
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, r *dns.Msg) {
		lengths.Store(r.Len()%padTo, true)
		_ = w.WriteMsg(records(t, r.Question[0].Name+" 60 IN A 10.0.0.1")(r))
	})
	up := serveTLS(t, s, handler, certificate(t, "dns.test"))
	withName := func(name string) Upstream {
		u := up.upstream
		u.ServerName = name
		return u
	}
	cases := []struct {
		name     string
		upstream Upstream
		roots    *x509.CertPool
		want     string
	}{
		{"right name", up.upstream, up.roots, "www.example. 60 IN A 10.0.0.1"},
		{"by address", withName(""), up.roots, "www.example. 60 IN A 10.0.0.1"},
		{"another name", withName("other.test"), up.roots, "SERVFAIL"},
		{"unknown authority", up.upstream, x509.NewCertPool(), "SERVFAIL"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			f := start(t, Options{RootCAs: c.roots}, c.upstream)
			want(t, f, ask(t, "www.example.", dns.TypeA), c.want)
		})
	}
	lengths.Range(func(rest, _ any) bool {
		if rest != 0 {
			t.Errorf("the length of a query over TLS is no multiple of %d", padTo)
		}
		return true
	})
}
