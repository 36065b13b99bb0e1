package app

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/endpointd/endpointd/internal/dns/forward"
	dnsserver "github.com/endpointd/endpointd/internal/dns/server"
	"github.com/endpointd/endpointd/internal/fdstore"
	"github.com/endpointd/endpointd/internal/model"
	"github.com/endpointd/endpointd/internal/model/modeltest"
	"github.com/endpointd/endpointd/internal/testkit"
)

// lockedText is a log that several goroutines write.
type lockedText struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *lockedText) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lockedText) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// resolvConf writes one.
func resolvConf(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "resolv.conf")
	check(t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

// namesOf are a DNS server on loopback that does not run.
func namesOf(t *testing.T, change func(*namesOptions)) *names {
	t.Helper()
	o := namesOptions{
		NamesOptions: NamesOptions{Listen: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")}, Domain: "cluster.local", ResolvConf: resolvConf(t, "")},
		kept:         &fdstore.Keeper{}, log: slog.New(slog.DiscardHandler),
	}
	if change != nil {
		change(&o)
	}
	n, err := newNames(t.Context(), o)
	check(t, err)
	t.Cleanup(n.server.Close)
	return n
}

// runNames has one run for the test's time.
func runNames(t *testing.T, change func(*namesOptions)) *names {
	t.Helper()
	n := namesOf(t, change)
	start(t, n)
	return n
}

func start(t *testing.T, n *names) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- n.run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("run: %v", err)
		}
	})
}

// snapshotOf is what a node makes of objects.
func snapshotOf(t *testing.T, yaml string) *model.Snapshot {
	t.Helper()
	prefixes := func(texts ...string) (all []netip.Prefix) {
		for _, text := range texts {
			all = append(all, netip.MustParsePrefix(text))
		}
		return all
	}
	in := model.Input{}.WithNetwork(model.Network{
		Node: "n", PodCIDRs: prefixes("10.244.1.0/24", "fd00:244:1::/64"), ClusterCIDRs: prefixes("10.244.0.0/16", "fd00:244::/32"),
		ServiceCIDRs: prefixes("10.96.0.0/16"),
	})
	in, err := modeltest.Apply(in, yaml)
	check(t, err)
	return model.Build(in, nil)
}

const webAndPeers = `
kind: Service
metadata: {namespace: default, name: web, uid: "1"}
spec: {clusterIP: 10.96.0.7, clusterIPs: [10.96.0.7], ipFamilies: [IPv4], ports: [{port: 80, protocol: TCP}]}
---
kind: Service
metadata: {namespace: default, name: peers, uid: "2"}
spec: {clusterIP: None, clusterIPs: [None], ports: [{port: 80, protocol: TCP}]}
---
kind: EndpointSlice
metadata: {namespace: default, name: peers, labels: {kubernetes.io/service-name: peers}}
addressType: IPv4
ports: [{name: "", protocol: TCP, port: 80}]
endpoints:
- {addresses: [10.244.1.9], targetRef: {kind: Pod, namespace: default, name: p, uid: p}}
- {addresses: [10.244.2.9], targetRef: {kind: Pod, namespace: default, name: q, uid: q}}
`

const askPatience = 20 * time.Second

// lookup asks a server for a name; the answer is its RCODE and the records' contents, sorted.
func lookup(t *testing.T, server netip.AddrPort, name string, rtype uint16) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), askPatience)
	defer cancel()
	answer, _, err := (&dns.Client{Timeout: askPatience}).ExchangeContext(ctx, new(dns.Msg).SetQuestion(name, rtype), server.String())
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	var records []string
	for _, rr := range answer.Answer {
		records = append(records, strings.TrimPrefix(rr.String(), rr.Header().String()))
	}
	slices.Sort(records)
	return strings.Join(append([]string{dns.RcodeToString[answer.Rcode]}, records...), " ")
}

func nodeAt(name string, addrs ...string) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
	for _, a := range addrs {
		n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a})
	}
	return n
}

