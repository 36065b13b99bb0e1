package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/endpointd/endpointd/internal/testkit"
)

// ownLoopback is a loopback address that no other process of tests uses: fixed ports are free there.
func ownLoopback(last byte) netip.Addr {
	pid := os.Getpid()
	return netip.AddrFrom4([4]byte{127, 64 + byte(pid>>14), byte(pid >> 7 & 0x7f), byte(pid&0x7f)<<1 | last&1})
}

// webOf asks over HTTP.
func webOf(t *testing.T, url string) (string, error) {
	t.Helper()
	client := &http.Client{Timeout: askPatience, Transport: &http.Transport{DisableKeepAlives: true}}
	r, err := client.Get(url)
	if err != nil {
		return "", err
	}
	defer r.Body.Close() //nolint:errcheck // read only
	text, err := io.ReadAll(r.Body)
	return fmt.Sprint(r.StatusCode, " ", strings.TrimSpace(string(text))), err
}

// headlessSlice is one of a Service without an address, written now for a change of now.
func headlessSlice(service string, addrs ...string) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Name: service + "-1", Labels: map[string]string{discoveryv1.LabelServiceName: service},
			Annotations: map[string]string{corev1.EndpointsLastChangeTriggerTime: time.Now().UTC().Format(time.RFC3339Nano)},
		},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: new(""), Port: new(int32(80)), Protocol: new(corev1.ProtocolTCP)}},
	}
	for _, a := range addrs {
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{a}})
	}
	return s
}

// A DNS server alone says what it does not know yet, answers when it does, and ends when it is told to.
func TestDNSAlone(t *testing.T) {
	o := restartable(t)
	first := run(t, o)
	check(t, first.stop()) // the kubeconfig is there, and the API is not

	at := netip.AddrPortFrom(ownLoopback(0), 5353)
	web := "http://" + netip.AddrPortFrom(ownLoopback(0), 8080).String()
	var said lockedText
	ready := make(chan []netip.AddrPort, 1)
	ended := make(chan error, 1)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		ended <- RunDNS(ctx, DNSOptions{
			NamesOptions: NamesOptions{Listen: []netip.AddrPort{at}, Domain: "cluster.local", ResolvConf: resolvConf(t, "")},
			Kubeconfig:   Kubeconfig(o.DataDir), Healthz: strings.TrimPrefix(web, "http://"),
			Logger: slog.New(slog.NewTextHandler(&said, nil)), Ready: func(listen []netip.AddrPort) { ready <- listen },
		})
	}()
	awaitWeb := func(path, want string) {
		t.Helper()
		testkit.Await(t, askPatience, func() error {
			got, err := webOf(t, web+path)
			if err == nil && !strings.Contains(got, want) {
				err = fmt.Errorf("%s: %s, want %s", path, got, want)
			}
			return err
		})
	}
	awaitName := func(name, want string) {
		t.Helper()
		testkit.Await(t, askPatience, func() error {
			if got := lookup(t, at, name, dns.TypeA); got != want {
				return fmt.Errorf("%s is %s, want %s", name, got, want)
			}
			return nil
		})
	}
	awaitWeb("/healthz", "200 ok")
	awaitWeb("/readyz", "503 the API has not told everything yet")
	awaitName("kubernetes.default.svc.cluster.local.", "SERVFAIL")
	select {
	case <-ready:
		t.Error("ready without an API")
	default:
	}

	second := run(t, o)
	select {
	case listen := <-ready:
		if fmt.Sprint(listen) != fmt.Sprintf("[%s]", at) {
			t.Errorf("ready at %v, want %s", listen, at)
		}
	case err := <-ended:
		t.Fatalf("ended: %v\n%s", err, &said)
	case <-time.After(time.Minute):
		t.Fatalf("not ready\n%s", &said)
	}
	awaitWeb("/readyz", "200 ok")
	playNames(t, second.client)
	awaitName("web.names.svc.cluster.local.", "NOERROR 10.96.0.77")
	// Now it knows peers, too, which was made before: its endpoints are a change.
	_, err := second.client.DiscoveryV1().EndpointSlices("names").Create(t.Context(), headlessSlice("peers", "10.244.1.9", "10.244.2.9"), metav1.CreateOptions{})
	check(t, err)
	awaitName("peers.names.svc.cluster.local.", "NOERROR 10.244.1.9 10.244.2.9")
	awaitName("none.names.svc.cluster.local.", "NXDOMAIN")
	awaitName("10-244-1-7.names.pod.cluster.local.", "NOERROR 10.244.1.7")
	awaitName("10-244-1-8.names.pod.cluster.local.", "NXDOMAIN") // it has ended
	awaitName("10-244-1-7.default.pod.cluster.local.", "NXDOMAIN")
	awaitWeb("/metrics", `endpointd_dns_programming_duration_seconds_bucket{le="60"} 1`+"\n")
	awaitWeb("/metrics", "# TYPE endpointd_dns_responses_total counter\n")

	cancel()
	if err := <-ended; err != nil {
		t.Errorf("end: %v", err)
	}
	for _, network := range []string{"tcp", "udp"} { // both are given back
		if l, err := listenAny(network, at.String()); err != nil {
			t.Error(err)
		} else {
			_ = l.Close()
		}
	}
	if text := said.String(); strings.Contains(text, "level=ERROR") || strings.Contains(text, "orbidden") {
		t.Errorf("said\n%s", text)
	}
}

