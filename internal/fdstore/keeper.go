package fdstore

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Variables of sd_notify(3) and sd_listen_fds(3), and listenParent, which is that of a [Store].
const (
	notifySocket = "NOTIFY_SOCKET"
	listenPID    = "LISTEN_PID"
	listenParent = "LISTEN_PPID"
	listenFDs    = "LISTEN_FDS"
	listenNames  = "LISTEN_FDNAMES"
)

func variables() []string {
	return []string{notifySocket, listenPID, listenParent, listenFDs, listenNames}
}

const (
	firstFD = 3
	maxFDs  = 1024 // that a process takes at its start: more than any supervisor gives
	unnamed = "unknown"

	sendPatience = 2 * time.Second // a supervisor that reads nothing holds nobody up for longer
)

// A Keeper is what a process has of its supervisor. Make one with [Inherit]; a nil one is that of a process without a supervisor. Calls must
// not be at the same time.
type Keeper struct {
	address string                // of the supervisor; "" = there is none
	files   map[string][]*os.File // name → what an earlier run kept and nobody has taken
	there   map[string][]identity // name → what the supervisor has
}

// Inherit takes what an earlier run of this process kept, and the variables that say so out of the environment. Call it once, before anything
// is started.
func Inherit() *Keeper {
	k := &Keeper{address: os.Getenv(notifySocket), files: map[string][]*os.File{}, there: map[string][]identity{}}
	for i, name := range passed(os.Getenv, os.Getpid(), os.Getppid()) {
		fd := firstFD + i
		id, err := identify(fd)
		if err != nil {
			continue // nothing is there
		}
		unix.CloseOnExec(fd)
		k.files[name] = append(k.files[name], os.NewFile(uintptr(fd), name))
		k.there[name] = append(k.there[name], id)
	}
	for _, v := range variables() {
		_ = os.Unsetenv(v) // the names are right
	}
	return k
}

// Given is what a process finds that has no supervisor now, though an earlier run had one, which kept these: for tests.
func Given(name string, files ...*os.File) *Keeper {
	return &Keeper{files: map[string][]*os.File{name: files}}
}

// passed are the names of the descriptors from 3 on that are for this process.
func passed(getenv func(string) string, pid, parent int) []string {
	isFor := func(variable string, pid int) bool { return getenv(variable) == strconv.Itoa(pid) }
	if !isFor(listenPID, pid) && (getenv(listenPID) != "" || !isFor(listenParent, parent)) {
		return nil
	}
	n, err := strconv.Atoi(getenv(listenFDs))
	if err != nil || n <= 0 {
		return nil
	}
	n = min(n, maxFDs)
	names := strings.Split(getenv(listenNames), ":")
	if len(names) != n {
		names = slices.Repeat([]string{unnamed}, n)
	}
	return names
}

// Has says whether an earlier run kept something under a name.
func (k *Keeper) Has(name string) bool { return k != nil && len(k.files[name]) > 0 }

// Take returns what an earlier run kept under a name, which is the caller's now. The supervisor keeps it until [Keeper.Keep] says otherwise.
func (k *Keeper) Take(name string) []*os.File {
	if k == nil {
		return nil
	}
	files := k.files[name]
	delete(k.files, name)
	return files
}

// Keep has exactly these be kept under a name, whatever was before; none of them = nothing is. They stay the caller's, who may close them.
func (k *Keeper) Keep(name string, sockets ...syscall.Conn) error {
	if k == nil || k.address == "" {
		return nil
	}
	now := make([]identity, len(sockets))
	for i, s := range sockets {
		err := with(s, func(fd int) (err error) { now[i], err = identify(fd); return err })
		if err != nil {
			return fmt.Errorf("keep %s: %w", name, err)
		}
	}
	gone := func(id identity) bool { return !slices.Contains(now, id) }
	if slices.ContainsFunc(k.there[name], gone) {
		if err := k.notify("FDSTOREREMOVE=1\nFDNAME=" + name); err != nil {
			return fmt.Errorf("drop what was kept as %s: %w", name, err)
		}
		k.there[name] = nil
	}
	for i, s := range sockets {
		if slices.Contains(k.there[name], now[i]) {
			continue
		}
		// Without a poll systemd does not drop a socket that has an error to tell.
		err := with(s, func(fd int) error { return k.notify("FDSTORE=1\nFDPOLL=0\nFDNAME="+name, fd) })
		if err != nil {
			return fmt.Errorf("keep %s: %w", name, err)
		}
		k.there[name] = append(k.there[name], now[i])
	}
	return nil
}

// Ready tells the supervisor that the process does its work. What an earlier run kept and nobody has taken by now is closed and dropped.
func (k *Keeper) Ready() error {
	if k == nil {
		return nil
	}
	var err error
	for name, files := range k.files {
		for _, f := range files {
			_ = f.Close() // not ours to use
		}
		err = errors.Join(err, k.Keep(name))
	}
	clear(k.files)
	return errors.Join(err, k.notify("READY=1"))
}

// notify tells the supervisor, if there is one.
func (k *Keeper) notify(text string, fds ...int) error {
	if k.address == "" {
		return nil
	}
	name, done, err := reach(k.address)
	if err != nil {
		return fmt.Errorf("supervisor at %s: %w", k.address, err)
	}
	defer done()
	if err := tell(name, text, unix.UnixRights(fds...)); err != nil {
		return fmt.Errorf("supervisor at %s: %w", k.address, err)
	}
	return nil
}

// tell sends one message. Package net would want the socket to have a name for that, or no descriptors in the message.
func tell(name, text string, rights []byte) error {
	socket, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(socket) //nolint:errcheck // all is said
	patience := unix.NsecToTimeval(sendPatience.Nanoseconds())
	if err := unix.SetsockoptTimeval(socket, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &patience); err != nil {
		return os.NewSyscallError("setsockopt", err)
	}
	for {
		err := unix.Sendmsg(socket, []byte(text), rights, &unix.SockaddrUnix{Name: name}, unix.MSG_NOSIGNAL)
		if !errors.Is(err, unix.EINTR) {
			return os.NewSyscallError("sendmsg", err)
		}
	}
}

// reach is the name of a socket as the kernel takes it, until done: a path may be longer than an address, so that it is entered through its folder.
func reach(path string) (name string, done func(), err error) {
	if strings.HasPrefix(path, "@") {
		return path, func() {}, nil
	}
	if !filepath.IsAbs(path) {
		return "", nil, errors.New("neither a path from / on nor an abstract name")
	}
	fd, err := unix.Open(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", nil, err
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", fd, filepath.Base(path)), func() { _ = unix.Close(fd) }, nil
}

// with calls f with the descriptor as it is: to take it out by File and Fd would have it block, for all who share it.
func with(s syscall.Conn, f func(fd int) error) error {
	raw, err := s.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := raw.Control(func(fd uintptr) { inner = f(int(fd)) }); err != nil {
		return err
	}
	return inner
}

// An identity is the same for all descriptors of one socket, in every process.
type identity struct{ device, inode uint64 }

func identify(fd int) (identity, error) {
	var s unix.Stat_t
	if err := unix.Fstat(fd, &s); err != nil {
		return identity{}, os.NewSyscallError("fstat", err)
	}
	return identity{s.Dev, s.Ino}, nil
}
