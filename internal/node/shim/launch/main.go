package launch

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// Main never returns when the container starts: it becomes it. Otherwise it returns the exit code of a launcher that failed.
func Main() int {
	// Credentials, namespaces and the working directory are changed for this thread, which then executes the program.
	runtime.LockOSThread()
	err := unix.CloseRange(MessageFD, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC)
	if err == nil {
		err = run()
	}
	failure := &Failure{}
	if !errors.As(err, &failure) {
		failure = &Failure{Code: codeOther, Text: err.Error()}
	}
	if err := send(Message{Error: failure}); err != nil {
		fmt.Fprintln(os.Stderr, failure.Text) // there is nobody else to tell
	}
	return failure.Code
}

// run returns only with an error.
func run() error {
	file := os.NewFile(SpecFD, "spec")
	var spec Spec
	if err := json.NewDecoder(file).Decode(&spec); err != nil {
		return fmt.Errorf("read what to launch: %w", err)
	}
	if err := announce(&spec); err != nil {
		return err
	}
	// That of a container. The shim's would make mount points that only root can pass, such as /var/run/secrets.
	unix.Umask(0o022)
	if spec.Join {
		if err := join(); err != nil {
			return err
		}
	} else if err := makeRoot(&spec); err != nil {
		return err
	}
	if spec.Container.TTY {
		if err := takeTerminal(&spec); err != nil {
			return err
		}
	}
	return become(&spec)
}

// announce tells the PID and sets what needs the machine's /proc.
func announce(spec *Spec) error {
	pid := 0
	// The machine's /proc is that of the agent, so this is the PID in the agent's view, not in ours.
	if self, err := os.Readlink("/proc/self"); err == nil {
		pid, _ = strconv.Atoi(self)
	}
	// Best effort: below its present value it may only be set with CAP_SYS_RESOURCE.
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte(strconv.Itoa(spec.OOMScore)), 0)
	return send(Message{PID: pid})
}

func send(m Message, fds ...int) error {
	data, err := json.Marshal(m)
	if err != nil {
		return err
	}
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	return unix.Sendmsg(MessageFD, data, rights, nil, unix.MSG_NOSIGNAL)
}

// join enters the mounts of the container at JoinFD. The other namespaces came with the clone.
func join() error {
	// Threads share their root and working directory, and then the kernel refuses to change the mount namespace of one.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare root directory: %w", err)
	}
	if err := unix.Setns(JoinFD, unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("enter the container's mounts (has it just ended?): %w", err)
	}
	return nil
}

// takeTerminal makes a terminal within the container's root, sends its master away and becomes its session's leader.
func takeTerminal(spec *Spec) error {
	master, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open /dev/ptmx for a terminal: %w", err)
	}
	if err := unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err != nil {
		return fmt.Errorf("unlock terminal: %w", err)
	}
	slave, err := openPeer(master)
	if err != nil {
		return fmt.Errorf("open terminal: %w", err)
	}
	if err := send(Message{TTY: true}, master); err != nil {
		return err
	}
	// The user of the container owns its terminal, else a shell that is not root cannot open /dev/tty's name.
	_ = unix.Fchown(slave, int(spec.Container.User.UID), -1)
	if err := unix.IoctlSetInt(slave, unix.TIOCSCTTY, 0); err != nil {
		return fmt.Errorf("make the terminal the controlling one: %w", err)
	}
	for fd := range 3 {
		if err := unix.Dup3(slave, fd, 0); err != nil {
			return err
		}
	}
	return nil
}

// openPeer opens the other end without a path (TIOCGPTPEER, Linux 4.13), which another mount could hide.
func openPeer(master int) (int, error) {
	fd, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(master), unix.TIOCGPTPEER,
		unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		return -1, errno
	}
	return int(fd), nil
}

// become takes on user, rights and directory, and executes the program.
func become(spec *Spec) error {
	c := &spec.Container
	if err := makeWorkingDir(spec); err != nil {
		return err
	}
	if err := setRights(spec); err != nil {
		return err
	}
	if err := enterWorkingDir(c.WorkingDir, c.User); err != nil {
		return err
	}
	program, err := lookUp(c.Args[0], c.Env, c.User)
	if err != nil {
		return err
	}
	resetSignals()
	if err := send(Message{Exec: true}); err != nil {
		return err
	}
	return execFailure(program, syscall.Exec(program, c.Args, c.Env))
}

func makeWorkingDir(spec *Spec) error {
	c := &spec.Container
	if spec.Join || c.Rootfs == "" || c.WorkingDir == "" {
		return nil
	}
	if err := os.MkdirAll(c.WorkingDir, 0o755); err != nil {
		return &Failure{Code: codeOther, Text: fmt.Sprintf(
			"make working directory %s in the container's root: %v; create it there, or set another workingDir", c.WorkingDir, err)}
	}
	return nil
}