// This is no open resolver.
func TestWhoMayAsk(t *testing.T) {
	t.Parallel()
	n := namesOf(t, func(o *namesOptions) {
		o.servers = []netip.Addr{netip.MustParseAddr("192.0.2.1")}
		o.Clients = []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}
	})
	always := []string{"127.0.0.1", "127.9.9.9", "::1", "192.0.2.1", "198.51.100.7"}
	pods := []string{"10.244.1.9", "10.244.2.9", "fd00:244:1::9", "fd00:244:2::9"}
	nodes := []string{"192.0.2.2", "2001:db8::2"}
	never := []string{"10.245.0.1", "192.0.2.3", "198.51.101.1", "fd00:245::1", "203.0.113.7", "10.96.0.7"}
	asks := func(when string, may bool, all ...string) {
		t.Helper()
		for _, text := range all {
			if got := n.mayAsk(netip.MustParseAddr(text)); got != may {
				t.Errorf("%s, %s may ask: %v", when, text, got)
			}
		}
	}
	sizes := func(when string, want int, all ...string) {
		t.Helper()
		for _, text := range all {
			if got := n.udpSize(netip.MustParseAddr(text)); got != want {
				t.Errorf("%s, a response to %s is %d long at the most, want %d", when, text, got, want)
			}
		}
	}
	asks("at first", true, always...)
	asks("at first", false, slices.Concat(pods, nodes, never)...)
	sizes("at first", ownUDPSize, "127.0.0.1", "::1")
	sizes("at first", otherUDPSize, pods...)

	n.set(snapshotOf(t, webAndPeers))
	asks("with a Snapshot", true, slices.Concat(always, pods)...)
	asks("with a Snapshot", false, slices.Concat(nodes, never)...)
	sizes("with a Snapshot", ownUDPSize, "10.244.1.9", "fd00:244:1::9", "127.0.0.1")
	sizes("with a Snapshot", otherUDPSize, "10.244.2.9", "fd00:244:2::9", "192.0.2.1", "198.51.100.7")

	n.setNodes([]*corev1.Node{nodeAt("n", "192.0.2.1"), nodeAt("m", "192.0.2.2", "2001:db8::2")})
	asks("with nodes", true, slices.Concat(always, pods, nodes)...)
	asks("with nodes", false, never...)
	sizes("with nodes", otherUDPSize, nodes...)
	n.setNodes([]*corev1.Node{nodeAt("n", "192.0.2.1")})
	asks("without that node", false, nodes...)
	asks("without that node", true, slices.Concat(always, pods)...)
}

