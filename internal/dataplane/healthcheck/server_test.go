package healthcheck

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/endpointd/endpointd/internal/model"
	"github.com/endpointd/endpointd/internal/model/modeltest"
	"github.com/endpointd/endpointd/internal/testkit"
)

const patience = 20 * time.Second

// world is what the API has, and a Server that follows it.
type world struct {
	t       *testing.T
	input   model.Input
	snap    *model.Snapshot
	server  *Server
	healthy atomic.Bool
	log     lines
	failed  lines // what Options.Failed was told
	client  *http.Client
}

func newWorld(t *testing.T, addrs ...string) *world {
	testkit.NeedInside(t)
	w := &world{t: t, client: &http.Client{Transport: &http.Transport{}, Timeout: patience}}
	w.healthy.Store(true)
	w.server = New(Options{Healthy: w.healthy.Load, Logger: slog.New(slog.NewTextHandler(&w.log, nil)), Failed: func(f Failure) {
		_, _ = fmt.Fprintf(&w.failed, "%s %s %s\n", f.Service, f.UID, f.Addr)
	}})
	var nodePort []netip.Addr
	for _, a := range addrs {
		nodePort = append(nodePort, netip.MustParseAddr(a))
	}
	w.input = w.input.WithNetwork(model.Network{Node: "here", NodePortAddrs: nodePort})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.server.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		w.client.CloseIdleConnections()
	})
	return w
}

// lines is a log.
type lines struct {
	mu     sync.Mutex // guards buffer
	buffer bytes.Buffer
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buffer.Write(b)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buffer.String()
}

// set gives a Service a health check node port, 0 = none, and endpoints on this node and elsewhere.
func (w *world) set(name string, port int32, here, there int) {
	number := 1
	for _, c := range name {
		number = (number*31 + int(c)) % 60_000
	}
	addr := fmt.Sprintf("10.96.%d.%d", number/250, 1+number%250)
	policy := "externalTrafficPolicy: Local, healthCheckNodePort: " + strconv.Itoa(int(port))
	if port == 0 {
		policy = "externalTrafficPolicy: Cluster"
	}
	var endpoints []string
	for i := range here + there {
		node := map[bool]string{true: "here", false: "there"}[i < here]
		endpoints = append(endpoints, fmt.Sprintf("{addresses: [10.1.0.%d], nodeName: %s}", i+1, node))
	}
	var err error
	w.input, err = modeltest.Apply(w.input, fmt.Sprintf(`
kind: Service
metadata: {namespace: shop, name: %[1]s, uid: "1"}
spec: {type: LoadBalancer, clusterIP: %[2]s, clusterIPs: [%[2]s], ipFamilies: [IPv4], ports: [{protocol: TCP, port: 80}], %[3]s}
---
kind: EndpointSlice
metadata: {namespace: shop, name: %[1]s-a, labels: {kubernetes.io/service-name: %[1]s}}
addressType: IPv4
ports: [{name: "", protocol: TCP, port: 8080}]
endpoints: [%[4]s]
`, name, addr, policy, strings.Join(endpoints, ", ")))
	if err != nil {
		w.t.Fatal(err)
	}
	w.apply()
}

func (w *world) remove(name string) {
	w.input = w.input.WithoutService(model.ServiceKey{Namespace: "shop", Name: name})
	w.apply()
}

func (w *world) apply() {
	w.snap = model.Build(w.input, w.snap)
	w.server.Set(w.snap)
}

// ask returns the answer without its date.
func (w *world) ask(addr string) (string, error) {
	resp, err := w.client.Get("http://" + addr + "/")
	if err != nil {
		return "", err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return "", err
	}
	resp.Header.Del("Date")
	var header bytes.Buffer
	if err := resp.Header.Write(&header); err != nil {
		return "", err
	}
	return resp.Status + "\n" + strings.ReplaceAll(header.String(), "\r", "") + "\n" + string(body), nil
}

// expect waits until the answer begins with status and names the number of endpoints.
func (w *world) expect(addr, status string, weight int) {
	w.t.Helper()
	testkit.Await(w.t, patience, func() error {
		got, err := w.ask(addr)
		if err != nil {
			return err
		}
		if !strings.HasPrefix(got, status+" ") || !strings.Contains(got, fmt.Sprintf("X-Load-Balancing-Endpoint-Weight: %d\n", weight)) {
			return fmt.Errorf("%s answers %s, want %s and %d", addr, got, status, weight)
		}
		return nil
	})
}

// expectClosed waits until nobody listens.
func (w *world) expectClosed(addr string) {
	w.t.Helper()
	testkit.Await(w.t, patience, func() error {
		if got, err := w.ask(addr); err == nil {
			return fmt.Errorf("%s answers %s, want nobody", addr, got)
		}
		return nil
	})
}

