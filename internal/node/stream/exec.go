package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream/wsstream"
	utilexec "k8s.io/utils/exec"

	"github.com/endpointd/endpointd/internal/node/container"
)

const (
	commandParam = "command" // of /exec, once for each argument
	maxRunOutput = 4 << 20   // bytes of output that /run keeps
)

// A task works on the streams of a container, and returns a utilexec.CodeExitError for an exit code other than zero.
type task func(ctx context.Context, s container.Streams) error

// exec runs a command in a container.
func (s *Server) exec(w http.ResponseWriter, r *http.Request) {
	args := r.URL.Query()[commandParam]
	if len(args) == 0 {
		writeError(w, http.StatusBadRequest, "you must specify at least 1 command for the container")
		return
	}
	s.remoteCommand(w, r, "exec", func(pod *corev1.Pod, name string, tty bool) task {
		return s.command(container.ExecOptions{Pod: string(pod.UID), Container: name, Args: args, TTY: tty})
	})
}

func (s *Server) command(o container.ExecOptions) task {
	return func(ctx context.Context, streams container.Streams) error {
		code, err := s.o.Runtime.Exec(ctx, o, streams)
		if err == nil && code != 0 {
			return utilexec.CodeExitError{Err: fmt.Errorf("exit code %d", code), Code: code}
		}
		return err
	}
}

// attach connects to the streams of a container.
func (s *Server) attach(w http.ResponseWriter, r *http.Request) {
	s.remoteCommand(w, r, "attach", func(pod *corev1.Pod, name string, _ bool) task {
		return func(ctx context.Context, streams container.Streams) error {
			return s.o.Runtime.Attach(ctx, string(pod.UID), name, streams)
		}
	})
}

// remoteCommand speaks the protocol of exec and attach.
func (s *Server) remoteCommand(w http.ResponseWriter, r *http.Request, verb string, make func(*corev1.Pod, string, bool) task) {
	o, err := remotecommand.NewOptions(r)
	if err != nil {
		writeError(w, http.StatusBadRequest, "%s", err)
		return
	}
	pod, name, err := s.running(r)
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
	began := time.Now()
	s.o.Logger.InfoContext(r.Context(), "a client is connected to a container", "verb", verb,
		"user", r.TLS.PeerCertificates[0].Subject.CommonName, "pod", pod.Namespace+"/"+pod.Name, "container", name)
	session := newSession(w, r, endGrace)
	defer session.end()
	r = r.WithContext(session.ctx)
	run := make(pod, name, o.TTY)
	a := adapter{run: run, o: *o}
	switch {
	case wsstream.IsWebSocketRequestWithStreamCloseProtocol(r):
		s.serveV5(session, r, verb, a)
	case verb == "exec":
		remotecommand.ServeExec(session, r, a, pod.Name, string(pod.UID), name, nil, o, s.o.IdleTimeout,
			remotecommand.DefaultStreamCreationTimeout, remotecommand.SupportedStreamingProtocols)
	default:
		remotecommand.ServeAttach(session, r, a, pod.Name, string(pod.UID), name, o, s.o.IdleTimeout,
			remotecommand.DefaultStreamCreationTimeout, remotecommand.SupportedStreamingProtocols)
	}
	s.o.Logger.DebugContext(r.Context(), "a client has left a container", "verb", verb,
		"pod", pod.Namespace+"/"+pod.Name, "container", name, "took", time.Since(began))
}

// adapter makes a task what the upstream library calls.
type adapter struct {
	run task
	o   remotecommand.Options
}

// ExecInContainer implements remotecommand.Executor.
func (a adapter) ExecInContainer(ctx context.Context, _, _, _ string, _ []string, in io.Reader, out, err io.WriteCloser, _ bool, resize <-chan remotecommand.TerminalSize, _ time.Duration) error {
	return a.do(ctx, in, out, err, resize)
}

// AttachContainer implements remotecommand.Attacher.
func (a adapter) AttachContainer(ctx context.Context, _, _, _ string, in io.Reader, out, err io.WriteCloser, _ bool, resize <-chan remotecommand.TerminalSize) error {
	return a.do(ctx, in, out, err, resize)
}

// do runs the task with the streams that the client asked for. The library gives others too, which lead nowhere.
func (a adapter) do(ctx context.Context, in io.Reader, out, errOut io.Writer, resize <-chan remotecommand.TerminalSize) error {
	err := a.connect(ctx, in, out, errOut, resize)
	if err != nil && errors.Is(context.Cause(ctx), errGone) {
		return nil // nobody is there to be told, and it is no fault to log
	}
	return err
}

func (a adapter) connect(ctx context.Context, in io.Reader, out, errOut io.Writer, resize <-chan remotecommand.TerminalSize) error {
	var s container.Streams
	if a.o.Stdin {
		s.Stdin = in
	}
	if a.o.Stdout {
		s.Stdout = out
	}
	if a.o.Stderr {
		s.Stderr = errOut
	}
	if !a.o.TTY || resize == nil {
		return a.run(ctx, s)
	}
	sizes := make(chan container.Size)
	s.Resize = sizes
	ctx, cancel := context.WithCancel(ctx)
	var converter sync.WaitGroup
	converter.Go(func() { convertSizes(ctx, resize, sizes) })
	defer converter.Wait()
	defer cancel()
	return a.run(ctx, s)
}

func convertSizes(ctx context.Context, from <-chan remotecommand.TerminalSize, to chan<- container.Size) {
	defer close(to)
	for {
		select {
		case size, ok := <-from:
			if !ok {
				return
			}
			select {
			case to <- container.Size{Columns: size.Width, Rows: size.Height}:
			case <-ctx.Done():
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

// run runs a command without input and answers with its output.
func (s *Server) run(w http.ResponseWriter, r *http.Request) {
	pod, name, err := s.running(r)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	args := strings.Fields(r.URL.Query().Get("cmd")) // this endpoint has always had one parameter, cut at spaces
	if len(args) == 0 {
		writeError(w, http.StatusBadRequest, "query parameter cmd is required")
		return
	}
	release, ok := s.acquire()
	if !ok {
		s.tooMany(w)
		return
	}
	defer release()
	out := &limited{left: maxRunOutput}
	err = s.command(container.ExecOptions{Pod: string(pod.UID), Container: name, Args: args})(r.Context(), container.Streams{Stdout: out, Stderr: out})
	var exit utilexec.CodeExitError
	switch {
	case errors.As(err, &exit):
		writeError(w, http.StatusInternalServerError, "command %q: %v: %s", short(strings.Join(args, " ")), exit, out.text.String())
	case err != nil:
		s.fail(w, r, err)
	default:
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = io.WriteString(w, out.text.String()) // a client that has left needs no answer
	}
}

// limited keeps the beginning of what is written to it, by two writers at a time.
type limited struct {
	mu   sync.Mutex // guards all below
	text strings.Builder
	left int
}

func (l *limited) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	kept := p[:min(len(p), l.left)]
	l.left -= len(kept)
	l.text.Write(kept)
	return len(p), nil
}
