package stream

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/gorilla/websocket"
	corev1 "k8s.io/api/core/v1"
	clientportforward "k8s.io/client-go/tools/portforward"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
	"k8s.io/streaming/pkg/httpstream/wsstream"
)

// portForward connects a client to ports of a pod.
func (s *Server) portForward(w http.ResponseWriter, r *http.Request) {
	tunnelled := wsstream.IsWebSocketRequestWithTunnelingProtocol(r)
	o := &portforward.V4Options{}
	var err error
	if !tunnelled {
		if o, err = portforward.NewV4Options(r); err != nil {
			writeError(w, http.StatusBadRequest, "%s", err)
			return
		}
	}
	pod, err := s.pod(r)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	netns, addresses, err := s.targets(pod)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	release, ok := s.acquire()
	if !ok {
		s.tooMany(w)
		return
	}
	defer release()
	s.o.Logger.InfoContext(r.Context(), "a client forwards ports of a pod",
		"user", r.TLS.PeerCertificates[0].Subject.CommonName, "pod", pod.Namespace+"/"+pod.Name)
	session := newSession(w, r, 0)
	f := &forwarder{server: s, ctx: session.ctx, pod: pod.Namespace + "/" + pod.Name, netns: netns, addresses: addresses}
	defer f.conns.wait()
	defer session.end()
	var writer http.ResponseWriter = session
	r = r.WithContext(session.ctx)
	if tunnelled {
		writer, r = newTunnel(session, r), spdyRequest(r)
	}
	portforward.ServePortForward(writer, r, f, pod.Name, string(pod.UID), o, s.o.IdleTimeout,
		remotecommand.DefaultStreamCreationTimeout, portforward.SupportedProtocols)
}

// targets says where a pod's ports are: on its loopback addresses, as for CRI runtimes, else on its own.
func (s *Server) targets(pod *corev1.Pod) (netns string, addresses []string, err error) {
	external := notExternal(pod, "") != nil
	if !external {
		addresses = []string{"127.0.0.1", "::1"}
		netns = s.o.Pods.NetNS(string(pod.UID))
		if netns == "" && !pod.Spec.HostNetwork {
			return "", nil, refuse(http.StatusBadRequest, "unable to forward port because pod is not running. Current status=%v", pod.Status.Phase)
		}
	}
	for _, ip := range pod.Status.PodIPs {
		addresses = append(addresses, ip.IP)
	}
	if len(addresses) == 0 && pod.Status.PodIP != "" {
		addresses = []string{pod.Status.PodIP}
	}
	if len(addresses) == 0 {
		return "", nil, refuse(http.StatusBadRequest, "unable to forward port because pod %q has no address yet", pod.Name)
	}
	return netns, addresses, nil
}

// forwarder connects the streams of one client to one pod.
type forwarder struct {
	server    *Server
	ctx       context.Context // of the client's connection; upstream gives its calls none
	pod       string
	netns     string
	addresses []string
	conns     tracker // goroutines that copy
}

// PortForward implements portforward.PortForwarder.
func (f *forwarder) PortForward(_ context.Context, _, _ string, port int32, stream io.ReadWriteCloser) error {
	// Writing waits until the SPDY library has confirmed the stream to the client. It calls before that, and were the
	// stream reset meanwhile, or its client gone, it would wait for ever: nothing is held here yet that could wait with it.
	if _, err := stream.Write(nil); err != nil {
		return err
	}
	release, ok := f.server.acquire()
	if !ok {
		return fmt.Errorf("this node has %d streams open, which is the limit", cap(f.server.slots))
	}
	defer release()
	if !f.conns.begin() {
		return net.ErrClosed
	}
	defer f.conns.end()
	conn, err := f.dial(port)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()                           // everything was copied, or cannot be
	stop := context.AfterFunc(f.ctx, func() { _ = conn.Close() }) // ends both copies
	defer stop()
	return f.copy(conn, stream)
}

