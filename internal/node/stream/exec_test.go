package stream

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/util/exec"
)

// executors are client-go's ways to a command: what kube-apiserver uses with a node, and what it takes from clients.
var executors = map[string]func(config *rest.Config, u *url.URL) (remotecommand.Executor, error){
	"SPDY": func(config *rest.Config, u *url.URL) (remotecommand.Executor, error) {
		return remotecommand.NewSPDYExecutor(config, http.MethodPost, u)
	},
	"WebSocket v5": func(config *rest.Config, u *url.URL) (remotecommand.Executor, error) {
		return remotecommand.NewWebSocketExecutor(config, http.MethodGet, u.String())
	},
	"WebSocket v4": func(config *rest.Config, u *url.URL) (remotecommand.Executor, error) {
		return remotecommand.NewWebSocketExecutorForProtocols(config, http.MethodGet, u.String(), "v4.channel.k8s.io")
	},
}

func streamURL(config *rest.Config, path string, o remotecommand.StreamOptions, command ...string) *url.URL {
	query := url.Values{"command": command}
	for name, on := range map[string]bool{"input": o.Stdin != nil, "output": o.Stdout != nil, "error": o.Stderr != nil, "tty": o.Tty} {
		if on {
			query.Set(name, "1")
		}
	}
	u, _ := url.Parse(config.Host + path + "?" + query.Encode())
	return u
}

const webApp = "/exec/default/web/app"

func TestExec(t *testing.T) {
	r := newRig(t, nil)
	tar := make([]byte, 3<<20) // kubectl cp is a tar stream in either direction
	if _, err := rand.Read(tar); err != nil {
		t.Fatal(err)
	}
	for protocol, executor := range executors {
		for _, c := range []struct {
			name     string
			stdin    io.Reader
			noStderr bool
			command  []string
			out, err string
			code     int
			fails    string
		}{
			{name: "arguments", command: []string{"echo", "a b", "", "ü&="}, out: "a b||ü&="},
			{name: "both outputs", command: []string{"both"}, out: "to stdout", err: "to stderr"},
			{name: "exit code", command: []string{"exit", "42"}, code: 42},
			{name: "binary through stdin and stdout", stdin: bytes.NewReader(tar), command: []string{"cat"}, out: string(tar)},
			{name: "empty stdin", stdin: strings.NewReader(""), command: []string{"cat"}},
			{name: "stdin that is not read", stdin: bytes.NewReader(tar[:100]), command: []string{"exit", "0"}},
			{name: "only what was asked for", noStderr: true, command: []string{"streams"}, out: "in false err false resize false tty false"},
			{name: "no such program", command: []string{"nonsense"}, fails: "error executing command in container: no such program"},
		} {
			t.Run(protocol+"/"+c.name, func(t *testing.T) {
				if protocol == "WebSocket v4" && c.stdin != nil {
					return // that version cannot say that stdin has ended, the reason for v5
				}
				var out, errOut bytes.Buffer
				o := remotecommand.StreamOptions{Stdin: c.stdin, Stdout: &out}
				if !c.noStderr {
					o.Stderr = &errOut
				}
				e, err := executor(r.admin, streamURL(r.admin, webApp, o, c.command...))
				if err != nil {
					t.Fatal(err)
				}
				err = e.StreamWithContext(t.Context(), o)
				var exit exec.CodeExitError
				switch {
				case c.code != 0:
					if !errors.As(err, &exit) || exit.Code != c.code {
						t.Errorf("ended with %v, want exit code %d", err, c.code)
					}
				case c.fails != "":
					if err == nil || !strings.Contains(err.Error(), c.fails) {
						t.Errorf("ended with %v, want %s", err, c.fails)
					}
				case err != nil:
					t.Errorf("ended with %v", err)
				}
				if out.String() != c.out || errOut.String() != c.err {
					t.Errorf("got %d bytes (%.40q) and %q", out.Len(), out.String(), errOut.String())
				}
			})
		}
	}
}

