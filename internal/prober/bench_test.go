package prober

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/endpointd/endpointd/internal/testkit"
)

// targetEnv makes the test binary serve what is probed, so that its work is not counted as ours.
const targetEnv = "PROBER_TEST_TARGET"

func TestMain(m *testing.M) {
	if os.Getenv(targetEnv) != "" {
		target()
		return
	}
	testkit.Main(m)
}

// target serves HTTP, which is TCP too, and gRPC; prints both addresses and ends with its standard input.
func target() {
	listen := func() net.Listener {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			panic(err)
		}
		return l
	}
	web, rpc := listen(), listen()
	server := grpc.NewServer()
	healthpb.RegisterHealthServer(server, health.NewServer())
	go func() { _ = server.Serve(rpc) }()
	go func() { _ = http.Serve(web, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})) }()
	fmt.Println(web.Addr(), rpc.Addr())
	_, _ = io.Copy(io.Discard, os.Stdin)
}

func startTarget(b *testing.B) (web, rpc netip.AddrPort) {
	b.Helper()
	self, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	cmd := exec.CommandContext(b.Context(), self)
	cmd.Env = append(os.Environ(), targetEnv+"=1")
	in, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = in.Close(); _ = cmd.Wait() })
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		b.Fatal(err)
	}
	addresses := strings.Fields(line)
	return netip.MustParseAddrPort(addresses[0]), netip.MustParseAddrPort(addresses[1])
}

// BenchmarkThousandASecond measures what 1,000 containers cost that are probed each second: cores of this process, and
// microseconds of CPU a probe. `go test -run - -bench Thousand -benchtime 1x ./internal/prober`
func BenchmarkThousandASecond(b *testing.B) {
	web, rpc := startTarget(b)
	get, err := HTTP(HTTPOptions{Host: web.Addr().String(), Port: web.Port(), Path: "/healthz"})
	if err != nil {
		b.Fatal(err)
	}
	// The peers make their probes as the kubelet does: net/http's Transport and a grpc.ClientConn, new for each probe.
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DisableCompression: true}}
	stock := func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+web.String()+"/healthz", nil)
		if err != nil {
			return err
		}
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		return resp.Body.Close()
	}
	stockRPC := func(ctx context.Context) error {
		conn, err := grpc.NewClient(rpc.String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			return err
		}
		_, err = healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{})
		return errors.Join(err, conn.Close())
	}
	nothing := Probe(func(context.Context) error { return nil })
	for _, c := range []struct {
		name  string
		probe Probe
	}{{"none", nothing}, {"http", get}, {"tcp", TCP(web)}, {"grpc", GRPC(rpc, "")}, {"peer-http", stock}, {"peer-grpc", stockRPC}} {
		b.Run(c.name, func(b *testing.B) {
			for b.Loop() {
				measure(b, c.probe)
			}
		})
	}
}

func measure(b *testing.B, probe Probe) {
	const n, seconds = 1000, 5
	var made atomic.Int64
	p := New()
	for i := range n {
		err := p.Add(Key{"uid", fmt.Sprint(i), Readiness}, Spec{
			Probe:   func(ctx context.Context) error { made.Add(1); return probe(ctx) },
			Started: time.Now().Add(-time.Hour), Period: time.Second, Timeout: time.Second, SuccessThreshold: 1, FailureThreshold: 3,
			OnFailure: func(message string, _ int) { b.Error(message) },
		})
		if err != nil {
			b.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(b.Context())
	done := make(chan error)
	go func() { done <- p.Run(ctx) }()
	<-time.After(time.Second) // the first period is the one in which they spread
	made.Store(0)
	before := spent(b)
	<-time.After(seconds * time.Second)
	cpu, probes := spent(b)-before, made.Load()
	cancel()
	if err := <-done; err != nil {
		b.Error(err)
	}
	b.ReportMetric(cpu.Seconds()/seconds, "cores")
	b.ReportMetric(float64(cpu.Microseconds())/float64(probes), "µs-cpu/probe")
	b.ReportMetric(float64(probes)/seconds, "probes/s")
}

// spent is this process's CPU time.
func spent(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
