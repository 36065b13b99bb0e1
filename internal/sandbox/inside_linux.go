package sandbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/endpointd/endpointd/internal/fdstore"
)

// The descriptors that the host side gives to the inside, and the inside gives to the server.
const (
	linkFD     = 3
	apiFD      = 4
	ServerFD   = 3 // the listener on the machine's loopback
	serverName = "server"
)

// Grace of the parts, one after the other: agents, then everything else.
const (
	agentGrace = time.Second
	endGrace   = 2 * time.Second
)

// RunOptions say what the inside does beside the parts.
type RunOptions struct {
	Logger *slog.Logger
	// Holders are first arguments of processes that hold namespaces for others and are not waited for at the end.
	Holders []string
	// Publish opens node ports on the machine's loopback until ctx ends; nil = nobody does.
	Publish func(ctx context.Context, p Publishing) error
}

// Publishing is what Publish needs.
type Publishing struct {
	Kubeconfig string
	// Open returns what listens on a port of the machine's loopback, for "tcp" or "udp": one file a family, the caller's.
	Open func(ctx context.Context, network string, port uint16) ([]*os.File, error)
	// Report is for the eyes of the user.
	Report func(Event)
}

// Run is the inside: PID 1 of the sandbox. It returns when the host side asks for it or has gone; ending the process then
// ends whatever is left.
func Run(o RunOptions) error {
	if os.Getpid() != 1 {
		return errors.New("this is started by `endpointd up`, in namespaces of its own")
	}
	unix.CloseOnExec(linkFD)
	unix.CloseOnExec(apiFD)
	conn, err := unixConn(os.NewFile(linkFD, "link"))
	if err != nil {
		return err
	}
	in := &inside{
		log: o.Logger, publish: o.Publish, holders: o.Holders, api: os.NewFile(apiFD, "api"), reaper: newReaper(),
		link: &hostLink{conn: conn, waiting: map[int]chan<- openResult{}},
	}
	if err := in.run(); err != nil {
		_ = in.link.send(fromInside{Fatal: err.Error()}) // it may be gone
		return err
	}
	return nil
}

type inside struct {
	log     *slog.Logger
	publish func(context.Context, Publishing) error
	holders []string
	api     *os.File
	link    *hostLink
	reaper  *reaper
	spec    Spec

	work sync.WaitGroup // everything that ends with a context

	mu    sync.Mutex             // guards what follows
	parts []*supervised          // in the order of their start
	nodes map[string]*namespaces // name → where it runs
	logs  []*part
}

func (in *inside) run() error {
	r := newReceiver(in.link.conn)
	var first fromHost
	if _, err := r.next(&first); err != nil || first.Spec == nil {
		return fmt.Errorf("no message from the host side: %w", err)
	}
	in.spec = *first.Spec
	in.nodes = map[string]*namespaces{}

	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	reaping, stopReaping := context.WithCancel(context.Background()) // to the very end
	defer stopReaping()
	in.work.Go(func() { in.reaper.run(reaping) })
	in.work.Go(func() { defer stop(); in.listen(r) })
	if err := in.prepare(); err != nil {
		return err
	}
	control, err := in.openControl()
	if err != nil {
		return err
	}
	agents, stopAgents := context.WithCancel(ctx)
	defer stopAgents()
	servers, stopServer := context.WithCancel(context.Background())
	defer stopServer()
	var agentWork, serverWork sync.WaitGroup
	if err := in.startServer(servers, &serverWork); err != nil {
		return err
	}
	if err := in.startNodes(agents, &agentWork); err != nil {
		return err
	}
	in.work.Go(func() { in.serveControl(ctx, control) })
	if in.publish != nil && in.spec.PublishNodePorts {
		in.work.Go(func() { in.runPublish(ctx) })
	}

	<-ctx.Done()
	agentWork.Wait() // before the pods: nobody is to start them again
	stopServer()
	in.endAll()
	serverWork.Wait()
	stopReaping()
	in.work.Wait()
	in.mu.Lock()
	defer in.mu.Unlock()
	for _, log := range in.logs {
		log.close(in.log)
	}
	return nil
}

// listen handles what the host side says. It returns when that asks to stop, or has gone.
func (in *inside) listen(r *receiver) {
	for {
		var m fromHost
		files, err := r.next(&m)
		switch {
		case err != nil || m.Stop:
			closeFiles(files)
			return
		case m.Opened != nil:
			in.link.opened(*m.Opened, files)
		default:
			closeFiles(files)
		}
	}
}

// step reports how long something took.
func (in *inside) step(name, text string, began time.Time) {
	in.report(Event{Kind: EventStep, Name: name, Text: text, Took: time.Since(began)})
}

func (in *inside) report(e Event) {
	e.Log(in.log)
	_ = in.link.send(fromInside{Event: &e}) // it may be gone, and so are we then
}