// dial connects to the port on the first address where something listens.
func (f *forwarder) dial(port int32) (net.Conn, error) {
	var failures []string
	for _, address := range f.addresses {
		conn, err := f.server.o.Dial(f.ctx, f.netns, net.JoinHostPort(address, strconv.Itoa(int(port))))
		if err == nil {
			return conn, nil
		}
		failures = append(failures, err.Error())
	}
	return nil, fmt.Errorf("pod %s: nothing listens: %s", f.pod, strings.Join(failures, "; "))
}

// copy returns when the pod has sent everything. The other direction may wait for the client longer than that, at most
// as long as its connection lasts, which is what f.conns is waited for.
func (f *forwarder) copy(conn net.Conn, stream io.ReadWriteCloser) error {
	if !f.conns.begin() {
		return net.ErrClosed
	}
	var up atomic.Pointer[error]
	go func() {
		defer f.conns.end()
		_, err := io.Copy(conn, stream)
		if err != nil {
			up.Store(&err)
			_ = conn.Close() // what the pod does not take is an end for both
			return
		}
		if half, ok := conn.(interface{ CloseWrite() error }); ok {
			_ = half.CloseWrite() // refused only when the other side is closed already
		}
	}()
	_, err := io.Copy(stream, conn)
	if cause := up.Load(); cause != nil && errors.Is(err, net.ErrClosed) {
		err = *cause
	}
	if f.ctx.Err() != nil {
		return nil // the client has left: nobody reads an error
	}
	return err
}

// tunnel is the ResponseWriter that has SPDY spoken within the messages of a WebSocket
// (SPDY/3.1+portforward.k8s.io, KEP-4006).
type tunnel struct {
	w      http.ResponseWriter // gets what is no upgrade
	r      *http.Request       // the WebSocket's
	header http.Header
	sent   bool
}

func newTunnel(w http.ResponseWriter, r *http.Request) *tunnel {
	return &tunnel{w: w, r: r, header: http.Header{}}
}

// spdyRequest is what the client would have sent without a tunnel.
func spdyRequest(r *http.Request) *http.Request {
	var protocols []string
	for _, protocol := range websocket.Subprotocols(r) {
		if name, ok := strings.CutPrefix(protocol, portforward.WebsocketsSPDYTunnelingPrefix); ok {
			protocols = append(protocols, name)
		}
	}
	r = r.Clone(r.Context())
	r.Method = http.MethodPost
	for name := range r.Header {
		if strings.HasPrefix(strings.ToLower(name), "sec-websocket-") {
			r.Header.Del(name)
		}
	}
	r.Header.Set(httpstream.HeaderUpgrade, spdy.HeaderSpdy31)
	r.Header[http.CanonicalHeaderKey(httpstream.HeaderProtocolVersion)] = protocols
	return r
}

func (t *tunnel) Header() http.Header { return t.header }

func (t *tunnel) WriteHeader(code int) {
	if code == http.StatusSwitchingProtocols {
		return // said by the WebSocket's own answer, in Hijack
	}
	t.sent = true
	maps.Copy(t.w.Header(), t.header)
	t.w.WriteHeader(code)
}

func (t *tunnel) Write(p []byte) (int, error) {
	if !t.sent {
		t.WriteHeader(http.StatusOK)
	}
	return t.w.Write(p)
}

// Hijack implements http.Hijacker: it opens the WebSocket.
func (t *tunnel) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	upgrader := websocket.Upgrader{
		// Clients are known by their certificates, which no page in a browser can use unasked.
		CheckOrigin:  func(*http.Request) bool { return true },
		Subprotocols: []string{portforward.WebsocketsSPDYTunnelingPortForwardV1},
	}
	ws, err := upgrader.Upgrade(t.w, t.r, nil)
	if err != nil {
		return nil, nil, err
	}
	conn := clientportforward.NewTunnelingConnection("server", ws)
	return conn, bufio.NewReadWriter(bufio.NewReader(conn), bufio.NewWriter(conn)), nil
}
