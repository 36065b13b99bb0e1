package shim

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/endpointd/endpointd/internal/node/shim/launch"
)

// launcherName is argv[0] that has package reexec run launch.Main.
const launcherName = "endpointd-launch"

// childOptions is how a launcher is started.
type childOptions struct {
	spec    launch.Spec
	streams [3]*os.File // stdin, stdout, stderr; nil = /dev/null
	flags   uintptr     // clone flags
	join    *os.File    // a pidfd of the container to start in; nil = none
	joinPID bool        // it has a process namespace of its own
	cgroup  string      // "" = the shim's
}

// child is a process that the shim started and that executed its program.
type child struct {
	pid     int      // in the shim's view
	hostPID int      // in the agent's view
	pidfd   *os.File // of the process
	master  *os.File // of its terminal; nil without one
	exited  chan unix.WaitStatus
}

// close lets go of descriptors of a process that nobody else knows of.
func (c *child) close() {
	_ = c.pidfd.Close()
	if c.master != nil {
		_ = c.master.Close()
	}
}

// signal sends a signal, and none to a process that took the place of one that was reaped.
func (c *child) signal(sig syscall.Signal) error {
	raw, err := c.pidfd.SyscallConn()
	if err != nil {
		return err
	}
	var sendErr error
	err = raw.Control(func(fd uintptr) { sendErr = unix.PidfdSendSignal(int(fd), sig, nil, 0) })
	if errors.Is(sendErr, unix.ESRCH) {
		sendErr = nil
	}
	return errors.Join(err, sendErr)
}

// startChild begins a launcher and returns when it has executed its program, or why not (a *launch.Failure when the launcher says so).
func (p *pod) startChild(o childOptions) (*child, error) {
	ours, theirs, err := messageSocket()
	if err != nil {
		return nil, err
	}
	defer ours.Close() //nolint:errcheck // read to its end, or of no use
	c, err := p.fork(o, theirs)
	_ = theirs.Close()
	if err != nil {
		return nil, err
	}
	if err := c.follow(ours); err != nil {
		_ = c.signal(syscall.SIGKILL)
		<-c.exited
		c.close()
		return nil, err
	}
	return c, nil
}

// messageSocket gives our end, which is polled, and the one that the launcher gets.
func messageSocket() (ours, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	if err := unix.SetNonblock(fds[0], true); err != nil {
		return nil, nil, errors.Join(err, unix.Close(fds[0]), unix.Close(fds[1]))
	}
	return os.NewFile(uintptr(fds[0]), "messages"), os.NewFile(uintptr(fds[1]), "messages"), nil
}

// receive reads one packet and what came with it; none is io.EOF.
func receive(from *os.File, buffer, rights []byte) (n, rn int, err error) {
	raw, err := from.SyscallConn()
	if err != nil {
		return 0, 0, err
	}
	var recvErr error
	err = raw.Read(func(fd uintptr) bool {
		n, rn, _, _, recvErr = unix.Recvmsg(int(fd), buffer, rights, unix.MSG_CMSG_CLOEXEC)
		return !errors.Is(recvErr, unix.EAGAIN) && !errors.Is(recvErr, unix.EINTR)
	})
	if err := errors.Join(err, recvErr); err != nil {
		return 0, 0, err
	}
	if n == 0 {
		return 0, 0, io.EOF
	}
	return n, rn, nil
}

// specFile gives the spec as a file in memory.
func specFile(spec *launch.Spec) (*os.File, error) {
	data, err := json.Marshal(spec)
	if err != nil {
		return nil, err
	}
	fd, err := unix.MemfdCreate("spec", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(fd), "spec")
	if _, err = file.Write(data); err == nil {
		_, err = file.Seek(0, io.SeekStart)
	}
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}

// fork starts the launcher and registers it with the reaper.
func (p *pod) fork(o childOptions, messages *os.File) (*child, error) {
	spec, err := specFile(&o.spec)
	if err != nil {
		return nil, err
	}
	defer spec.Close() //nolint:errcheck // in memory
	pidfd := -1
	attr := &syscall.ProcAttr{
		Dir: "/",
		Env: []string{"GOMAXPROCS=1", "GOGC=off"},
		Sys: &syscall.SysProcAttr{Setsid: true, Cloneflags: o.flags, PidFD: &pidfd},
	}
	for _, stream := range o.streams {
		if stream == nil {
			stream = p.null
		}
		attr.Files = append(attr.Files, stream.Fd())
	}
	attr.Files = append(attr.Files, messages.Fd(), spec.Fd())
	if o.join != nil {
		attr.Files = append(attr.Files, o.join.Fd())
	}
	if o.cgroup != "" {
		group, err := unix.Open(o.cgroup, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, fmt.Errorf("cgroup %s: %w", o.cgroup, err)
		}
		defer unix.Close(group) //nolint:errcheck // opened for the clone alone
		attr.Sys.UseCgroupFD, attr.Sys.CgroupFD = true, group
	}
	c := &child{exited: make(chan unix.WaitStatus, 1)}
	p.reaping.Lock()
	defer p.reaping.Unlock()
	if c.pid, err = p.forkIn(o, attr); err != nil {
		return nil, fmt.Errorf("start a process: %w", err)
	}
	c.pidfd = os.NewFile(uintptr(pidfd), "pidfd")
	p.children[c.pid] = c.exited
	return c, nil
}

// forkIn clones into another process namespace when asked: a thread may choose the one that its children are born in.
func (p *pod) forkIn(o childOptions, attr *syscall.ProcAttr) (int, error) {
	argv := []string{launcherName}
	if !o.joinPID {
		return syscall.ForkExec(selfExe, argv, attr)
	}
	runtime.LockOSThread()
	if err := unix.Setns(int(o.join.Fd()), unix.CLONE_NEWPID); err != nil {
		runtime.UnlockOSThread()
		return 0, fmt.Errorf("enter process namespace: %w", err)
	}
	pid, err := syscall.ForkExec(selfExe, argv, attr)
	if back := unix.Setns(int(p.ownPIDs.Fd()), unix.CLONE_NEWPID); back == nil {
		runtime.UnlockOSThread() // else the thread ends with its goroutine
	}
	return pid, err
}

// follow reads messages until the program runs.
func (c *child) follow(messages *os.File) error {
	buffer := make([]byte, 16<<10)
	rights := make([]byte, unix.CmsgSpace(4))
	executing := false
	for {
		n, rn, err := receive(messages, buffer, rights)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		var m launch.Message
		if err := json.Unmarshal(buffer[:n], &m); err != nil {
			return fmt.Errorf("message of the launcher: %w", err)
		}
		switch {
		case m.Error != nil:
			return m.Error
		case m.TTY:
			if c.master, err = receiveFile(rights[:rn]); err != nil {
				return err
			}
		case m.Exec:
			executing = true
		default:
			c.hostPID = m.PID
		}
	}
	if !executing {
		return &launch.Failure{Code: 128, Text: "the launcher was killed before it could execute the command: is memory short?"}
	}
	return nil
}

// receiveFile takes the one descriptor out of a control message.
func receiveFile(rights []byte) (*os.File, error) {
	messages, err := unix.ParseSocketControlMessage(rights)
	if err != nil {
		return nil, err
	}
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			return nil, err
		}
		for _, fd := range fds {
			if err := unix.SetNonblock(fd, true); err != nil {
				return nil, err
			}
			return os.NewFile(uintptr(fd), "terminal"), nil
		}
	}
	return nil, errors.New("terminal without descriptor")
}