func TestAttach(t *testing.T) {
	r := newRig(t, nil)
	for protocol, executor := range executors {
		for _, stdin := range []string{"", "some input"} {
			if protocol == "WebSocket v4" && stdin != "" {
				continue
			}
			var out bytes.Buffer
			o := remotecommand.StreamOptions{Stdout: &out}
			if stdin != "" {
				o.Stdin = strings.NewReader(stdin)
			}
			e, err := executor(r.admin, streamURL(r.admin, "/attach/default/web/uid-web/app", o))
			if err != nil {
				t.Fatal(err)
			}
			if err := e.StreamWithContext(t.Context(), o); err != nil {
				t.Errorf("%s: %v", protocol, err)
			}
			if want := "attached to app of uid-web: " + stdin; out.String() != want {
				t.Errorf("%s: got %q, want %q", protocol, out.String(), want)
			}
		}
	}
}

// sizes are those of a terminal, one after the other.
type sizes chan remotecommand.TerminalSize

func (s sizes) Next() *remotecommand.TerminalSize {
	size, ok := <-s
	if !ok {
		return nil
	}
	return &size
}

func TestTerminal(t *testing.T) {
	r := newRig(t, nil)
	for protocol, executor := range executors {
		var out bytes.Buffer
		queue := make(sizes, 2)
		queue <- remotecommand.TerminalSize{Width: 1, Height: 7}
		queue <- remotecommand.TerminalSize{Width: 2, Height: 8}
		o := remotecommand.StreamOptions{Stdout: &out, Tty: true, TerminalSizeQueue: queue}
		e, err := executor(r.admin, streamURL(r.admin, webApp, o, "size"))
		if err != nil {
			t.Fatal(err)
		}
		err = e.StreamWithContext(t.Context(), o)
		close(queue)
		if err != nil || out.String() != "1x7 2x8 " {
			t.Errorf("%s: got %q, %v", protocol, out.String(), err)
		}
	}
}

// once closes a channel when the first byte is written.
type once struct {
	first chan struct{}
	begun bool
}

func (o *once) Write(p []byte) (int, error) {
	if !o.begun && len(p) > 0 {
		o.begun = true
		close(o.first)
	}
	return len(p), nil
}

func TestClientThatLeavesEndsItsCommand(t *testing.T) {
	r := newRig(t, nil)
	for protocol, executor := range executors {
		t.Run(protocol, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			out := &once{first: make(chan struct{})}
			o := remotecommand.StreamOptions{Stdout: out}
			e, err := executor(r.admin, streamURL(r.admin, webApp, o, "wait"))
			if err != nil {
				t.Fatal(err)
			}
			left := make(chan error, 1)
			go func() { left <- e.StreamWithContext(ctx, o) }()
			await(t, out.first, "the command to begin")
			cancel()
			if err := await(t, r.runtime.ended, "the command to end"); !errors.Is(err, context.Canceled) {
				t.Errorf("the command ended with %v", err)
			}
			if await(t, left, "the client to end") == nil {
				t.Error("a client that was cancelled tells of no error")
			}
		})
	}
}

func TestServerThatEndsEndsCommands(t *testing.T) {
	for protocol, executor := range executors {
		t.Run(protocol, func(t *testing.T) {
			r := newRig(t, nil)
			out := &once{first: make(chan struct{})}
			o := remotecommand.StreamOptions{Stdout: out}
			e, err := executor(r.admin, streamURL(r.admin, webApp, o, "wait"))
			if err != nil {
				t.Fatal(err)
			}
			left := make(chan error, 1)
			go func() { left <- e.StreamWithContext(t.Context(), o) }()
			await(t, out.first, "the command to begin")
			if err := r.stop(); err != nil {
				t.Error(err)
			}
			select {
			case err := <-r.runtime.ended:
				if !errors.Is(err, context.Canceled) {
					t.Errorf("the command ended with %v", err)
				}
			default:
				t.Error("Serve returned while a command ran")
			}
			if await(t, left, "the client to end") == nil {
				t.Error("the client takes an end of the server for one of the command")
			}
		})
	}
}

// await receives from a channel, within reason.
func await[T any](t *testing.T, c <-chan T, what string) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(20 * time.Second):
		t.Fatalf("waited in vain for %s", what)
	}
	return v
}

