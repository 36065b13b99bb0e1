package prober

import (
	"bytes"
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

// serveGRPC runs a server, with health or without.
func serveGRPC(t *testing.T, h healthpb.HealthServer, options ...grpc.ServerOption) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(options...)
	if h != nil {
		healthpb.RegisterHealthServer(server, h)
	}
	done := make(chan error)
	go func() { done <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return netip.MustParseAddrPort(l.Addr().String())
}

// odd is a health server that answers as the name of the service says.
type odd struct {
	healthpb.UnimplementedHealthServer
}

func (odd) Check(ctx context.Context, r *healthpb.HealthCheckRequest) (*healthpb.HealthCheckResponse, error) {
	switch r.Service {
	case "slow":
		<-ctx.Done()
		return nil, ctx.Err()
	case "broken":
		return nil, status.Error(codes.DataLoss, "100% lost\n")
	}
	return &healthpb.HealthCheckResponse{Status: 42}, nil
}

func TestGRPC(t *testing.T) {
	h := health.NewServer()
	h.SetServingStatus("up", healthpb.HealthCheckResponse_SERVING)
	h.SetServingStatus("down", healthpb.HealthCheckResponse_NOT_SERVING)
	h.SetServingStatus("new", healthpb.HealthCheckResponse_UNKNOWN)
	at := serveGRPC(t, h)
	for _, service := range []string{"", "up"} {
		if err := try(t, GRPC(at, service), time.Second); err != nil {
			t.Errorf("service %q: %v", service, err)
		}
	}
	wantFailure(t, try(t, GRPC(at, "down"), time.Second), `service unhealthy (responded with "NOT_SERVING")`)
	wantFailure(t, try(t, GRPC(at, "new"), time.Second), `service unhealthy (responded with "UNKNOWN")`)
	wantFailure(t, try(t, GRPC(at, "none"), time.Second),
		"error: health rpc probe failed: rpc error: code = NotFound desc = unknown service")
	wantFailure(t, try(t, GRPC(at, strings.Repeat("x", 9000)), time.Second), "longer than 8192 bytes")
	wantFailure(t, try(t, GRPC(serveGRPC(t, nil), ""), time.Second),
		"error: this server does not implement the grpc health protocol (grpc.health.v1.Health): unknown service grpc.health.v1.Health")

	at = serveGRPC(t, odd{})
	wantFailure(t, try(t, GRPC(at, "slow"), 100*time.Millisecond), "timeout: health rpc did not complete within 100ms")
	wantFailure(t, try(t, GRPC(at, "broken"), time.Second), "rpc error: code = DataLoss desc = 100% lost\n")
	wantFailure(t, try(t, GRPC(at, "strange"), time.Second), `service unhealthy (responded with "42")`)
}

func TestGRPCTLS(t *testing.T) {
	server := httptest.NewUnstartedServer(nil)
	server.EnableHTTP2 = true
	server.StartTLS() // only for its certificate
	defer server.Close()
	config := server.TLS.Clone()
	config.NextProtos = []string{"h2"}
	at := serveGRPC(t, health.NewServer(), grpc.Creds(credentials.NewTLS(config)))
	if err := try(t, GRPCTLS(at, ""), time.Second); err != nil {
		t.Error(err)
	}
	wantFailure(t, try(t, GRPC(at, ""), time.Second), "error: failed to connect service")
}

func TestGRPCAgainstOtherServers(t *testing.T) {
	plain := httptest.NewServer(mux(""))
	defer plain.Close()
	wantFailure(t, try(t, GRPC(netip.MustParseAddrPort(plain.Listener.Addr().String()), ""), time.Second),
		"error: failed to connect service")

	other := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusNotFound)
	}))
	other.Config.Protocols = new(http.Protocols)
	other.Config.Protocols.SetUnencryptedHTTP2(true)
	other.Start()
	defer other.Close()
	wantFailure(t, try(t, GRPC(netip.MustParseAddrPort(other.Listener.Addr().String()), ""), time.Second),
		"this server does not implement", "404")
}

// frames are the bytes of what write does.
func frames(t *testing.T, write func(*http2.Framer) error) string {
	t.Helper()
	var b bytes.Buffer
	w := http2.NewFramer(&b, nil)
	w.AllowIllegalWrites = true
	if err := w.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	if err := write(w); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestGRPCBrokenAnswers(t *testing.T) {
	flood := func(w *http2.Framer) error {
		for range 2000 {
			if err := w.WriteSettingsAck(); err != nil {
				return err
			}
		}
		return nil
	}
	for _, c := range []struct{ answer, failure string }{
		{"", "error: failed to connect service"},
		{"HTTP/1.1 400 Bad Request\r\n\r\n", "error: failed to connect service"},
		{frames(t, func(*http2.Framer) error { return nil }), "code = Unavailable desc = error reading from server"},
		{frames(t, func(w *http2.Framer) error { return w.WriteGoAway(0, http2.ErrCodeNo, nil) }), "is closing the connection"},
		{frames(t, func(w *http2.Framer) error { return w.WriteRSTStream(1, http2.ErrCodeRefusedStream) }),
			"code = Unavailable desc = stream terminated by RST_STREAM with error code: REFUSED_STREAM"},
		{frames(t, func(w *http2.Framer) error { return w.WriteData(1, false, make([]byte, 8<<10)) }), "larger than max"},
		{frames(t, func(w *http2.Framer) error { return w.WriteData(1, true, nil) }), "without sending trailers"},
		{frames(t, flood), "no answer in 1000 frames"},
	} {
		wantFailure(t, try(t, GRPC(raw(t, c.answer), ""), time.Second), c.failure)
	}
}

func TestServingStatus(t *testing.T) {
	for _, c := range []struct {
		message string
		status  uint64
		ok      bool
	}{
		{"\x00\x00\x00\x00\x00", 0, true},
		{"\x00\x00\x00\x00\x02\x08\x01", 1, true},
		{"\x00\x00\x00\x00\x05\x12\x01x\x08\x02", 2, true}, // a field that we do not know
		{"\x01\x00\x00\x00\x02\x08\x01", 0, false},
		{"\x00\x00\x00\x00\x03\x08\x01", 0, false},
		{"\x00\x00\x00\x00\x01\x08", 0, false},
		{"\x00\x00\x00\x00\x02\x08\xff", 0, false},
		{"", 0, false},
	} {
		got, err := servingStatus([]byte(c.message))
		if got != c.status || (err == nil) != c.ok {
			t.Errorf("%q: %d %v, want %d, ok %v", c.message, got, err, c.status, c.ok)
		}
	}
}