func TestUpstreamsOfThisMachine(t *testing.T) {
	t.Parallel()
	dot, err := forward.ParseUpstream("tls://9.9.9.9#dns.quad9.net")
	check(t, err)
	for _, test := range []struct {
		name, conf     string
		given          map[string][]forward.Upstream
		listen         string
		want, searches []string
		said           string
	}{
		{name: "servers and domains", conf: "nameserver 192.0.2.53\nnameserver 2001:db8::53\nsearch corp.example example\noptions ndots:5\n",
			want: []string{"192.0.2.53:53", "[2001:db8::53]:53"}, searches: []string{"corp.example", "example"}},
		{name: "ourselves", conf: "nameserver 192.0.2.1\nnameserver 10.96.0.10\nnameserver 192.0.2.53\n", want: []string{"192.0.2.53:53"},
			said: "it is this one"},
		{name: "nobody but ourselves", conf: "nameserver 192.0.2.1\n", said: "no other name server"},
		{name: "ourselves on loopback", conf: "nameserver 127.0.0.53\nnameserver 192.0.2.53\n", listen: "0.0.0.0:53", want: []string{"192.0.2.53:53"}, said: "it is this one"},
		{name: "another port", conf: "nameserver 192.0.2.1\n", listen: "192.0.2.1:5353", want: []string{"192.0.2.1:53"}},
		{name: "another one on loopback", conf: "nameserver 127.0.0.53\n", want: []string{"127.0.0.53:53"}},
		{name: "broken lines", conf: "nameserver\nnameserver localhost\nnameserver 0.0.0.0\nserver 192.0.2.54\nnameserver 192.0.2.53 # ours\n;\n\x00\nsearch a..b example\n",
			want: []string{"192.0.2.53:53"}, searches: []string{"example"}, said: "a..b"},
		{name: "the cluster's own domains", conf: "nameserver 192.0.2.53\nsearch default.svc.cluster.local svc.cluster.local cluster.local . local example\n",
			want: []string{"192.0.2.53:53"}, searches: []string{"local", "example"}},
		{name: "an empty file", said: "no other name server"},
		{name: "somebody was given", conf: "nameserver 192.0.2.53\nsearch example\n", given: map[string][]forward.Upstream{".": {dot}},
			want: []string{"tls://9.9.9.9:853#dns.quad9.net"}, searches: []string{"example"}},
		{name: "somebody for one domain", conf: "nameserver 192.0.2.53\n", given: map[string][]forward.Upstream{"corp.example.": {dot}},
			want: []string{"192.0.2.53:53", "corp.example. tls://9.9.9.9:853#dns.quad9.net"}},
	} {
		var said bytes.Buffer
		n := &names{o: namesOptions{
			NamesOptions: NamesOptions{
				Listen: []netip.AddrPort{netip.MustParseAddrPort(cmp.Or(test.listen, "192.0.2.1:53"))},
				Domain: "cluster.local", Upstreams: test.given, ResolvConf: resolvConf(t, test.conf),
			},
			log: slog.New(slog.NewTextHandler(&said, nil)),
		}}
		if test.listen == "" {
			n.o.servers = []netip.Addr{netip.MustParseAddr("10.96.0.10")}
		}
		all, searches, err := n.upstreams()
		check(t, err)
		var got []string
		for _, domain := range slices.Sorted(maps.Keys(all)) {
			for _, u := range all[domain] {
				got = append(got, strings.TrimPrefix(domain+" ", ". ")+u.String())
			}
		}
		if fmt.Sprint(got) != fmt.Sprint(test.want) || fmt.Sprint(searches) != fmt.Sprint(test.searches) || !strings.Contains(said.String(), test.said) {
			t.Errorf("%s: upstreams %q, searches %q, said %s\nwant %q, %q, %q", test.name, got, searches, &said, test.want, test.searches, test.said)
		}
		if _, err := forward.New(forward.Options{Upstreams: all, Own: n.own(), Logger: n.o.log}); err != nil {
			t.Errorf("%s: the forwarder does not take them: %v", test.name, err)
		}
	}
}

// A machine without the file, or that cannot read it, has no upstreams, and answers for the cluster.
func TestNoResolvConf(t *testing.T) {
	t.Parallel()
	var said lockedText
	n := runNames(t, func(o *namesOptions) {
		o.ResolvConf = filepath.Join(t.TempDir(), "none")
		o.log = slog.New(slog.NewTextHandler(&said, nil))
	})
	if !strings.Contains(said.String(), "not resolved") || !strings.Contains(said.String(), "no such file") {
		t.Errorf("said %s", &said)
	}
	n.set(snapshotOf(t, webAndPeers))
	at := n.server.Addrs()[0]
	if got := lookup(t, at, "web.default.svc.cluster.local.", dns.TypeA); got != "NOERROR 10.96.0.7" {
		t.Errorf("a name of the cluster is %s", got)
	}
	if got := lookup(t, at, "www.example.", dns.TypeA); got != "REFUSED" {
		t.Errorf("another name is %s", got)
	}
}

