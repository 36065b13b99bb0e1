package prober

import (
	"bufio"
	"context"
	"io"
	"net/http"
	"net/netip"
	"regexp"
	"testing"
	"time"

	"github.com/endpointd/endpointd/internal/echo"
)

// TestAgainstTheBuiltInImage: what the echo server is told to be is what probes find.
func TestAgainstTheBuiltInImage(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	out, in := io.Pipe()
	done := make(chan error)
	go func() { done <- echo.Run(ctx, []string{"--http=127.0.0.1:0", "--tcp=127.0.0.1:0"}, nil, in) }()
	lines := bufio.NewReader(out)
	line, err := lines.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile(`http=(\S+) tcp=(\S+)`).FindStringSubmatch(line)
	web, tcp := netip.MustParseAddrPort(found[1]), netip.MustParseAddrPort(found[2])
	rest := make(chan struct{})
	go func() { _, _ = io.Copy(io.Discard, lines); close(rest) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		_ = in.Close()
		<-rest
	})

	o := HTTPOptions{Host: web.Addr().String(), Port: web.Port(), Path: "/readyz"}
	ready := httpProbe(t, o)
	o.Path = "/healthz"
	healthy := httpProbe(t, o)
	h2c := o
	h2c.H2C = true
	for _, p := range []Probe{ready, healthy, httpProbe(t, h2c), TCP(tcp), GRPC(web, ""), GRPC(web, "liveness")} {
		if err := try(t, p, time.Second); err != nil {
			t.Error(err)
		}
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	order := func(path string) {
		t.Helper()
		resp, err := client.Get("http://" + web.String() + path)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
	}
	order("/control?ready=false")
	wantFailure(t, try(t, ready, time.Second), "HTTP probe failed with statuscode: 503")
	wantFailure(t, try(t, GRPC(web, ""), time.Second), `service unhealthy (responded with "NOT_SERVING")`)
	if err := try(t, healthy, time.Second); err != nil {
		t.Error(err)
	}
	wantFailure(t, try(t, GRPC(web, "other"), time.Second), "code = NotFound")
	order("/control?delay=1s")
	wantFailure(t, try(t, healthy, 50*time.Millisecond), "Client.Timeout exceeded while awaiting headers")
	wantFailure(t, try(t, GRPC(web, ""), 50*time.Millisecond), "timeout: health rpc did not complete within 50ms")
}