func listenAny(network, addr string) (io.Closer, error) {
	if network == "udp" {
		return net.ListenPacket(network, addr)
	}
	return net.Listen(network, addr)
}

// playNames makes what TestDNSAlone asks for, but endpoints.
func playNames(t *testing.T, client kubernetes.Interface) {
	t.Helper()
	namespace(t, client, "names")
	ports := []corev1.ServicePort{{Port: 80, Protocol: corev1.ProtocolTCP}}
	for _, s := range []*corev1.Service{
		{ObjectMeta: metav1.ObjectMeta{Name: "peers"}, Spec: corev1.ServiceSpec{ClusterIP: corev1.ClusterIPNone, Ports: ports}},
		{ObjectMeta: metav1.ObjectMeta{Name: "web"}, Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.77", Ports: ports}},
	} {
		_, err := client.CoreV1().Services("names").Create(t.Context(), s, metav1.CreateOptions{})
		check(t, err)
	}
	for name, status := range map[string]corev1.PodStatus{
		"lonely": {Phase: corev1.PodRunning, PodIP: "10.244.1.7", PodIPs: []corev1.PodIP{{IP: "10.244.1.7"}}},
		"ended":  {Phase: corev1.PodSucceeded, PodIP: "10.244.1.8", PodIPs: []corev1.PodIP{{IP: "10.244.1.8"}}},
	} {
		p := pod(name)
		p.Spec.NodeName = "elsewhere"
		p, err := client.CoreV1().Pods("names").Create(t.Context(), p, metav1.CreateOptions{})
		check(t, err)
		p.Status = status
		_, err = client.CoreV1().Pods("names").UpdateStatus(t.Context(), p, metav1.UpdateOptions{})
		check(t, err)
	}
}

// What cannot work says what to do.
func TestDNSAloneErrors(t *testing.T) {
	dir := t.TempDir()
	o := serverOptions(dir)
	check(t, run(t, o).stop())
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	defer taken.Close() //nolint:errcheck // a test
	for name, test := range map[string]struct {
		change func(*DNSOptions)
		want   string
	}{
		"no kubeconfig":      {func(o *DNSOptions) { o.Kubeconfig = filepath.Join(dir, "none") }, "no such file"},
		"no pod":             {func(o *DNSOptions) { o.Kubeconfig = "" }, "--kubeconfig"},
		"no domain":          {func(o *DNSOptions) { o.Domain = "a..b" }, `cluster domain "a..b"`},
		"no address":         {func(o *DNSOptions) { o.Listen = nil }, "give one with --listen"},
		"the port is taken":  {func(o *DNSOptions) { o.Listen = []netip.AddrPort{netip.MustParseAddrPort(taken.Addr().String())} }, "address already in use"},
		"the health port is": {func(o *DNSOptions) { o.Healthz = taken.Addr().String() }, "choose another one with --healthz-bind-address"},
	} {
		o := DNSOptions{
			NamesOptions: NamesOptions{Listen: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")}, Domain: "cluster.local", ResolvConf: resolvConf(t, "")},
			Kubeconfig:   Kubeconfig(dir), Logger: slog.New(slog.DiscardHandler), Ready: func([]netip.AddrPort) {},
		}
		test.change(&o)
		ctx, cancel := context.WithTimeout(t.Context(), askPatience)
		if err := RunDNS(ctx, o); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
		cancel()
	}
}

func TestPodByAddr(t *testing.T) {
	t.Parallel()
	client := fake.NewClientset()
	var asked string
	var fail error
	var pods []corev1.Pod
	client.PrependReactor("list", "pods", func(action clienttesting.Action) (bool, runtime.Object, error) {
		list := action.(clienttesting.ListAction)
		asked = list.GetNamespace() + " " + list.GetListRestrictions().Fields.String()
		return true, &corev1.PodList{Items: pods}, fail
	})
	exists := podByAddr(client)
	for _, test := range []struct {
		pods []corev1.Pod
		fail error
		want string
	}{
		{nil, nil, "false <nil>"},
		{[]corev1.Pod{*podAt("a", "p", corev1.PodRunning)}, nil, "true <nil>"},
		{[]corev1.Pod{*podAt("a", "p", corev1.PodPending)}, nil, "true <nil>"},
		{[]corev1.Pod{*podAt("a", "p", corev1.PodFailed), *podAt("a", "q", corev1.PodSucceeded)}, nil, "false <nil>"},
		{[]corev1.Pod{*podAt("a", "p", corev1.PodFailed), *podAt("a", "q", corev1.PodRunning)}, nil, "true <nil>"},
		{nil, errors.New("the API is away"), "false is there a pod with fd00::7 in a: the API is away"},
	} {
		pods, fail = test.pods, test.fail
		got, err := exists(t.Context(), "a", netip.MustParseAddr("fd00::7"))
		if said := fmt.Sprint(got, " ", err); said != test.want || asked != "a status.podIP=fd00::7" {
			t.Errorf("%s (asked %s), want %s", said, asked, test.want)
		}
	}
}
