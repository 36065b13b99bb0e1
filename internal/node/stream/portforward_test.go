package stream

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"
	"k8s.io/streaming/pkg/httpstream"
)

// dialers are client-go's ways to forward ports.
var dialers = map[string]func(*rest.Config, *url.URL) (httpstream.Dialer, error){
	"SPDY": func(config *rest.Config, u *url.URL) (httpstream.Dialer, error) {
		transport, upgrader, err := spdy.RoundTripperFor(config)
		if err != nil {
			return nil, err
		}
		return spdy.NewDialerForStreaming(upgrader, &http.Client{Transport: transport}, http.MethodPost, u), nil
	},
	"SPDY within WebSocket": func(config *rest.Config, u *url.URL) (httpstream.Dialer, error) {
		return portforward.NewSPDYOverWebsocketDialerForStreaming(u, config)
	},
}

// echoes listens on loopback and plays a server that sends back what it gets, and ends when its client has.
func echoes(t *testing.T) (port string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer func() { _ = conn.Close() }()
				// Hidden from io.Copy, which between two sockets uses pipes and keeps them.
				_, _ = io.Copy(struct{ io.Writer }{conn}, struct{ io.Reader }{conn})
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		all.Wait()
	})
	_, port, _ = net.SplitHostPort(l.Addr().String())
	return port
}

// dialed records where a server dialed to, and goes to the real loopback instead.
type dialed struct {
	mu    sync.Mutex // guards calls
	calls []string
}

func (d *dialed) dial(ctx context.Context, netns, address string) (net.Conn, error) {
	d.mu.Lock()
	d.calls = append(d.calls, netns+" "+address)
	d.mu.Unlock()
	if strings.HasPrefix(address, "127.") {
		return DialIn(ctx, "", address)
	}
	return nil, fmt.Errorf("dial %s: refused by the test", address)
}

