package app

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/endpointd/endpointd/internal/controller/nodedns"
	"github.com/endpointd/endpointd/internal/fdstore"
	"github.com/endpointd/endpointd/internal/node/register"
	"github.com/endpointd/endpointd/internal/testkit"
)

// sent is a question to a server that may not run yet.
func sent(t *testing.T, server netip.AddrPort) *dns.Conn {
	t.Helper()
	conn, err := net.Dial("udp", server.String())
	check(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	check(t, conn.SetDeadline(time.Now().Add(askPatience)))
	c := &dns.Conn{Conn: conn}
	check(t, c.WriteMsg(new(dns.Msg).SetQuestion("web.default.svc.cluster.local.", dns.TypeA)))
	return c
}

// keptSockets are a UDP socket and a TCP listener of a run that has ended.
func keptSockets(t *testing.T) (addr netip.AddrPort, files []*os.File) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	conn, err := (&net.ListenConfig{}).ListenPacket(t.Context(), "udp", l.Addr().String())
	check(t, err)
	for _, s := range []interface{ File() (*os.File, error) }{l.(*net.TCPListener), conn.(*net.UDPConn)} {
		f, err := s.File()
		check(t, err)
		files = append(files, f)
	}
	check(t, l.Close())
	check(t, conn.Close())
	return netip.MustParseAddrPort(l.Addr().String()), files
}

// heirOf is a DNS server that has the sockets of a run that has ended, and a question that was asked before it runs.
func heirOf(t *testing.T, patience time.Duration) (*names, *dns.Conn) {
	t.Helper()
	addr, files := keptSockets(t)
	question := sent(t, addr)
	n := namesOf(t, func(o *namesOptions) { o.Listen, o.kept = []netip.AddrPort{addr}, fdstore.Given(keptNames, files...) })
	n.patience = patience
	return n, question
}

// What was asked while nobody ran waits for the first Snapshot, and is answered from it.
func TestNamesInherited(t *testing.T) {
	t.Parallel()
	n, question := heirOf(t, time.Hour)
	start(t, n)
	check(t, question.SetReadDeadline(time.Now().Add(100*time.Millisecond)))
	if answer, err := question.ReadMsg(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("before there is a Snapshot: %v %v", answer, err)
	}
	n.set(snapshotOf(t, webAndPeers))
	check(t, question.SetReadDeadline(time.Now().Add(askPatience)))
	answer, err := question.ReadMsg()
	check(t, err)
	if answer.Rcode != dns.RcodeSuccess || len(answer.Answer) != 1 {
		t.Errorf("answered %v", answer)
	}
}

// If there is no Snapshot, it does not wait for ever: the client is told.
func TestNamesInheritedNothing(t *testing.T) {
	t.Parallel()
	n, question := heirOf(t, time.Millisecond)
	start(t, n)
	answer, err := question.ReadMsg()
	check(t, err)
	if answer.Rcode != dns.RcodeServerFailure {
		t.Errorf("answered %v", answer)
	}
}

// Nor does the end of the program wait.
func TestNamesInheritedEnd(t *testing.T) {
	t.Parallel()
	n, _ := heirOf(t, time.Hour)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	check(t, n.run(ctx))
}

// The Node tells of the DNS server from the beginning if an earlier one's sockets are there, and of a new one when it answers.
func TestNodeInheritsNames(t *testing.T) {
	t.Parallel()
	snapshot := snapshotOf(t, webAndPeers)
	port := func(addr netip.AddrPort) string { return strconv.Itoa(int(addr.Port())) }
	old, files := keptSockets(t)
	_, others := keptSockets(t)
	pid := os.Getpid()
	fresh := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 77, byte(pid >> 8), byte(pid)}), 20053) // nobody else's, and never given for port 0
	for _, c := range []struct {
		name                  string
		kept                  []*os.File
		listen                netip.AddrPort
		first, made, answered string
	}{
		{"the same port", files, old, port(old), port(old), port(old)},
		{"another port", others, fresh, port(fresh), "", port(fresh)},
		{"nothing kept", nil, fresh, "", "", port(fresh)},
	} {
		a := &agent{plane: planeOf(t), registry: &register.Registration{}, kept: fdstore.Given(keptNames, c.kept...), o: NodeOptions{
			Addrs: []netip.Addr{c.listen.Addr()}, DNSPort: c.listen.Port(), Domain: "cluster.local",
			Names: NamesOptions{ResolvConf: resolvConf(t, "")}, Logger: slog.New(slog.DiscardHandler),
		}}
		var got []string
		note := func() { got = append(got, a.annotations()[nodedns.Annotation]) }
		a.expectNames()
		note()
		testkit.Await(t, askPatience, func() error { // a child of another test may have the last one's socket until it executes
			a.makeNames(t.Context())
			if a.names == nil {
				return a.noNames
			}
			return nil
		})
		note()
		a.setNames(snapshot)
		note()
		a.names.server.Close()
		if want := []string{c.first, c.made, c.answered}; !slices.Equal(got, want) {
			t.Errorf("%s: the Node tells of the ports %q, want %q", c.name, got, want)
		}
	}
	a := &agent{kept: fdstore.Given(keptNames, nil)}
	if a.expectNames(); a.annotations()[nodedns.Annotation] != "" {
		t.Error("the Node tells of a DNS server that there is not to be")
	}
}