func TestExecRefusals(t *testing.T) {
	r := newRig(t, nil)
	waiting := podOf("slow", corev1.ContainerStatus{Name: "app", State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ErrImagePull"}}})
	ended := podOf("ended", corev1.ContainerStatus{Name: "app", State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{}}})
	elsewhere := podOf("vm", runningStatus("vm", "app", 0))
	elsewhere.Spec.RuntimeClassName = new(externalClass)
	for _, pod := range []*corev1.Pod{waiting, ended, elsewhere} {
		r.pods.set(pod)
	}
	for _, c := range []struct {
		path string
		code int
		text string
	}{
		{webApp + "?output=1", 400, "you must specify at least 1 command for the container"},
		{webApp + "?command=x", 400, "you must specify at least 1 of stdin, stdout, stderr"},
		{webApp + "?command=x&output=1", 400, "unable to upgrade: "},
		{"/exec/default/none/app?command=x&output=1", 404, `pod "none" does not exist`},
		{"/exec/default/web/another-uid/app?command=x&output=1", 404, `pod "web" with UID another-uid does not exist`},
		{"/exec/default/web/none?command=x&output=1", 404, `container not found ("none")`},
		{"/exec/default/slow/app?command=x&output=1", 400, `container "app" in pod "slow" is waiting to start: image can't be pulled`},
		{"/exec/default/ended/app?command=x&output=1", 400, `container "app" in pod "ended" is terminated`},
		{"/attach/default/vm/app?output=1", 400, `container "app" in pod "vm" runs elsewhere`},
	} {
		if code, text := do(t, r.admin, http.MethodPost, c.path); code != c.code || !strings.Contains(text, c.text) {
			t.Errorf("%s: got %d %q, want %d %q", c.path, code, text, c.code, c.text)
		}
	}
}

func TestRun(t *testing.T) {
	r := newRig(t, nil)
	for _, c := range []struct {
		cmd  string
		code int
		text string
	}{
		{"both", 200, "to stdoutto stderr"},
		{"exit+3", 500, `command "exit 3": exit code 3: `},
		{"", 400, "query parameter cmd is required"},
	} {
		if code, text := do(t, r.admin, http.MethodPost, "/run/default/web/app?cmd="+c.cmd); code != c.code || text != c.text {
			t.Errorf("%s: got %d %q", c.cmd, code, text)
		}
	}
}

func TestStreamsAreLimited(t *testing.T) {
	r := newRig(t, func(o *Options) { o.MaxStreams = 1 })
	ctx, cancel := context.WithCancel(t.Context())
	out := &once{first: make(chan struct{})}
	o := remotecommand.StreamOptions{Stdout: out}
	e, err := executors["SPDY"](r.admin, streamURL(r.admin, webApp, o, "wait"))
	if err != nil {
		t.Fatal(err)
	}
	left := make(chan error, 1)
	go func() { left <- e.StreamWithContext(ctx, o) }()
	await(t, out.first, "the command to begin")
	if code, text := do(t, r.admin, http.MethodGet, "/containerLogs/default/web/app"); code != http.StatusTooManyRequests {
		t.Errorf("one too many: got %d %q", code, text)
	}
	cancel()
	if err := errors.Join(await(t, left, "the client to end"), await(t, r.runtime.ended, "the command to end")); !errors.Is(err, context.Canceled) {
		t.Errorf("ended with %v", err)
	}
}

// stalled never reads on after its first byte.
type stalled struct {
	first   chan struct{}
	release chan struct{}
	once    sync.Once
}

func (s *stalled) Write(p []byte) (int, error) {
	s.once.Do(func() { close(s.first) })
	<-s.release
	return len(p), nil
}

func TestServerEndsThoughClientsDoNotRead(t *testing.T) {
	r := newRig(t, nil)
	lines := make([]string, 200_000)
	for i := range lines {
		lines[i] = "stdout " + strings.Repeat("x", 90)
	}
	r.log(t, "web", "app", 1, lines...)
	var clients sync.WaitGroup
	release := make(chan struct{})
	for _, executor := range executors {
		out := &stalled{first: make(chan struct{}), release: release}
		o := remotecommand.StreamOptions{Stdout: out}
		e, err := executor(r.admin, streamURL(r.admin, webApp, o, "flood"))
		if err != nil {
			t.Fatal(err)
		}
		clients.Go(func() { _ = e.StreamWithContext(t.Context(), o) })
		await(t, out.first, "the command to begin")
	}
	reader, end := r.follow(t, t.Context())
	if !reader.Scan() {
		t.Error(reader.Err())
	}
	began := time.Now()
	if err := r.stop(); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > 3*endGrace {
		t.Errorf("the server took %v to end", took)
	}
	for range executors {
		if err := await(t, r.runtime.ended, "a command to end"); err == nil {
			t.Error("a command whose output went nowhere was told of no error")
		}
	}
	close(release)
	clients.Wait()
	end()
}
