package watch_test

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/endpointd/endpointd/internal/node/watch"
)

func TestRequestThatHangsHoldsUpNoOther(t *testing.T) {
	var mu sync.Mutex
	from := map[string]bool{} // addresses of connections
	hang, hanging := make(chan struct{}), make(chan struct{}, 1)
	api := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		from[r.RemoteAddr+" "+r.Proto] = true
		first := len(from) == 1
		mu.Unlock()
		if first {
			select {
			case hanging <- struct{}{}:
			default: // it was asked again
			}
			select {
			case <-hang:
			case <-r.Context().Done():
			}
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte(`{"apiVersion":"v1","kind":"Node","metadata":{"name":"n"}}`))
	}))
	api.EnableHTTP2 = true
	api.StartTLS()
	defer api.Close()
	defer close(hang)
	config := watch.Connection(&rest.Config{Host: api.URL, TLSClientConfig: rest.TLSClientConfig{Insecure: true}, QPS: 1})
	httpClient, err := rest.HTTPClientFor(config)
	if err != nil {
		t.Fatal(err)
	}
	defer httpClient.CloseIdleConnections()
	client, err := kubernetes.NewForConfigAndClient(config, httpClient)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		<-hanging
		cancel() // who asked does not wait any longer
	}()
	if _, err := client.CoreV1().Nodes().Get(ctx, "n", metav1.GetOptions{}); err == nil {
		t.Fatal("answered, though it was to hang")
	}
	start := time.Now()
	for range 20 { // more than QPS 1 would let through
		if _, err := client.CoreV1().Nodes().Get(t.Context(), "n", metav1.GetOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("20 requests took %v, so they are limited", took)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(from) != 2 {
		t.Errorf("connections %v, want that of the hanging request and one more", from)
	}
}

func TestConnectionIsGivenUpAfterSilence(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	conn, err := watch.Connection(&rest.Config{}).Dial(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	raw, err := conn.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var silence, idle int
	err = raw.Control(func(fd uintptr) {
		silence, _ = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT)
		idle, _ = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_KEEPIDLE)
	})
	if err != nil || silence != 3000 || idle != 2 {
		t.Errorf("gives up after %d ms of silence, asks after %d s, %v; want 3000 and 2", silence, idle, err)
	}
}
