package fdstore

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Bounds of what a Store takes. systemd's are the same, but for the number of descriptors, which a unit says.
const (
	maxKept    = 64
	maxMessage = 4096 // bytes
	maxName    = 255
	maxRights  = 253 // in one message: the kernel's own bound
	maxQueued  = 512 // messages that are read at one time before a start; the kernel queues 10, or as many as net.unix.max_dgram_qlen says
	storedName = "stored"
)

// A Store keeps what the processes that it starts, one after the other, give it. A nil one keeps nothing. Its methods may be called at any time.
type Store struct {
	path string
	log  *slog.Logger
	conn *net.UnixConn
	raw  syscall.RawConn
	work sync.WaitGroup

	mu     sync.Mutex // guards what follows, and is held while a message is read
	pid    int        // of the process that may say something; 0 = none was started
	kept   []kept
	buffer [maxMessage]byte
	rights []byte
}

type kept struct {
	name string
	fd   int
	id   identity
}

// Listen makes a Store, whose socket is at an absolute path, of any length, in a folder that nobody else may enter. What is left there is removed.
func Listen(path string, log *slog.Logger) (*Store, error) {
	name, done, err := reach(path)
	if err != nil {
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	defer done()
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: name})
	if err != nil {
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	s := &Store{path: path, log: log, conn: conn, rights: make([]byte, unix.CmsgSpace(4*maxRights)+unix.CmsgSpace(unix.SizeofUcred))}
	err = with(conn, func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PASSCRED, 1) })
	if err == nil {
		s.raw, err = conn.SyscallConn()
	}
	if err != nil {
		return nil, errors.Join(err, conn.Close(), os.Remove(path))
	}
	s.work.Go(func() {
		_ = s.raw.Read(func(fd uintptr) bool { // until it is closed
			for s.one(int(fd)) {
			}
			return false
		})
	})
	return s, nil
}

// Start starts a process: fork gets its environment and what its descriptors from 3 on are to be. From now on the Store listens to it alone.
func (s *Store) Start(fork func(env []string, fds []uintptr) (pid int, err error)) error {
	env := slices.DeleteFunc(os.Environ(), func(v string) bool { // what is there is for this process
		name, _, _ := strings.Cut(v, "=")
		return slices.Contains(variables(), name)
	})
	if s == nil {
		_, err := fork(env, nil)
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.raw.Control(func(fd uintptr) { // what the last one said before its end
		for i := 0; i < maxQueued && s.read(int(fd)); i++ {
		}
	}); err != nil {
		return fmt.Errorf("socket %s: %w", s.path, err)
	}
	env = append(env, notifySocket+"="+s.path)
	var fds []uintptr
	var names []string
	for _, k := range s.kept {
		fds, names = append(fds, uintptr(k.fd)), append(names, k.name)
	}
	if len(fds) > 0 {
		env = append(env, listenParent+"="+strconv.Itoa(os.Getpid()), listenFDs+"="+strconv.Itoa(len(fds)), listenNames+"="+strings.Join(names, ":"))
	}
	pid, err := fork(env, fds)
	if err == nil {
		s.pid = pid
	}
	return err
}

// Close closes what is kept.
func (s *Store) Close() error {
	if s == nil {
		return nil
	}
	err := errors.Join(s.conn.Close(), os.Remove(s.path))
	s.work.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drop(func(kept) bool { return true })
	return err
}

func (s *Store) one(fd int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.read(fd)
}

// read takes in one message, and is false if there is none. s.mu is held.
func (s *Store) read(socket int) bool {
	n, oobn, flags, _, err := unix.Recvmsg(socket, s.buffer[:], s.rights, unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return errors.Is(err, unix.EINTR)
	}
	pid, fds := accompanied(s.rights[:oobn])
	text := s.buffer[:n]
	if flags&unix.MSG_TRUNC != 0 {
		text = nil
	}
	s.hear(pid, text, fds)
	return true
}

// accompanied is what the kernel says of who sent a message, and the descriptors that came with it.
func accompanied(control []byte) (pid int, fds []int) {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return 0, nil
	}
	for _, m := range messages {
		if rights, err := unix.ParseUnixRights(&m); err == nil {
			fds = append(fds, rights...)
		} else if cred, err := unix.ParseUnixCredentials(&m); err == nil {
			pid = int(cred.Pid)
		}
	}
	return pid, fds
}

// hear does what a message says. The descriptors are the Store's, and closed if they are not kept. s.mu is held.
func (s *Store) hear(pid int, text []byte, fds []int) {
	m, ok := parse(text)
	switch {
	case pid == 0 || pid != s.pid:
		s.log.Debug("message of a process that is not the one that was started", "socket", s.path, "pid", pid)
	case !ok:
		s.log.Debug("message left out", "socket", s.path, "bytes", len(text))
	case m.remove && m.name != "":
		s.drop(func(k kept) bool { return k.name == m.name })
	case m.store && !m.remove:
		fds = s.keep(cmp.Or(m.name, storedName), fds)
	}
	for _, fd := range fds {
		_ = unix.Close(fd) // nobody's
	}
}

// keep returns those that are not kept.
func (s *Store) keep(name string, fds []int) (rest []int) {
	for _, fd := range fds {
		id, err := identify(fd)
		known := func(k kept) bool { return k.id == id }
		switch {
		case err != nil || slices.ContainsFunc(s.kept, known):
			rest = append(rest, fd)
		case len(s.kept) == maxKept:
			s.log.Warn("a descriptor is not kept: there are too many", "socket", s.path, "name", name, "most", maxKept)
			rest = append(rest, fd)
		default:
			s.kept = append(s.kept, kept{name, fd, id})
		}
	}
	return rest
}

func (s *Store) drop(which func(kept) bool) {
	s.kept = slices.DeleteFunc(s.kept, func(k kept) bool {
		if !which(k) {
			return false
		}
		_ = unix.Close(k.fd) // only closed
		return true
	})
}

// A message is what is of interest here of one of sd_notify(3).
type message struct {
	store, remove bool
	name          string // "" = none, or none that can be passed on
}

// parse is false if it is no message at all: variables, one a line.
func parse(text []byte) (m message, ok bool) {
	if len(text) == 0 || slices.Contains(text, 0) {
		return m, false
	}
	for line := range strings.SplitSeq(string(text), "\n") {
		switch name, value, _ := strings.Cut(line, "="); name {
		case "FDSTORE":
			m.store = value == "1"
		case "FDSTOREREMOVE":
			m.remove = value == "1"
		case "FDNAME":
			if m.name = ""; nameable(value) {
				m.name = value
			}
		}
	}
	return m, true
}

// nameable says whether LISTEN_FDNAMES can hold the name.
func nameable(name string) bool {
	return name != "" && len(name) <= maxName && !strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r > '~' || r == ':' })
}
