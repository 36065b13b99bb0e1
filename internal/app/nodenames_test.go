package app

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/endpointd/endpointd/internal/controller/nodedns"
	"github.com/endpointd/endpointd/internal/fdstore"
	"github.com/endpointd/endpointd/internal/node/watch"
)

func podAt(namespace, uid string, phase corev1.PodPhase, addrs ...string) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: uid, UID: types.UID(uid)}, Status: corev1.PodStatus{Phase: phase}}
	for _, a := range addrs {
		p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: a})
	}
	return p
}

func TestOwnPods(t *testing.T) {
	t.Parallel()
	var own ownPods
	wants := func(when string, want ...string) {
		t.Helper()
		var got []string
		for _, text := range []string{"10.244.1.2", "10.244.1.3", "fd00:244:1::2", "192.0.2.1"} {
			if namespace, ok := own.namespace(netip.MustParseAddr(text)); ok {
				got = append(got, text+" "+namespace)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", when, got, want)
		}
	}
	wants("at first")
	pending := podAt("a", "one", corev1.PodPending)
	own.changed(nil, pending)
	wants("a pod without an address")
	one := podAt("a", "one", corev1.PodRunning, "10.244.1.2", "fd00:244:1::2", "nonsense")
	own.changed(pending, one)
	wants("it has two", "10.244.1.2 a", "fd00:244:1::2 a")
	moved := podAt("a", "one", corev1.PodRunning, "10.244.1.3")
	own.changed(one, moved)
	wants("another one", "10.244.1.3 a")
	own.changed(moved, one)
	wants("the first ones again", "10.244.1.2 a", "fd00:244:1::2 a")

	ended := podAt("a", "one", corev1.PodSucceeded, "10.244.1.2", "fd00:244:1::2")
	own.changed(one, ended)
	wants("it has ended")
	own.changed(ended, nil)
	wants("it is gone")
	own.changed(nil, podAt("a", "failed", corev1.PodFailed, "10.244.1.2"))
	wants("another one that has ended before it was seen")

	// An address goes from one pod to the next, and the API tells of the second first.
	own.changed(nil, one)
	next := podAt("b", "two", corev1.PodRunning, "10.244.1.2")
	own.changed(nil, next)
	wants("taken over", "10.244.1.2 b", "fd00:244:1::2 a")
	own.changed(one, nil)
	wants("the one that had it is gone", "10.244.1.2 b")
	own.changed(next, nil)
	wants("both are gone")

	host := podAt("a", "host", corev1.PodRunning, "192.0.2.1")
	host.Spec.HostNetwork = true
	own.changed(nil, host)
	wants("on the node's network")
	own.changed(host, nil)
	wants("and gone")
}

// nodesStore is what an agent knows of Nodes.
func nodesStore(t *testing.T, nodes ...*corev1.Node) *watch.Store[*corev1.Node] {
	t.Helper()
	client := fake.NewClientset()
	for _, n := range nodes {
		check(t, client.Tracker().Add(n))
	}
	store := watch.New(watch.Options[*corev1.Node]{Name: "nodes", Source: watch.From(client.CoreV1().Nodes()), ListFirst: true})
	ctx, cancel := context.WithCancel(t.Context())
	var work sync.WaitGroup
	work.Go(func() { _ = store.Run(ctx) })
	t.Cleanup(func() { cancel(); work.Wait() })
	select {
	case <-store.Synced():
	case <-time.After(askPatience):
		t.Fatal("the nodes were not listed")
	}
	return store
}

// Whether another node has a pod with an address is asked of the DNS server there, over real sockets.
func TestPodsOfOtherNodes(t *testing.T) {
	t.Parallel()
	var theirs ownPods
	theirs.changed(nil, podAt("a", "there", corev1.PodRunning, "10.244.2.2", "fd00:244:2::2"))
	other := runNames(t, func(o *namesOptions) {
		o.namespace = theirs.namespace
		o.podExists = func(_ context.Context, namespace string, addr netip.Addr) (bool, error) {
			got, ok := theirs.namespace(addr)
			return ok && got == namespace, nil
		}
	})
	other.set(snapshotOf(t, webAndPeers))
	at := other.server.Addrs()[0]
	member := func(name, addr, port string, ranges ...string) *corev1.Node {
		n := nodeAt(name, addr)
		n.Spec.PodCIDRs = ranges
		if port != "" {
			n.Annotations = map[string]string{nodedns.Annotation: port}
		}
		return n
	}
	closed, err := net.ListenPacket("udp", "127.0.0.1:0") // says nothing
	check(t, err)
	defer closed.Close() //nolint:errcheck // a test
	a := &agent{o: NodeOptions{Name: "n", Domain: "cluster.local", PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24")}}}
	a.own.changed(nil, podAt("a", "here", corev1.PodRunning, "10.244.1.2"))
	a.nodes = nodesStore(t,
		member("n", "127.0.0.1", strconv.Itoa(int(at.Port())), "10.244.1.0/24"),
		member("m", "127.0.0.1", strconv.Itoa(int(at.Port())), "10.244.2.0/24", "fd00:244:2::/64"),
		member("silent", "127.0.0.1", strconv.Itoa(closed.LocalAddr().(*net.UDPAddr).Port), "10.244.3.0/24"),
		member("without", "127.0.0.1", "", "10.244.4.0/24"),
		nodeAt("unknown"),
	)
	for _, test := range []struct {
		namespace, addr string
		want            bool
	}{
		{"a", "10.244.1.2", true}, {"b", "10.244.1.2", false}, // our own, which nobody is asked about
		{"a", "10.244.1.3", false},
		{"a", "10.244.2.2", true}, {"b", "10.244.2.2", false}, {"a", "10.244.2.3", false},
		{"a", "fd00:244:2::2", true}, {"a", "fd00:244:2::3", false},
		{"a", "10.244.4.2", false}, {"a", "192.0.2.7", false}, // nobody can be asked
	} {
		got, err := a.podExists(t.Context(), test.namespace, netip.MustParseAddr(test.addr))
		if err != nil || got != test.want {
			t.Errorf("pod %s in %s: %v, %v; want %v", test.addr, test.namespace, got, err, test.want)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := a.podExists(ctx, "a", netip.MustParseAddr("10.244.3.2")); err == nil || !strings.Contains(err.Error(), "ask 127.0.0.1 for a pod with 10.244.3.2") {
		t.Errorf("a node that is silent: %v", err)
	}

	// The whole way: a client asks this node, which asks the other one.
	ours := runNames(t, func(o *namesOptions) { o.podExists, o.namespace = a.podExists, a.own.namespace })
	ours.set(snapshotOf(t, webAndPeers))
	for name, want := range map[string]string{
		"10-244-2-2.a.pod.cluster.local.": "NOERROR 10.244.2.2", "10-244-2-3.a.pod.cluster.local.": "NXDOMAIN", "10-244-1-2.a.pod.cluster.local.": "NOERROR 10.244.1.2",
		"10-244-2-9.default.pod.cluster.local.": "NOERROR 10.244.2.9", // which endpoints tell of
	} {
		if got := lookup(t, ours.server.Addrs()[0], name, dns.TypeA); got != want {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
	}
	if got := lookup(t, ours.server.Addrs()[0], "fd00-244-2--2.a.pod.cluster.local.", dns.TypeAAAA); got != "NOERROR fd00:244:2::2" {
		t.Errorf("by IPv6: %s", got)
	}
}

// fakeServer answers each question as it is told, on loopback.
func fakeServer(t *testing.T, answer func(*dns.Msg) *dns.Msg) (port string) {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	check(t, err)
	started := make(chan struct{})
	server := &dns.Server{PacketConn: conn, NotifyStartedFunc: func() { close(started) }, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		_ = w.WriteMsg(answer(q)) // the client would say
	})}
	var work sync.WaitGroup
	work.Go(func() { _ = server.ActivateAndServe() })
	<-started
	t.Cleanup(func() { _ = server.Shutdown(); work.Wait() })
	return strconv.Itoa(conn.LocalAddr().(*net.UDPAddr).Port)
}

// What another node's server says is taken for what it means, and no more.
func TestAskForPod(t *testing.T) {
	t.Parallel()
	addr := netip.MustParseAddr("10.244.2.2")
	says := func(rcode int, records ...string) func(*dns.Msg) *dns.Msg {
		return func(q *dns.Msg) *dns.Msg {
			m := new(dns.Msg).SetRcode(q, rcode)
			for _, text := range records {
				rr, err := dns.NewRR(q.Question[0].Name + " 5 IN " + text)
				if err != nil {
					panic(err) // a fault of this test
				}
				m.Answer = append(m.Answer, rr)
			}
			return m
		}
	}
	for _, test := range []struct {
		name   string
		answer func(*dns.Msg) *dns.Msg
		want   string
	}{
		{"it is there", says(dns.RcodeSuccess, "A 10.244.2.2"), "true <nil>"},
		{"it is not", says(dns.RcodeNameError), "false <nil>"},
		{"the name is, without that type", says(dns.RcodeSuccess), "false <nil>"},
		{"another type", says(dns.RcodeSuccess, "TXT x"), "false <nil>"},
		{"it knows nothing yet", says(dns.RcodeServerFailure), "false ask 127.0.0.1 for a pod with 10.244.2.2: the answer is SERVFAIL"},
		{"we may not ask", says(dns.RcodeRefused), "false ask 127.0.0.1 for a pod with 10.244.2.2: the answer is REFUSED"},
	} {
		asked := ""
		var mu sync.Mutex
		port := fakeServer(t, func(q *dns.Msg) *dns.Msg {
			mu.Lock()
			asked = fmt.Sprint(q.Question[0].Name, " ", dns.TypeToString[q.Question[0].Qtype], " ", q.RecursionDesired)
			mu.Unlock()
			return test.answer(q)
		})
		exists, err := askForPod(t.Context(), "127.0.0.1", port, "a", "cluster.local", addr)
		if got := fmt.Sprint(exists, " ", err); got != test.want {
			t.Errorf("%s: %s, want %s", test.name, got, test.want)
		}
		mu.Lock()
		if want := "10-244-2-2.a.pod.cluster.local. A false"; asked != want {
			t.Errorf("asked for %s, want %s", asked, want)
		}
		mu.Unlock()
	}
	// The zero that CoreDNS writes behind a dash at the end is what the other server's zone reads.
	asked := make(chan string, 1)
	port := fakeServer(t, func(q *dns.Msg) *dns.Msg {
		asked <- q.Question[0].Name
		return new(dns.Msg).SetRcode(q, dns.RcodeNameError)
	})
	if _, err := askForPod(t.Context(), "127.0.0.1", port, "a", "cluster.local", netip.MustParseAddr("fd00:244:2::")); err != nil {
		t.Error(err)
	}
	if got, want := <-asked, "fd00-244-2--0.a.pod.cluster.local."; got != want {
		t.Errorf("asked for %s, want %s", got, want)
	}
}

// That another program has the port costs the node its DNS server and no more, and whoever looks for the reason finds it.
func TestDNSPortIsTaken(t *testing.T) {
	t.Parallel()
	taken, err := net.ListenPacket("udp", "127.0.0.1:0")
	check(t, err)
	defer taken.Close() //nolint:errcheck // a test
	var said lockedText
	a := &agent{plane: planeOf(t), kept: &fdstore.Keeper{}, o: NodeOptions{
		Addrs: []netip.Addr{netip.MustParseAddr("127.0.0.1")}, DNSPort: uint16(taken.LocalAddr().(*net.UDPAddr).Port), Domain: "cluster.local",
		Names: NamesOptions{ResolvConf: resolvConf(t, "")}, Logger: slog.New(slog.NewTextHandler(&said, nil)),
	}}
	a.makeNames(t.Context())
	if a.names != nil || !strings.Contains(said.String(), "--dns-port") || !strings.Contains(said.String(), "address already in use") {
		t.Errorf("names %v, said %s", a.names, &said)
	}
	a.setNames(snapshotOf(t, webAndPeers)) // which nobody hears
	if got := a.annotations()[nodedns.Annotation]; got != "" {
		t.Errorf("the Node says that a DNS server is at %q", got)
	}
	st := debugNames{a.names, a.noNames}.status()
	if st == nil || len(st.Problems) != 1 || !strings.Contains(st.Problems[0], "address already in use; --dns-port chooses another port") {
		t.Errorf("status: %+v", st)
	}
}

// The node's own addresses are its pods' name servers if nobody said other ones, and only on the port that resolvers take.
func TestNodeServesItsPods(t *testing.T) {
	t.Parallel()
	a := &agent{plane: planeOf(t), kept: &fdstore.Keeper{}, o: NodeOptions{Addrs: []netip.Addr{netip.MustParseAddr("127.0.0.1")}, Domain: "cluster.local", Logger: slog.New(slog.DiscardHandler)}}
	a.makeNames(t.Context())
	if a.names != nil || a.noNames != nil {
		t.Error("port 0 is a server")
	}
	a.o.Names.ResolvConf = resolvConf(t, "nameserver 127.0.0.1\n")
	for range 10 { // another program may take the port in between
		free, err := net.ListenPacket("udp", "127.0.0.1:0")
		check(t, err)
		a.o.DNSPort = uint16(free.LocalAddr().(*net.UDPAddr).Port)
		check(t, free.Close())
		if a.makeNames(t.Context()); a.names != nil {
			break
		}
	}
	if a.names == nil {
		t.Fatal(a.noNames)
	}
	defer a.names.server.Close()
	if len(a.o.ClusterDNS) > 0 {
		t.Errorf("pods are told %v, but resolvers ask port 53", a.o.ClusterDNS)
	}
	if !a.names.mayAsk(a.o.Addrs[0]) || a.plane.names != a.names {
		t.Error("it is not whole")
	}
}
