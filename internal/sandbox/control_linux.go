package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// request is what a client of the control socket says first, with the three streams for Exec; then, during Exec, signals.
type request struct {
	Exec   *Command       `json:",omitempty"`
	Status bool           `json:",omitempty"`
	Signal syscall.Signal `json:",omitempty"`
}

// answer is the last word on a request.
type answer struct {
	Status *Status `json:",omitempty"`
	Exit   *int    `json:",omitempty"`
	Error  string  `json:",omitempty"` // with an Exit code, as a shell would give it
}

// Command is a command to run inside.
type Command struct {
	Node string // "" = the outer namespace
	Args []string
	Env  []string
	Dir  string
	// Terminal: the first stream is a terminal that the command is to control.
	Terminal bool
}

// Status is how a sandbox is.
type Status struct {
	Parts []PartStatus
}

// PartStatus is how a part is.
type PartStatus struct {
	Name     string
	PID      int // inside; 0 = it does not run
	Since    time.Time
	Restarts int
	LastExit string `json:",omitempty"`
}

// Exit codes of a shell.
const (
	notFound      = 127
	notExecutable = 126
	signalled     = 128
)

// serveControl serves until ctx ends and all clients are gone.
func (in *inside) serveControl(ctx context.Context, l *net.UnixListener) {
	defer context.AfterFunc(ctx, func() { _ = l.Close() })() // its end is the end of Accept
	var clients sync.WaitGroup
	defer clients.Wait()
	for {
		conn, err := l.AcceptUnix()
		if err != nil {
			if ctx.Err() == nil {
				in.log.Error("control socket", "err", err)
			}
			return
		}
		clients.Go(func() {
			defer conn.Close() //nolint:errcheck // all is said
			defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
			in.serveClient(ctx, conn)
		})
	}
}

func (in *inside) serveClient(ctx context.Context, conn *net.UnixConn) {
	r := newReceiver(conn)
	var q request
	files, err := r.next(&q)
	if err != nil {
		return
	}
	defer closeFiles(files)
	var a answer
	switch {
	case q.Exec != nil:
		a = in.exec(ctx, *q.Exec, files, r)
	case q.Status:
		a.Status = in.status()
	default:
		a.Error = "unknown request: use the same version of endpointd as the one that runs"
	}
	_ = send(conn, a) // it may have gone
}

func (in *inside) status() *Status {
	in.mu.Lock()
	defer in.mu.Unlock()
	s := &Status{}
	for _, p := range in.parts {
		s.Parts = append(s.Parts, p.status())
	}
	return s
}

// exec runs the command until it ends, and kills it when its client has gone.
func (in *inside) exec(ctx context.Context, c Command, streams []*os.File, r *receiver) answer {
	refuse := func(code int, err error) answer { return answer{Exit: &code, Error: err.Error()} }
	var spaces *namespaces
	var group string
	if c.Node != "" {
		in.mu.Lock()
		spaces = in.nodes[c.Node]
		in.mu.Unlock()
		if spaces == nil {
			return refuse(1, fmt.Errorf("there is no node %q: use one of %s", c.Node, strings.Join(in.nodeNames(), ", ")))
		}
		group = in.groupOf(c.Node)
	}
	if len(streams) != 3 || len(c.Args) == 0 {
		return refuse(1, errors.New("a command has arguments and three streams"))
	}
	path, err := lookPath(c.Args[0], c.Env)
	if err != nil {
		code := notExecutable
		if errors.Is(err, fs.ErrNotExist) {
			code = notFound
		}
		return refuse(code, err)
	}
	if info, err := os.Stat(c.Dir); err != nil || !info.IsDir() {
		c.Dir = "/"
	}
	attr := &syscall.ProcAttr{Dir: c.Dir, Env: c.Env, Sys: &syscall.SysProcAttr{Setsid: true, Setctty: c.Terminal}}
	for _, f := range streams {
		attr.Files = append(attr.Files, f.Fd())
	}
	pid, exited, done, err := in.startCommand(ctx, spaces, group, path, c.Args, attr)
	if err != nil {
		return refuse(notExecutable, fmt.Errorf("%s: %w", path, err))
	}
	defer done()
	closeFiles(streams) // a reader of the command's output sees its end
	gone := make(chan struct{})
	in.work.Go(func() { // until the client has gone, or serveClient has closed the connection
		defer close(gone)
		for {
			var q request
			if _, err := r.next(&q); err != nil {
				return
			}
			in.reaper.signalGroup(pid, q.Signal)
		}
	})
	select {
	case status := <-exited:
		code := exitCode(status)
		return answer{Exit: &code}
	case <-gone:
		in.reaper.signalGroup(pid, syscall.SIGKILL)
	case <-ctx.Done(): // endAll ends it
	}
	<-exited
	return answer{}
}

// startCommand starts it in a cgroup of its own below group, or where we are if it cannot have one. What must be called when it has ended is done.
func (in *inside) startCommand(ctx context.Context, spaces *namespaces, group, path string, args []string, attr *syscall.ProcAttr,
) (pid int, exited <-chan syscall.WaitStatus, done func(), err error) {
	start := func() (int, <-chan syscall.WaitStatus, error) {
		return in.reaper.start(func() (pid int, err error) {
			err = spaces.within(func() error {
				pid, err = syscall.ForkExec(path, args, attr)
				return err
			})
			return pid, err
		})
	}
	done = func() {}
	own := newLeaf(group)
	if own == nil {
		pid, exited, err = start()
		return pid, exited, done, err
	}
	attr.Sys.UseCgroupFD, attr.Sys.CgroupFD = true, int(own.dir.Fd())
	pid, exited, err = start()
	_ = own.dir.Close() // the command is there
	if err != nil {
		own.gone()
		attr.Sys.UseCgroupFD = false // before Linux 5.7, or not ours to use
		pid, exited, err = start()
		return pid, exited, done, err
	}
	return pid, exited, func() {
		if !own.gone() { // what it left in the background runs on
			in.work.Go(func() { own.remove(ctx) })
		}
	}, nil
}

func (in *inside) groupOf(node string) string {
	for _, n := range in.spec.Nodes {
		if n.Name == node {
			return n.Cgroup
		}
	}
	return ""
}

func (in *inside) nodeNames() []string {
	var names []string
	for _, n := range in.spec.Nodes {
		names = append(names, n.Name)
	}
	return names
}

func exitCode(status syscall.WaitStatus) int {
	if status.Signaled() {
		return signalled + int(status.Signal())
	}
	return status.ExitStatus()
}

// lookPath finds a command as execvp(3) does, in the PATH of env.
func lookPath(name string, env []string) (string, error) {
	if strings.Contains(name, "/") {
		return name, executable(name)
	}
	path := "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	if i := slices.IndexFunc(env, func(e string) bool { return strings.HasPrefix(e, "PATH=") }); i >= 0 {
		path = strings.TrimPrefix(env[i], "PATH=")
	}
	err := error(fs.ErrNotExist)
	for dir := range strings.SplitSeq(path, ":") {
		file := filepath.Join(dir, name)
		if found := executable(file); found == nil {
			return file, nil
		} else if errors.Is(found, fs.ErrPermission) {
			err = found
		}
	}
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("%s: %w in PATH (%s)", name, err, path)
	}
	return "", err
}

func executable(file string) error {
	info, err := os.Stat(file)
	if err != nil {
		return err
	}
	if info.IsDir() || info.Mode()&0o111 == 0 || unix.Access(file, unix.X_OK) != nil {
		return &fs.PathError{Op: "exec", Path: file, Err: fs.ErrPermission}
	}
	return nil
}
