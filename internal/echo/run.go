package echo

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/endpointd/endpointd/internal/pages"
)

// ExitError is the code that the process was told to exit with.
type ExitError struct{ Code int }

func (e *ExitError) Error() string { return fmt.Sprintf("told to exit with %d", e.Code) }

// Main is the process, with the arguments of os.Args; it returns the exit code.
func Main() int {
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(2)
	}
	debug.SetGCPercent(50)
	debug.SetMemoryLimit(32 << 20)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	err := run(ctx, os.Args[1:], os.Environ(), os.Stdout, pages.Drop)
	var told *ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &told):
		return told.Code
	}
	fmt.Fprintln(os.Stderr, "endpointd-echo:", err)
	return 1
}

// Run serves until ctx ends, and then until open requests have ended or the drain is over. It returns nil then, an [*ExitError] when it
// was told to exit, or what went wrong. args are without the program's name, env is like that of [os.Environ].
func Run(ctx context.Context, args, env []string, stdout io.Writer) error {
	return run(ctx, args, env, stdout, func() {})
}

// settleTime is when a process that has started does no more than it will always do.
const settleTime = time.Second

// run is Run, and calls settled when the server has served for a moment.
func run(ctx context.Context, args, env []string, stdout io.Writer, settled func()) error {
	o, err := parse(args, env, stdout)
	if errors.Is(err, flag.ErrHelp) {
		return nil
	}
	if err != nil {
		return err
	}
	if !sleep(ctx, o.startDelay) {
		return nil
	}
	sockets, err := open(ctx, o)
	if err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(stdout, nil))
	log.Info("listening", "pod", o.who.Pod, "http", addresses(sockets.http), "tcp", addresses(sockets.tcp), "udp", packets(sockets.udp))
	r := &running{settled: settled, o: o, state: newState(o), log: log, exit: make(chan int, 1), failed: make(chan error, 1)}
	r.web = newWeb(o, r.state, r.exit, log)
	return r.serve(ctx, sockets)
}

// sockets are what is listened on.
type sockets struct {
	http, tcp []net.Listener
	udp       []*net.UDPConn
}

// open opens all sockets, or none.
func open(ctx context.Context, o *options) (s sockets, err error) {
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	var config net.ListenConfig
	for _, kind := range []struct {
		to   *[]net.Listener
		from list
	}{{&s.http, o.http}, {&s.tcp, o.tcp}} {
		for _, at := range kind.from.values {
			l, err := config.Listen(ctx, "tcp", at)
			if err != nil {
				return s, fmt.Errorf("%w; give another port with PORT, TCP_PORT, --http or --tcp", err)
			}
			*kind.to = append(*kind.to, limit(l, o.connections))
		}
	}
	for _, at := range o.udp.values {
		c, err := listenUDP(ctx, "udp", at)
		if err != nil {
			return s, fmt.Errorf("%w; give another port with TCP_PORT or --udp", err)
		}
		s.udp = append(s.udp, c)
	}
	return s, nil
}

func (s sockets) close() {
	for _, l := range append(s.http, s.tcp...) {
		_ = l.Close()
	}
	for _, c := range s.udp {
		_ = c.Close()
	}
}

func addresses(all []net.Listener) string {
	var at []string
	for _, l := range all {
		at = append(at, l.Addr().String())
	}
	return strings.Join(at, ",")
}

func packets(all []*net.UDPConn) string {
	var at []string
	for _, c := range all {
		at = append(at, c.LocalAddr().String())
	}
	return strings.Join(at, ",")
}

// running is the server while it serves.
type running struct {
	o       *options
	state   *state
	web     *web
	log     *slog.Logger
	settled func()
	exit    chan int   // somebody told us to exit
	failed  chan error // the first thing that went wrong
}

// serve owns all goroutines: it waits for them before it returns.
func (r *running) serve(ctx context.Context, s sockets) error {
	var all sync.WaitGroup
	defer all.Wait()
	// What serves lives on while it drains.
	live, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	r.web.server.BaseContext = func(net.Listener) context.Context { return live }
	start := func(f func() error) {
		all.Go(func() {
			if err := f(); err != nil && live.Err() == nil {
				select {
				case r.failed <- err:
				default: // one is enough
				}
			}
		})
	}
	for _, l := range s.http {
		start(func() error {
			if err := r.web.server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				return err
			}
			return nil
		})
	}
	for _, l := range s.tcp {
		start(func() error { return serveTCP(live, l, r.o.who.Pod, r.state) })
	}
	for _, c := range s.udp {
		start(func() error { return serveUDP(live, c, r.o.who.Pod) })
	}
	start(func() error { r.plan(live); return nil })

	err := r.wait(ctx)
	cancel() // ends TCP, UDP and streams that never end
	r.close()
	return err
}

// plan does what the flags say for later.
func (r *running) plan(ctx context.Context) {
	var fail, exit <-chan time.Time
	settled := time.After(settleTime)
	if r.o.failAfter > 0 {
		fail = time.After(r.o.failAfter)
	}
	if r.o.exitAfter > 0 {
		exit = time.After(r.o.exitAfter)
	}
	for {
		select {
		case <-settled:
			r.settled()
		case <-fail:
			r.state.fail(r.o.failFor)
		case <-exit:
			select {
			case r.exit <- r.o.exitCode:
			default: // somebody else was first
			}
		case <-ctx.Done():
			return
		}
	}
}

// wait returns when it is time to close everything.
func (r *running) wait(ctx context.Context) error {
	select {
	case code := <-r.exit:
		return &ExitError{code}
	case err := <-r.failed:
		return err
	case <-ctx.Done():
	}
	r.log.Info("draining", "at_most", r.o.drain)
	r.state.change(func(s *state) { s.draining = true })
	r.web.server.SetKeepAlivesEnabled(false)
	bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.o.drain)
	defer cancel()
	done := make(chan bool, 1)
	go func() { done <- r.state.idle(bounded, 0) }()
	select {
	case idle := <-done:
		r.log.Info("drained", "idle", idle)
		return nil
	case code := <-r.exit:
		cancel()
		<-done
		return &ExitError{code}
	}
}

// close ends the HTTP server. Answers that are being written get a moment.
func (r *running) close() {
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	if r.web.server.Shutdown(ctx) != nil {
		_ = r.web.server.Close() // what is open now had its time
	}
	r.state.change((*state).calm)
}
