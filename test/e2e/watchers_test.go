package e2e

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/endpointd/endpointd/internal/testkit"
)

const (
	// Each object is sent to every watcher: 200 × 300 × 8 KiB are 470 MB.
	manyWatchers  = 200
	watchedWrites = 300
	watchedBytes  = 8 << 10
	// What nobody takes must not pile up: 30 × 40 × 512 KiB are 600 MB.
	slowWatchers = 30
	slowWrites   = 40
	slowBytes    = 512 << 10
	// mayGrow bounds the resident memory that all this may cost; the objects themselves are about 100 MB of it.
	mayGrow = 400 << 20
)

// TestWatchers: clients that read their watches, clients that do not, and clients that break off in the middle of one. The
// server goes on answering, forgets those that are gone, and its memory is bounded.
func TestWatchers(t *testing.T) {
	t.Parallel()
	c := newCluster(t, testkit.ServerOptions{})
	s := c.space(t, c.kubectls[0])
	url := "https://" + c.server.Listen + "/api/v1/namespaces/" + s.name + "/configmaps?watch=1"
	// Each watch has a connection of its own: 200 in one would stand in each other's way.
	open := func(ctx context.Context, transport *http.Transport) *http.Response {
		t.Helper()
		var err error
		transport.TLSClientConfig, err = rest.TLSConfigFor(c.config)
		check(t, err)
		t.Cleanup(transport.CloseIdleConnections)
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		check(t, err)
		response, err := transport.RoundTrip(request)
		check(t, err)
		if response.StatusCode != http.StatusOK {
			t.Fatalf("watch: %s", response.Status)
		}
		return response
	}
	before := resident(t, c.server.PID)

	// Broken off: 50 clients read a little of an event and go away.
	_, err := c.client.CoreV1().ConfigMaps(s.name).Create(t.Context(), configMap("first", watchedBytes), metav1.CreateOptions{})
	check(t, err)
	for range 50 {
		ctx, cancel := context.WithCancel(t.Context())
		response := open(ctx, &http.Transport{ForceAttemptHTTP2: true})
		_, err := io.ReadFull(response.Body, make([]byte, 100))
		check(t, err)
		cancel()
		_ = response.Body.Close()
	}

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var readers sync.WaitGroup
	seen := make([]int, manyWatchers) // events that each reader got
	for i := range manyWatchers {
		response := open(ctx, &http.Transport{ForceAttemptHTTP2: true})
		readers.Go(func() {
			defer response.Body.Close() //nolint:errcheck // it was read to its end
			lines := bufio.NewReader(response.Body)
			for {
				line, err := lines.ReadString('\n')
				if strings.Contains(line, `"type":"ADDED"`) && strings.Contains(line, `"name":"c-`) {
					seen[i]++
				}
				if err != nil || seen[i] == watchedWrites {
					return
				}
			}
		})
	}
	var times []time.Duration
	peak := before
	for i := range watchedWrites {
		began := time.Now()
		_, err := c.client.CoreV1().ConfigMaps(s.name).Create(t.Context(), configMap(fmt.Sprint("c-", i), watchedBytes), metav1.CreateOptions{})
		check(t, err)
		times = append(times, time.Since(began))
		peak = max(peak, resident(t, c.server.PID))
	}
	s.run("get", "configmap", "c-0")
	allSeen := make(chan struct{})
	go func() { defer close(allSeen); readers.Wait() }()
	select {
	case <-allSeen:
	case <-time.After(patience):
		cancel()
		<-allSeen
	}
	for i, n := range seen {
		if n != watchedWrites {
			t.Errorf("watcher %d got %d of %d events", i, n, watchedWrites)
		}
	}
	peak = max(peak, resident(t, c.server.PID))
	slices.Sort(times)
	t.Logf("%d watchers: a write takes %v, at most %v; memory %d MB → %d MB", manyWatchers, times[len(times)/2], times[len(times)-1], before>>20, peak>>20)
	slowest := times[len(times)-1]

	// Slow: with HTTP/1.1 and small buffers, what is sent to a client that does not read stays with the server.
	narrow := func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
		if err == nil {
			err = conn.(*net.TCPConn).SetReadBuffer(4 << 10)
		}
		return conn, err
	}
	for range slowWatchers {
		response := open(ctx, &http.Transport{DialContext: narrow})
		t.Cleanup(func() { _ = response.Body.Close() })
	}
	if n := watches(t, c); n < slowWatchers {
		t.Errorf("the metrics show %d open watches, want %d", n, slowWatchers)
	}
	for i := range slowWrites {
		began := time.Now()
		_, err := c.client.CoreV1().ConfigMaps(s.name).Create(t.Context(), configMap(fmt.Sprint("s-", i), slowBytes), metav1.CreateOptions{})
		check(t, err)
		slowest = max(slowest, time.Since(began))
		peak = max(peak, resident(t, c.server.PID))
	}
	s.run("get", "configmap", "c-0")
	t.Logf("%d watchers that do not read: a write takes at most %v; memory up to %d MB", slowWatchers, slowest, peak>>20)
	if slowest > 5*time.Second {
		t.Errorf("a write took %v", slowest)
	}
	if peak-before > mayGrow {
		t.Errorf("memory grew from %d MB to %d MB", before>>20, peak>>20)
	}

	cancel()
	testkit.Await(t, patience, func() error {
		if n := watches(t, c); n > 0 {
			return fmt.Errorf("%d watches of clients that are gone are open", n)
		}
		return nil
	})
	c.server.Stop()
}

func configMap(name string, size int) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: map[string]string{"v": strings.Repeat("x", size)}}
}

// resident is the memory of a process in bytes.
func resident(t *testing.T, pid int) int {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	check(t, err)
	kilobytes, err := strconv.Atoi(strings.TrimSuffix(field(string(status), "VmRSS:"), " kB"))
	check(t, err)
	return kilobytes << 10
}

// watches is how many watches of one namespace's ConfigMaps the server says are open; the controllers watch all namespaces.
func watches(t *testing.T, c *cluster) int {
	t.Helper()
	metrics, err := c.client.RESTClient().Get().AbsPath("/metrics").DoRaw(t.Context())
	check(t, err)
	total := 0
	for line := range strings.Lines(string(metrics)) {
		if strings.HasPrefix(line, "apiserver_longrunning_requests{") && strings.Contains(line, `resource="configmaps"`) && strings.Contains(line, `scope="namespace"`) && strings.Contains(line, `verb="WATCH"`) {
			n, err := strconv.Atoi(strings.Fields(line)[1])
			check(t, err)
			total += n
		}
	}
	return total
}