// Who knows nothing yet does not say that a name is not there.
func TestNoAnswerBeforeTheFirstSnapshot(t *testing.T) {
	t.Parallel()
	n := runNames(t, nil)
	at := n.server.Addrs()[0]
	all := []struct {
		name  string
		rtype uint16
		want  string
	}{
		{"web.default.svc.cluster.local.", dns.TypeA, "NOERROR 10.96.0.7"},
		{"peers.default.svc.cluster.local.", dns.TypeA, "NOERROR 10.244.1.9 10.244.2.9"},
		{"none.default.svc.cluster.local.", dns.TypeA, "NXDOMAIN"},
		{"7.0.96.10.in-addr.arpa.", dns.TypePTR, "NOERROR web.default.svc.cluster.local."},
	}
	for _, q := range all[:3] {
		if got := lookup(t, at, q.name, q.rtype); got != "SERVFAIL" {
			t.Errorf("before, %s is %s", q.name, got)
		}
	}
	if st := n.status(); st.Revision != 0 || !strings.Contains(strings.Join(st.Problems, "\n"), "SERVFAIL") {
		t.Errorf("status before: %+v", st)
	}
	n.set(snapshotOf(t, webAndPeers))
	for _, q := range all {
		if got := lookup(t, at, q.name, q.rtype); got != q.want {
			t.Errorf("%s is %s, want %s", q.name, got, q.want)
		}
	}
	n.set(snapshotOf(t, strings.ReplaceAll(webAndPeers, "10.96.0.7", "10.96.0.8")))
	if got := lookup(t, at, "web.default.svc.cluster.local.", dns.TypeA); got != "NOERROR 10.96.0.8" {
		t.Errorf("the next answer after a change is %s", got)
	}
}

// A client's namespace is what this node knows of its own pods, and else what endpoints tell.
func TestNamespaceOfAClient(t *testing.T) {
	t.Parallel()
	n := namesOf(t, func(o *namesOptions) {
		o.namespace = func(addr netip.Addr) (string, bool) { return "mine", addr == netip.MustParseAddr("10.244.1.9") }
	})
	n.set(snapshotOf(t, webAndPeers))
	for addr, want := range map[string]string{"10.244.1.9": "mine", "10.244.2.9": "default", "10.244.2.10": ""} {
		if got, _ := n.namespace(netip.MustParseAddr(addr)); got != want {
			t.Errorf("the namespace of %s is %q, want %q", addr, got, want)
		}
	}
}

func TestProgrammingIsCounted(t *testing.T) {
	t.Parallel()
	n := namesOf(t, nil)
	s := snapshotOf(t, webAndPeers)
	for name, took := range map[string]time.Duration{"peers": time.Hour, "web": 2 * time.Hour} { // nobody is told the endpoints of web
		n.programmed(s.Service(model.ServiceKey{Namespace: "default", Name: name}), time.Now().Add(-took))
	}
	var text bytes.Buffer
	check(t, n.server.WriteMetrics(&text))
	for _, want := range []string{
		"endpointd_dns_programming_duration_seconds_count 1\n", `endpointd_dns_programming_duration_seconds_bucket{le="300"} 0` + "\n",
		"endpointd_dns_programming_duration_seconds_sum 36",
	} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("no %q in\n%s", want, &text)
		}
	}
}

// What is asked is logged, if somebody wants that.
func TestQueriesAreLogged(t *testing.T) {
	t.Parallel()
	var said lockedText
	n := runNames(t, func(o *namesOptions) {
		o.log = slog.New(slog.NewTextHandler(&said, nil))
		o.Log = &dnsserver.LogFilter{Suffix: "default.svc.cluster.local"}
	})
	n.set(snapshotOf(t, webAndPeers))
	testkit.Await(t, askPatience, func() error {
		lookup(t, n.server.Addrs()[0], "kubernetes.svc.cluster.local.", dns.TypeA)
		lookup(t, n.server.Addrs()[0], "web.default.svc.cluster.local.", dns.TypeA)
		if !strings.Contains(said.String(), "msg=query name=web.default.svc.cluster.local. type=A") {
			return errors.New("nothing was logged")
		}
		return nil
	})
	if strings.Contains(said.String(), "kubernetes.svc") {
		t.Errorf("logged what was not to be\n%s", &said)
	}
}
