package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Options say how to start a sandbox.
type Options struct {
	Spec Spec
	// Args make this very program call Run; Args[0] is how it is called.
	Args []string
	// API is the listener on the machine's loopback that the server takes over.
	API *os.File
	// Event is called for everything that happens inside, by one goroutine.
	Event func(Event)
}

// Sandbox is a running inside, seen from the host side.
type Sandbox struct {
	cmd   *exec.Cmd
	conn  *net.UnixConn
	event func(Event)

	done chan struct{} // closed when the inside is gone
	err  error         // why; valid after done
	work sync.WaitGroup

	mu    sync.Mutex // guards what follows, and the order of packets
	asked bool       // it was told to stop
	fatal string     // what the inside said about its own end
}

// Start starts the inside. It runs until Stop, or until this process or the inside ends.
func Start(o Options) (*Sandbox, error) {
	conn, file, err := pair()
	if err != nil {
		return nil, err
	}
	log, err := openLog(LogFile(o.Spec.DataDir, "sandbox"))
	if err != nil {
		_, _ = conn.Close(), file.Close()
		return nil, err
	}
	defer log.Close() //nolint:errcheck // the child has its own
	s := &Sandbox{conn: conn, event: o.Event, done: make(chan struct{})}
	s.cmd = &exec.Cmd{Path: Program(), Args: o.Args, Env: insideEnviron(os.Environ()), Stdout: log.file, Stderr: log.file, ExtraFiles: []*os.File{file, o.API}, SysProcAttr: insideAttr()}
	s.work.Go(s.serve)
	err = s.start()
	_ = file.Close() // the child has its own
	if err != nil {
		_ = conn.Close()
		s.work.Wait()
		return nil, err
	}
	if err := send(conn, fromHost{Spec: &o.Spec}); err != nil {
		s.Kill()
		return nil, fmt.Errorf("tell the inside what to make: %w", err)
	}
	return s, nil
}

// insideEnviron is an environment without what leads out of the sandbox: a proxy could not be reached, and clients inside would
// ask it for the API.
func insideEnviron(environ []string) []string {
	return slices.DeleteFunc(slices.Clone(environ), func(entry string) bool {
		name, _, _ := strings.Cut(strings.ToUpper(entry), "=")
		return name == "KUBECONFIG" || strings.HasSuffix(name, "_PROXY")
	})
}

// insideAttr: new namespaces, a user namespace too unless we may do without.
func insideAttr() *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWPID | syscall.CLONE_NEWNS | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC,
		Pdeathsig:  syscall.SIGKILL,
		Setsid:     true, // a Ctrl-C in the terminal is for the host side, which stops in order
	}
	if !mayMakeNamespaces() {
		attr.Cloneflags |= syscall.CLONE_NEWUSER
		attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	return attr
}

// start starts the child from a thread that lives as long as it does: the kernel sends the death signal when the thread
// that forked ends.
func (s *Sandbox) start() error {
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := s.cmd.Start()
		started <- err
		if err != nil {
			return
		}
		err = s.cmd.Wait()
		s.work.Wait() // what it said last
		s.err = s.ended(err)
		close(s.done)
	}()
	if err := <-started; err != nil {
		return missing(err)
	}
	return nil
}

// ended is the reason for the end: nil when it was asked for.
func (s *Sandbox) ended(err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.fatal != "":
		return errors.New(s.fatal)
	case s.asked:
		return nil
	case err == nil:
		return errors.New("the sandbox ended by itself")
	}
	return fmt.Errorf("the sandbox ended: %w", err)
}

// Done is closed when the inside is gone, and all its processes with it.
func (s *Sandbox) Done() <-chan struct{} { return s.done }

// Err says why the inside ended, after Done; nil when Stop asked for it.
func (s *Sandbox) Err() error { return s.err }

// PID is that of the inside.
func (s *Sandbox) PID() int { return s.cmd.Process.Pid }

// stopGrace is how long the inside may take to end everything; it allows its parts less.
const stopGrace = 10 * time.Second

// Stop ends everything in order, and returns when it is gone or ctx has ended and it was killed.
func (s *Sandbox) Stop(ctx context.Context) error {
	s.mu.Lock()
	s.asked = true
	err := send(s.conn, fromHost{Stop: true})
	s.mu.Unlock()
	if err != nil {
		s.Kill()
	}
	timer := time.NewTimer(stopGrace)
	defer timer.Stop()
	select {
	case <-s.done:
	case <-timer.C:
		s.Kill()
	case <-ctx.Done():
		s.Kill()
	}
	return s.err
}

