package echo

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestLargeBodiesAndHeadersAreRefused(t *testing.T) {
	s := serve(t)
	if code, body := s.do(t, "PUT", "/", "", strings.Repeat("x", maxBody)); code != 200 {
		t.Errorf("1 MiB: %d %s", code, body)
	}
	if code, _ := s.do(t, "PUT", "/", "", strings.Repeat("x", maxBody+1)); code != http.StatusRequestEntityTooLarge {
		t.Errorf("more: %d", code)
	}
	conn, err := net.Dial("tcp", strings.TrimPrefix(s.http, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	go func() {
		_, _ = fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: x\r\nX: %s\r\n\r\n", strings.Repeat("x", 1<<20))
	}()
	first := make([]byte, 12)
	if _, err := io.ReadFull(conn, first); err != nil || string(first) != "HTTP/1.1 431" {
		t.Errorf("large header: %q %v", first, err)
	}
}

func TestConnectionsBeyondTheLimitWait(t *testing.T) {
	s := serve(t, "--max-connections=2")
	var open []net.Conn
	defer func() {
		for _, c := range open {
			_ = c.Close()
		}
	}()
	ask := func(c net.Conn, within time.Duration) error {
		if _, err := io.WriteString(c, "x\n"); err != nil {
			return err
		}
		if err := c.SetReadDeadline(time.Now().Add(within)); err != nil {
			return err
		}
		_, err := io.ReadFull(c, make([]byte, len("web-1 x\n")))
		return err
	}
	for i := range 3 {
		c, err := net.Dial("tcp", s.tcp)
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, c)
		if i < 2 {
			if err := ask(c, 5*time.Second); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := ask(open[2], 50*time.Millisecond); err == nil {
		t.Error("the third connection is served")
	}
	_ = open[0].Close()
	if err := open[2].SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(open[2], make([]byte, len("web-1 x\n"))); err != nil {
		t.Errorf("the third connection, when there is room: %v", err)
	}
	s.want(t, "/", 200) // each address has a limit of its own
}

func TestBadFlags(t *testing.T) {
	for _, c := range []struct{ args, env, want string }{
		{"--http=8080", "", "write :8080"},
		{"--http=none --tcp=none", "", "nothing to listen on"},
		{"--status=42", "", "200 to 599"},
		{"--exit-code=-1", "", "0 to 255"},
		{"--max-connections=0", "", "1 or more"},
		{"extra", "", `unexpected argument "extra"`},
		{"", "PORT=0", "PORT=0: give a port from 1 to 65535"},
		{"", "TCP_PORT=http", "TCP_PORT=http"},
		{"", "ECHO_DELAY=soon", "ECHO_DELAY=soon"},
	} {
		err := Run(t.Context(), strings.Fields(c.args), []string{c.env}, io.Discard)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s %s: %v, want %q", c.args, c.env, err, c.want)
		}
	}
	var out bytes.Buffer
	if err := Run(t.Context(), []string{"--help"}, nil, &out); err != nil || !strings.Contains(out.String(), "-fail-after") {
		t.Errorf("--help: %v\n%s", err, out.String())
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	err = Run(t.Context(), []string{"--tcp=127.0.0.1:0", "--http=" + l.Addr().String()}, nil, io.Discard)
	if err == nil || !strings.Contains(err.Error(), "address already in use; give another port") {
		t.Errorf("port taken: %v", err)
	}
}

func TestEnvironmentIsADefaultForFlags(t *testing.T) {
	o, err := parse([]string{"--delay=2s", "--tcp=:1"}, []string{
		"PORT=9090", "ECHO_DELAY=1s", "ECHO_FAIL_AFTER=3s", "ECHO_TCP=:5", "ECHO_UDP=:6", "HOSTNAME=h",
	}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if o.http.String() != ":9090" || o.tcp.String() != ":1" || o.udp.String() != ":6" || o.delay != 2*time.Second ||
		o.failAfter != 3*time.Second || o.who.Pod != "h" {
		t.Errorf("%+v", o)
	}
	o, err = parse(nil, []string{"PORT=9090"}, io.Discard)
	if err != nil || o.tcp.String() != ":9091" {
		t.Errorf("TCP on %q, %v", o.tcp.String(), err)
	}
}

func TestStartDelayEndsWithTheProcess(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Run(ctx, []string{"--start-delay=1h"}, nil, io.Discard); err != nil {
		t.Error(err)
	}
}

// TestMainAnswersSignals runs the real process.
func TestMainAnswersSignals(t *testing.T) {
	for _, sig := range []os.Signal{syscall.SIGTERM, syscall.SIGINT} {
		cmd, out := process(t, "--http=127.0.0.1:0", "--tcp=127.0.0.1:0")
		out.wait(t, "listening")
		if err := cmd.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("%v: %v", sig, err)
		}
	}
	cmd, _ := process(t, "--http=127.0.0.1:0", "--tcp=127.0.0.1:0", "--exit-after=1ms", "--exit-code=3")
	if err := cmd.Wait(); cmd.ProcessState.ExitCode() != 3 {
		t.Errorf("%v, want exit code 3", err)
	}
}

// process starts the test binary as the program.
func process(t testing.TB, args ...string) (*exec.Cmd, *output) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	out := &output{changed: make(chan struct{})}
	cmd := exec.CommandContext(t.Context(), self, args...)
	cmd.Env = []string{mainEnv + "=1", "POD_NAME=p"}
	cmd.Stdout = out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd, out
}

// TestOnlyTheStandardLibrary: the package takes over while those of Kubernetes are being initialised, see package reexec/late.
func TestOnlyTheStandardLibrary(t *testing.T) {
	const list = `{{if not .Standard}}{{.ImportPath}}{{end}}`
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", "-f", list, ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	const want = "github.com/endpointd/endpointd/internal/pages\ngithub.com/endpointd/endpointd/internal/echo"
	if got := strings.TrimSpace(string(out)); got != want {
		t.Errorf("depends on:\n%s\nwant:\n%s", got, want)
	}
}