// forward runs client-go's port-forwarder and gives the local address.
func forward(t *testing.T, config *rest.Config, protocol, path, port string) (local string) {
	t.Helper()
	u, err := url.Parse(config.Host + path)
	if err != nil {
		t.Fatal(err)
	}
	dialer, err := dialers[protocol](config, u)
	if err != nil {
		t.Fatal(err)
	}
	stopped, ready, ended := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	f, err := portforward.NewOnAddressesForStreaming(dialer, []string{"127.0.0.1"}, []string{"0:" + port}, stopped, ready, io.Discard, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	go func() { ended <- f.ForwardPorts() }()
	select {
	case <-ready:
	case err := <-ended:
		t.Fatal(err)
	}
	t.Cleanup(func() {
		close(stopped)
		if err := await(t, ended, "the client to end"); err != nil && !errors.Is(err, portforward.ErrLostConnectionToPod) {
			t.Error(err)
		}
	})
	ports, err := f.GetPorts()
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("127.0.0.1:%d", ports[0].Local)
}

// exchange sends bytes, ends its side and returns all that comes back.
func exchange(address string, data []byte) ([]byte, error) {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	sent := make(chan error, 1)
	go func() {
		_, err := conn.Write(data)
		sent <- errors.Join(err, conn.(*net.TCPConn).CloseWrite())
	}()
	got, err := io.ReadAll(conn)
	return got, errors.Join(err, <-sent)
}

func TestPortForward(t *testing.T) {
	data := make([]byte, 1<<20)
	if _, err := rand.Read(data); err != nil {
		t.Fatal(err)
	}
	for protocol := range dialers {
		t.Run(protocol, func(t *testing.T) {
			var d dialed
			r := newRig(t, func(o *Options) { o.Dial = d.dial })
			port := echoes(t)
			local := forward(t, r.admin, protocol, "/portForward/default/web", port)
			var all sync.WaitGroup
			for range 5 {
				all.Go(func() {
					got, err := exchange(local, data)
					if err != nil || !bytes.Equal(got, data) {
						t.Errorf("got %d bytes of %d, %v", len(got), len(data), err)
					}
				})
			}
			all.Wait()
			if want := "/the/netns/of/web 127.0.0.1:" + port; len(d.calls) != 5 || d.calls[0] != want {
				t.Errorf("dialed %q, want 5 times %q", d.calls, want)
			}
		})
	}
}

func TestPortForwardToWhereNothingListens(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(l.Addr().String())
	_ = l.Close()
	for protocol := range dialers {
		var d dialed
		r := newRig(t, func(o *Options) { o.Dial = d.dial })
		u, err := url.Parse(r.admin.Host + "/portForward/default/web")
		if err != nil {
			t.Fatal(err)
		}
		dialer, err := dialers[protocol](r.admin, u)
		if err != nil {
			t.Fatal(err)
		}
		conn, _, err := dialer.Dial(portforward.PortForwardProtocolV1Name)
		if err != nil {
			t.Fatal(err)
		}
		streams := map[string]httpstream.Stream{}
		for _, kind := range []string{corev1.StreamTypeError, corev1.StreamTypeData} {
			streams[kind], err = conn.CreateStream(http.Header{
				corev1.StreamType: {kind}, corev1.PortHeader: {port}, corev1.PortForwardRequestIDHeader: {"0"},
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		text, err := io.ReadAll(streams[corev1.StreamTypeError])
		want := "pod default/web: nothing listens: dial tcp 127.0.0.1:" + port + ": connect: connection refused; dial [::1]"
		if err != nil || !strings.Contains(string(text), want) {
			t.Errorf("%s: the client is told %q, %v; want %q", protocol, text, err, want)
		}
		if len(d.calls) != 3 {
			t.Errorf("%s: dialed %q, want loopback of both families and the pod's address", protocol, d.calls)
		}
		_ = conn.Close()
	}
}

func TestPortForwardTargets(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*corev1.Pod)
		netns  string
		want   string
		fails  string
	}{
		{name: "web", netns: "/the/netns/of/web", want: "127.0.0.1 ::1 10.0.0.7 fd00::7"},
		{name: "host", change: func(p *corev1.Pod) { p.Spec.HostNetwork = true }, want: "127.0.0.1 ::1 10.0.0.7 fd00::7"},
		{name: "vm", change: func(p *corev1.Pod) { p.Spec.RuntimeClassName = new(externalClass) }, want: "10.0.0.7 fd00::7"},
		{name: "ended", change: func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded }, fails: "Current status=Succeeded"},
		{name: "nowhere", change: func(p *corev1.Pod) {
			p.Spec.RuntimeClassName = new(externalClass)
			p.Status.PodIPs = nil
		}, fails: "has no address yet"},
	} {
		s := New(Options{Pods: &fakePods{}})
		pod := podOf(c.name)
		pod.Status.PodIPs = []corev1.PodIP{{IP: "10.0.0.7"}, {IP: "fd00::7"}}
		if c.change != nil {
			c.change(pod)
		}
		netns, addresses, err := s.targets(pod)
		if c.fails != "" {
			if err == nil || !strings.Contains(err.Error(), c.fails) {
				t.Errorf("%s: got %v", c.name, err)
			}
			continue
		}
		if err != nil || netns != c.netns || strings.Join(addresses, " ") != c.want {
			t.Errorf("%s: got %q %q, %v", c.name, netns, addresses, err)
		}
	}
}

func TestForwardingEndsWithTheServer(t *testing.T) {
	for protocol := range dialers {
		r := newRig(t, nil)
		pod := podOf("host")
		pod.Spec.HostNetwork = true
		r.pods.set(pod)
		local := forward(t, r.admin, protocol, "/portForward/default/host/uid-host", echoes(t))
		conn, err := net.Dial("tcp", local)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write([]byte("x")); err != nil {
			t.Error(err)
		}
		if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
			t.Error(err)
		}
		if err := r.stop(); err != nil { // does not wait for the client
			t.Error(err)
		}
		_ = conn.Close()
	}
}

func TestPortForwardRefusals(t *testing.T) {
	r := newRig(t, nil)
	for path, want := range map[string]string{
		"/portForward/default/none":          `404 pod "none" does not exist`,
		"/portForward/default/web/other-uid": `404 pod "web" with UID other-uid does not exist: its UID is uid-web`,
	} {
		if code, text := do(t, r.admin, http.MethodPost, path); fmt.Sprint(code, " ", text) != want {
			t.Errorf("%s: got %d %q, want %q", path, code, text, want)
		}
	}
}