// Kill ends everything at once.
func (s *Sandbox) Kill() {
	s.mu.Lock()
	s.asked = true
	s.mu.Unlock()
	_ = s.cmd.Process.Kill() // it may have ended
	<-s.done
}

// serve listens to the inside until it ends.
func (s *Sandbox) serve() {
	defer s.conn.Close() //nolint:errcheck // the other end is gone
	r := newReceiver(s.conn)
	for {
		var m fromInside
		files, err := r.next(&m)
		if err != nil {
			return
		}
		closeFiles(files) // it has none to give
		switch {
		case m.Event != nil:
			s.event(*m.Event)
		case m.Open != nil:
			s.open(*m.Open)
		case m.Fatal != "":
			s.mu.Lock()
			s.fatal = m.Fatal
			s.mu.Unlock()
		}
	}
}

// open answers with listeners on loopback, of each family that the machine has.
func (s *Sandbox) open(o openPort) {
	files, err := listenLoopback(o.Network, o.Port)
	answer := opened{ID: o.ID}
	if err != nil {
		answer.Error = err.Error()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	_ = send(s.conn, fromHost{Opened: &answer}, files...) // it may be ending
	closeFiles(files)
}

// listenLoopback fails when another program has the port in one family: half a port would mislead.
func listenLoopback(network string, port uint16) ([]*os.File, error) {
	var files []*os.File
	for _, host := range []string{"127.0.0.1", "::1"} {
		file, err := listenOn(network, net.JoinHostPort(host, strconv.Itoa(int(port))))
		switch {
		case err == nil:
			files = append(files, file)
		case host == "::1" && !errors.Is(err, syscall.EADDRINUSE):
			// A machine without IPv6.
		default:
			closeFiles(files)
			return nil, err
		}
	}
	return files, nil
}

func listenOn(network, address string) (*os.File, error) {
	var opened interface {
		io.Closer
		File() (*os.File, error)
	}
	switch network {
	case "tcp":
		l, err := net.Listen("tcp", address)
		if err != nil {
			return nil, err
		}
		opened = l.(*net.TCPListener)
	case "udp":
		c, err := net.ListenPacket("udp", address)
		if err != nil {
			return nil, err
		}
		opened = c.(*net.UDPConn)
	default:
		return nil, fmt.Errorf("network %q is not tcp or udp", network)
	}
	file, err := opened.File()
	return file, errors.Join(err, opened.Close())
}

// mayMakeNamespaces says whether this process has CAP_SYS_ADMIN and CAP_NET_ADMIN.
func mayMakeNamespaces() bool {
	const admin, network = 1 << 21, 1 << 12
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return os.Geteuid() == 0
	}
	for line := range strings.Lines(string(text)) {
		if hex, is := strings.CutPrefix(line, "CapEff:"); is {
			caps, err := strconv.ParseUint(strings.TrimSpace(hex), 16, 64)
			return err == nil && caps&admin != 0 && caps&network != 0
		}
	}
	return false
}

// missing says in one line what a machine lacks on which new namespaces failed.
func missing(err error) error {
	if !errors.Is(err, syscall.EPERM) && !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.EINVAL) && !errors.Is(err, syscall.EACCES) {
		return fmt.Errorf("start the sandbox: %w", err)
	}
	for _, knob := range []struct{ file, bad, fix string }{
		{"/proc/sys/kernel/unprivileged_userns_clone", "0", "sysctl kernel.unprivileged_userns_clone=1"},
		{"/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1", "sysctl kernel.apparmor_restrict_unprivileged_userns=0"},
		{"/proc/sys/user/max_user_namespaces", "0", "sysctl user.max_user_namespaces=10000"},
		{"/proc/sys/user/max_net_namespaces", "0", "sysctl user.max_net_namespaces=10000"},
	} {
		if text, readErr := os.ReadFile(knob.file); readErr == nil && strings.TrimSpace(string(text)) == knob.bad {
			return fmt.Errorf("new namespaces: %w: user namespaces are not allowed here: run as root, or allow them with `%s`", err, knob.fix)
		}
	}
	return fmt.Errorf("new namespaces: %w: run as root, or where user namespaces are allowed (not in a container that forbids them)", err)
}