// TestAnswer holds the answer to the byte: load balancers parse it.
func TestAnswer(t *testing.T) {
	w := newWorld(t, "127.0.0.1")
	w.set("web", 32000, 2, 1)
	w.expect("127.0.0.1:32000", "200", 2)
	got, err := w.ask("127.0.0.1:32000")
	if err != nil {
		t.Fatal(err)
	}
	want := `200 OK
Content-Length: 126
Content-Type: application/json
X-Content-Type-Options: nosniff
X-Load-Balancing-Endpoint-Weight: 2

{
	"service": {
		"namespace": "shop",
		"name": "web"
	},
	"localEndpoints": 2,
	"serviceProxyHealthy": true
}`
	length := len(want) - strings.Index(want, "{")
	want = strings.Replace(want, "Content-Length: 126", fmt.Sprintf("Content-Length: %d", length), 1)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("answer (-want +got):\n%s", diff)
	}
	w.healthy.Store(false)
	got, err = w.ask("127.0.0.1:32000")
	if err != nil || !strings.HasPrefix(got, "503 ") || !strings.Contains(got, `"serviceProxyHealthy": false`) || !strings.Contains(got, "Weight: 2") {
		t.Errorf("an unhealthy proxy: %v %s", err, got)
	}
}

// TestFollows holds that listeners and answers follow the Snapshots.
func TestFollows(t *testing.T) {
	w := newWorld(t, "127.0.0.1", "127.0.0.2", "::1")
	w.set("web", 32000, 1, 1)
	w.set("db", 32001, 0, 3)
	w.set("other", 0, 1, 0)
	for _, host := range []string{"127.0.0.1", "127.0.0.2", "[::1]"} {
		w.expect(host+":32000", "200", 1)
		w.expect(host+":32001", "503", 0)
	}
	w.set("web", 32000, 0, 1)
	w.set("db", 32001, 3, 3)
	w.expect("127.0.0.1:32000", "503", 0)
	w.expect("127.0.0.1:32001", "200", 3)
	w.set("web", 0, 1, 1)
	w.expectClosed("127.0.0.1:32000")
	w.set("other", 32000, 1, 1)
	w.expect("[::1]:32000", "200", 1)
	w.set("other", 32002, 2, 1)
	w.expectClosed("127.0.0.2:32000")
	w.expect("127.0.0.2:32002", "200", 2)
	w.remove("other")
	w.expectClosed("127.0.0.2:32002")
	w.input = w.input.WithNetwork(model.Network{Node: "here", NodePortAddrs: []netip.Addr{netip.MustParseAddr("127.0.0.3")}})
	w.apply()
	w.expect("127.0.0.3:32001", "200", 3)
	w.expectClosed("127.0.0.1:32001")
	if failing := w.server.Failing(); len(failing) != 0 {
		t.Errorf("failing: %v", failing)
	}
}

// TestOlder holds that revisions never go back.
func TestOlder(t *testing.T) {
	w := newWorld(t, "127.0.0.1")
	w.set("web", 32000, 1, 0)
	before := w.snap
	w.set("web", 32000, 2, 0)
	w.expect("127.0.0.1:32000", "200", 2)
	w.server.Set(before)
	w.expect("127.0.0.1:32000", "200", 2)
}

// TestPortTaken holds that a port which somebody has is named, hurts no other, and is served as soon as it is free.
func TestPortTaken(t *testing.T) {
	w := newWorld(t, "127.0.0.1", "127.0.0.2")
	taken, err := net.Listen("tcp", "127.0.0.1:32000")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	w.set("web", 32000, 1, 0)
	w.set("db", 32001, 1, 0)
	w.expect("127.0.0.1:32001", "200", 1)
	w.expect("127.0.0.2:32000", "200", 1)
	testkit.Await(t, patience, func() error {
		failing := w.server.Failing()
		if len(failing) != 1 {
			return fmt.Errorf("failing: %v, want one", failing)
		}
		return nil
	})
	failure := w.server.Failing()[0]
	if text := failure.Err.Error(); failure.Service.Name != "web" || failure.Addr.String() != "127.0.0.1:32000" ||
		!strings.Contains(text, "service shop/web: health check on 127.0.0.1:32000: ") || !strings.Contains(text, "address already in use; stop what has the port") {
		t.Errorf("failure %+v", failure)
	}
	if err := taken.Close(); err != nil {
		t.Fatal(err)
	}
	w.expect("127.0.0.1:32000", "200", 1)
	testkit.Await(t, patience, func() error {
		if failing := w.server.Failing(); len(failing) != 0 {
			return fmt.Errorf("failing: %v", failing)
		}
		return nil
	})
	if n := strings.Count(w.log.String(), "trying again"); n != 1 {
		t.Errorf("the failure was logged %d times, want once:\n%s", n, w.log.String())
	}
	if got, want := w.failed.String(), "shop/web 1 127.0.0.1:32000\n"; got != want {
		t.Errorf("told of %q, want %q", got, want)
	}
}