// prepare makes the outer namespace.
func (in *inside) prepare() error {
	began := time.Now()
	if err := privateMounts(); err != nil {
		return err
	}
	resolv := filepath.Join(runDir(in.spec.DataDir), "resolv.conf")
	if err := os.WriteFile(resolv, []byte(in.spec.Resolv), 0o644); err != nil {
		return err
	}
	if err := bindFile(resolv, "/etc/resolv.conf"); err != nil {
		in.report(Event{Kind: EventWarn, Name: "sandbox", Text: "names of Services are not resolved: make /etc/resolv.conf a file: " + err.Error()})
	}
	if err := outerNetwork(in.spec.Gateways); err != nil {
		return err
	}
	in.step("sandbox", "network", began)
	return nil
}

func (in *inside) startServer(ctx context.Context, work *sync.WaitGroup) error {
	s, err := in.newPart(serverName, in.spec.Server)
	if err != nil {
		return err
	}
	s.extra = []*os.File{in.api}
	work.Go(func() { s.run(ctx, endGrace) })
	return nil
}

func (in *inside) startNodes(ctx context.Context, work *sync.WaitGroup) error {
	began := time.Now()
	for _, n := range in.spec.Nodes {
		spaces, err := connect(n, in.spec.Gateways)
		if err != nil {
			return err
		}
		s, err := in.newPart(n.Name, n.Args)
		if err != nil {
			spaces.close()
			return err
		}
		s.spaces = spaces
		if s.store, err = fdstore.Listen(keptSocket(in.spec.DataDir, n.Name), in.log); err != nil {
			spaces.close()
			return fmt.Errorf("node %s: %w", n.Name, err)
		}
		in.mu.Lock()
		in.nodes[n.Name] = spaces
		in.mu.Unlock()
		work.Go(func() { s.run(ctx, agentGrace) })
	}
	if err := routeServices(in.spec); err != nil {
		return err
	}
	if len(in.spec.Nodes) > 0 {
		in.step("nodes", fmt.Sprintf("namespaces of %d nodes", len(in.spec.Nodes)), began)
	}
	return nil
}

func (in *inside) newPart(name string, args []string) (*supervised, error) {
	log, err := newPart(LogFile(in.spec.DataDir, name))
	if err != nil {
		return nil, fmt.Errorf("log of %s: %w", name, err)
	}
	s := &supervised{name: name, args: args, dir: in.spec.DataDir, reaper: in.reaper, log: log, event: in.report}
	in.mu.Lock()
	defer in.mu.Unlock()
	in.parts = append(in.parts, s)
	in.logs = append(in.logs, log)
	return s, nil
}

func (in *inside) runPublish(ctx context.Context) {
	err := in.publish(ctx, Publishing{Kubeconfig: InsideKubeconfig(in.spec.DataDir), Open: in.link.Open, Report: in.report})
	if err != nil && ctx.Err() == nil {
		in.report(Event{Kind: EventWarn, Name: "sandbox", Text: "node ports are not published: " + err.Error()})
	}
}

// endAll sends SIGTERM to everything that is left inside, pods and commands, and returns when nothing is left that takes its
// time, or the grace is over. Parts are told by who supervises them: a second SIGTERM would be for those who do not want to wait.
func (in *inside) endAll() {
	told := map[int]bool{1: true}
	for _, part := range in.status().Parts {
		told[part.PID] = true
	}
	deadline := time.NewTimer(endGrace)
	defer deadline.Stop()
	poll := time.NewTicker(5 * time.Millisecond)
	defer poll.Stop()
	for waiting := true; waiting && in.tellRest(told); {
		select {
		case <-poll.C:
		case <-deadline.C:
			waiting = false
		}
	}
	_ = syscall.Kill(-1, syscall.SIGKILL) // spares PID 1; ESRCH: nothing is left
}

// tellRest sends SIGTERM to every process that was not told before. It reports whether any is left that is not a holder.
func (in *inside) tellRest(told map[int]bool) bool {
	left := false
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline") // the pattern is right
	for _, file := range files {
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		if err != nil || pid == 1 {
			continue
		}
		text, err := os.ReadFile(file)
		name, _, _ := strings.Cut(string(text), "\x00")
		name, _, _ = strings.Cut(name, " ") // some write more into their first argument
		if err != nil || name == "" || slices.Contains(in.holders, name) {
			continue // it has ended, but for its parent, or is in the list
		}
		if !told[pid] {
			told[pid] = true
			_ = syscall.Kill(pid, syscall.SIGTERM) // it may have ended
		}
		left = true
	}
	return left
}

// openControl makes the socket for exec and status. Its path may be longer than a socket address.
func (in *inside) openControl() (*net.UnixListener, error) {
	dir, err := os.Open(runDir(in.spec.DataDir))
	if err != nil {
		return nil, err
	}
	defer dir.Close() //nolint:errcheck // read only
	name := filepath.Join(runDir(in.spec.DataDir), controlName)
	_ = os.Remove(name) // of one that was killed
	old := syscall.Umask(0o177)
	defer syscall.Umask(old)
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Net: "unixpacket", Name: fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), controlName)})
	if err != nil {
		return nil, fmt.Errorf("control socket %s: %w", name, err)
	}
	l.SetUnlinkOnClose(false) // by the path of a descriptor that is closed by then
	return l, nil
}
