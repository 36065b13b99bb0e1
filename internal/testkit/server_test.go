package testkit

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// play is what the test binary does in the place of endpointd.
func play(part string, args []string) int {
	if slices.Contains(args, "kubectl") {
		in, _ := io.ReadAll(os.Stdin)
		fmt.Printf("%s KUBECONFIG=%s stdin=%s\n", strings.Join(args, " "), os.Getenv("KUBECONFIG"), in)
		if part == "refuse" {
			fmt.Fprintln(os.Stderr, "no such thing")
			return 1
		}
		return 0
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	fmt.Fprintln(os.Stderr, "starting, home", os.Getenv("HOME"))
	switch part {
	case "crash":
		fmt.Fprintln(os.Stderr, "data folder in use")
		return 3
	case "mute":
		<-stop
		return 0
	}
	fmt.Println("endpointd is ready:", strings.Join(args, " "))
	<-stop
	fmt.Fprintln(os.Stderr, "stopping")
	if part == "unclean" {
		return 1
	}
	return 0
}

func fake(part string) ServerOptions {
	return ServerOptions{
		Binary: "/proc/self/exe",
		Env:    []string{"TESTKIT_PART=" + part},
		Ready:  20 * time.Second,
	}
}

func TestServerStartsStopsAndStartsAgain(t *testing.T) {
	t.Parallel()
	options := fake("server")
	options.Args = []string{"--node-port-range", "30000-30100"}
	s := Server(t, options)
	if s.ReadyAfter <= 0 || s.PID <= 0 {
		t.Errorf("ready after %v with pid %d", s.ReadyAfter, s.PID)
	}
	want := "endpointd is ready: server --data-dir " + s.DataDir + " --listen " + s.Listen + " --node-port-range 30000-30100\n"
	if !strings.Contains(s.Log(), want) {
		t.Errorf("log %q, want %q in it", s.Log(), want)
	}
	if host, port, err := net.SplitHostPort(s.Listen); err != nil || host != "127.0.0.1" || port == "0" {
		t.Errorf("listens on %s", s.Listen)
	}
	if s.Kubeconfig != filepath.Join(s.DataDir, "admin.kubeconfig") {
		t.Errorf("kubeconfig %s", s.Kubeconfig)
	}
	if home, _ := os.UserHomeDir(); strings.Contains(s.Log(), "home "+home+"\n") {
		t.Error("the server sees the user's home folder")
	}
	first := s.PID
	s.Stop()
	Await(t, 5*time.Second, func() error { return gone(first) })
	s.Start()
	s.Kill()
	if n := strings.Count(s.Log(), readyPrefix); n != 2 {
		t.Errorf("%d ready lines after two starts:\n%s", n, s.Log())
	}
}

func TestServerEndsWithItsTest(t *testing.T) {
	t.Parallel()
	var pid int
	t.Run("test", func(t *testing.T) { pid = Server(t, fake("server")).PID })
	if err := gone(pid); err != nil {
		t.Error(err)
	}
}

func TestServerThatDoesNotStart(t *testing.T) {
	t.Parallel()
	for part, want := range map[string]string{
		"crash": "data folder in use",
		"mute":  "no line",
	} {
		t.Run(part, func(t *testing.T) {
			t.Parallel()
			options := fake(part)
			if part == "mute" {
				options.Ready = 50 * time.Millisecond
			}
			r := record(t, func(t testing.TB) { Server(t, options) })
			if !strings.Contains(r.failed, want) {
				t.Errorf("failed with %q, want %q", r.failed, want)
			}
		})
	}
}

func TestStopWantsExitCodeZero(t *testing.T) {
	t.Parallel()
	r := record(t, func(t testing.TB) { Server(t, fake("unclean")).Stop() })
	if !strings.Contains(r.failed, "exit status 1") {
		t.Errorf("failed with %q, want the exit status", r.failed)
	}
}

func TestKubectl(t *testing.T) { // not parallel: sets the environment that kubectl inherits
	s := Server(t, fake("server"))
	t.Setenv("TESTKIT_PART", "kubectl")
	k := s.BuiltinKubectl()
	got := k.WithInput("kind: Service").Run("apply", "-f", "-")
	if want := "kubectl apply -f - KUBECONFIG=" + s.Kubeconfig + " stdin=kind: Service\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	t.Setenv("TESTKIT_PART", "refuse")
	if r := record(t, func(t testing.TB) { k.In(t).Run("get", "ep") }); !strings.Contains(r.failed, "get ep") ||
		!strings.Contains(r.failed, "no such thing") {
		t.Errorf("failed with %q, want the command and its standard error", r.failed)
	}
}

// gone returns nil when no process has that id. A child that nobody waited for still has one.
func gone(pid int) error {
	if _, err := os.Stat("/proc/" + strconv.Itoa(pid)); err == nil {
		return fmt.Errorf("process %d is still there", pid)
	}
	return nil
}