// TestFailedOnce holds that a Service with many addresses is told of once for one failure, and again for the next.
func TestFailedOnce(t *testing.T) {
	w := newWorld(t, "127.0.0.1", "127.0.0.2", "127.0.0.3")
	take := func() net.Listener {
		l, err := net.Listen("tcp4", "0.0.0.0:32000")
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	for round := range 3 {
		taken := take()
		w.set("web", 32000, 1, 0)
		testkit.Await(t, patience, func() error {
			if failing := w.server.Failing(); len(failing) != 3 {
				return fmt.Errorf("failing: %v", failing)
			}
			return nil
		})
		w.set("web", 32000, 2, 0) // the next look finds nothing new
		if err := taken.Close(); err != nil {
			t.Fatal(err)
		}
		for _, addr := range []string{"127.0.0.1:32000", "127.0.0.2:32000", "127.0.0.3:32000"} {
			w.expect(addr, "200", 2)
		}
		if got, want := w.failed.String(), strings.Repeat("shop/web 1 127.0.0.1:32000\n", round+1); got != want {
			t.Errorf("told of %q, want %q", got, want)
		}
		w.remove("web")
		w.expectClosed("127.0.0.1:32000")
		w.expectClosed("127.0.0.2:32000")
		w.expectClosed("127.0.0.3:32000")
	}
}

// TestTwoServicesOnePort holds that of two Services with the same port one is served, and the other named.
func TestTwoServicesOnePort(t *testing.T) {
	w := newWorld(t, "127.0.0.1")
	w.set("a", 32000, 1, 0)
	w.expect("127.0.0.1:32000", "200", 1)
	w.set("b", 32000, 2, 0)
	testkit.Await(t, patience, func() error {
		if failing := w.server.Failing(); len(failing) != 1 || failing[0].Service.Name != "b" {
			return fmt.Errorf("failing: %v, want that of b", failing)
		}
		return nil
	})
	w.expect("127.0.0.1:32000", "200", 1)
	w.remove("a")
	w.expect("127.0.0.1:32000", "200", 2)
}

// TestBounds holds that a client with endless headers is cut off.
func TestBounds(t *testing.T) {
	w := newWorld(t, "127.0.0.1")
	w.set("web", 32000, 1, 0)
	w.expect("127.0.0.1:32000", "200", 1)
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://127.0.0.1:32000/", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("X", strings.Repeat("x", 64<<10))
	resp, err := w.client.Do(request)
	if err == nil {
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
			t.Errorf("64 KiB of headers: %s", resp.Status)
		}
	}
	h := NewHTTP(http.NotFoundHandler())
	for name, d := range map[string]time.Duration{"header": h.ReadHeaderTimeout, "read": h.ReadTimeout, "write": h.WriteTimeout, "idle": h.IdleTimeout} {
		if d <= 0 {
			t.Errorf("the %s timeout is %v", name, d)
		}
	}
}

// TestWalk changes Services at random from several goroutines' point of view: in the end what listens is what should.
func TestWalk(t *testing.T) {
	w := newWorld(t, "127.0.0.1")
	ports := map[string]int32{}
	for i := range 59 {
		name := string(rune('a' + i*7%5))
		port := int32(32000 + i*3%4)
		if i%6 == 5 {
			w.remove(name)
			delete(ports, name)
			continue
		}
		w.set(name, port, 1, 0)
		ports[name] = port
	}
	want := map[int32]bool{}
	for name, port := range ports {
		if port == 32003 {
			w.remove(name)
			continue
		}
		want[port] = true
	}
	for port := int32(32000); port < 32004; port++ {
		addr := fmt.Sprintf("127.0.0.1:%d", port)
		if want[port] {
			w.expect(addr, "200", 1)
		} else {
			w.expectClosed(addr)
		}
	}
	if len(want) == 0 || len(want) == 4 {
		t.Errorf("the walk ended with ports %v, where it shows too little", ports)
	}
}

// TestEndless holds that Run ends with its context even while a client holds a connection.
func TestEndless(t *testing.T) {
	testkit.NeedInside(t)
	s := New(Options{})
	w := &world{t: t, server: s, client: http.DefaultClient, input: model.Input{}.WithNetwork(model.Network{
		Node: "here", NodePortAddrs: []netip.Addr{netip.MustParseAddr("127.0.0.1")},
	})}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	w.set("web", 32100, 1, 0)
	var c net.Conn
	testkit.Await(t, patience, func() (err error) {
		c, err = net.Dial("tcp", "127.0.0.1:32100")
		return err
	})
	defer func() { _ = c.Close() }()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the connection is still open: %v", err)
	}
}
