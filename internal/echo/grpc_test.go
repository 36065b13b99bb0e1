package echo

import (
	"context"
	"io"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding/gzip"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

func dial(t *testing.T, s *server) (healthpb.HealthClient, context.Context) {
	t.Helper()
	conn, err := grpc.NewClient(strings.TrimPrefix(s.http, "http://"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	t.Cleanup(cancel)
	return healthpb.NewHealthClient(conn), ctx
}

func TestHealthCheck(t *testing.T) {
	s := serve(t)
	client, ctx := dial(t, s)
	check := func(service string, want healthpb.HealthCheckResponse_ServingStatus) {
		t.Helper()
		resp, err := client.Check(ctx, &healthpb.HealthCheckRequest{Service: service})
		if err != nil || resp.Status != want {
			t.Errorf("service %q: %v %v, want %v", service, resp, err, want)
		}
	}
	for _, service := range []string{"", "readiness", "liveness"} {
		check(service, healthpb.HealthCheckResponse_SERVING)
	}
	s.want(t, "/control?ready=false", 200)
	check("", healthpb.HealthCheckResponse_NOT_SERVING)
	check("liveness", healthpb.HealthCheckResponse_SERVING)
	s.want(t, "/fail", 200)
	check("liveness", healthpb.HealthCheckResponse_NOT_SERVING)

	for _, c := range []struct {
		service string
		option  grpc.CallOption
		code    codes.Code
	}{
		{"other", nil, codes.NotFound},
		{strings.Repeat("x", 2*maxMessage), nil, codes.InvalidArgument},
		{"zip", grpc.UseCompressor(gzip.Name), codes.InvalidArgument},
	} {
		var options []grpc.CallOption
		if c.option != nil {
			options = append(options, c.option)
		}
		_, err := client.Check(ctx, &healthpb.HealthCheckRequest{Service: c.service}, options...)
		if status.Code(err) != c.code {
			t.Errorf("service %.10q: %v, want %v", c.service, err, c.code)
		}
	}
	if _, err := client.List(ctx, &healthpb.HealthListRequest{}); status.Code(err) != codes.Unimplemented {
		t.Errorf("List: %v, want unimplemented", err)
	}
}

func TestHealthWatch(t *testing.T) {
	s := serve(t)
	client, ctx := dial(t, s)
	watch := func(service string) func(want healthpb.HealthCheckResponse_ServingStatus) {
		t.Helper()
		stream, err := client.Watch(ctx, &healthpb.HealthCheckRequest{Service: service})
		if err != nil {
			t.Fatal(err)
		}
		return func(want healthpb.HealthCheckResponse_ServingStatus) {
			t.Helper()
			resp, err := stream.Recv()
			if err != nil || resp.Status != want {
				t.Errorf("%q: %v %v, want %v", service, resp, err, want)
			}
		}
	}
	next, none := watch(""), watch("none")
	next(healthpb.HealthCheckResponse_SERVING)
	none(healthpb.HealthCheckResponse_SERVICE_UNKNOWN)
	s.want(t, "/control?ready=false", 200)
	next(healthpb.HealthCheckResponse_NOT_SERVING)
	s.want(t, "/control?delay=1ms", 200) // changes nothing about that
	s.want(t, "/control?ready=true", 200)
	next(healthpb.HealthCheckResponse_SERVING)
	s.stop() // a stream that never ends does not hold up the end
	next(healthpb.HealthCheckResponse_NOT_SERVING)
	if err := <-s.done; err != nil {
		t.Error(err)
	}
}

func TestReadService(t *testing.T) {
	for _, c := range []struct{ body, want string }{
		{"", "no message"},
		{"\x00\x00\x00\x00\x09half", "half a message"},
		{"\x00\xff\xff\xff\xff", "at most 4096"},
		{"\x01\x00\x00\x00\x00", "compressed"},
		{"\x00\x00\x00\x00\x03\x0a\x05x", "not protobuf"},
		{"\x00\x00\x00\x00\x03\x0a\x01\xff", "not protobuf"},
	} {
		if _, err := readService(strings.NewReader(c.body)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %v, want %q", c.body, err, c.want)
		}
	}
}

// FuzzParseService: what the real library reads is read the same, and nothing panics.
func FuzzParseService(f *testing.F) {
	for _, seed := range []string{"", "\x0a\x01x", "\x0a\x00", "\x10\x01\x0a\x02hi", "\x0d\x00\x00\x00\x00", "\x09", "\x0a\xff\xff\xff\xff\x0f", "\x13\x14"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, message []byte) {
		got, err := parseService(message)
		var want healthpb.HealthCheckRequest
		if err == nil && proto.Unmarshal(message, &want) == nil && got != want.Service {
			t.Errorf("%q: %q, want %q", message, got, want.Service)
		}
		if _, err := readService(io.MultiReader(strings.NewReader("\x00\x00\x00"), strings.NewReader(string(message)))); err == nil && len(message) < 2 {
			t.Error("a message out of nothing")
		}
	})
}
