package fdstore

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newStore(t testing.TB) *Store {
	t.Helper()
	s, err := Listen(filepath.Join(t.TempDir(), "notify"), slog.New(slog.DiscardHandler))
	check(t, err)
	t.Cleanup(func() { check(t, s.Close()) })
	return s
}

// TestKilled has each process that is killed be followed by one that reads what came in between, by packet and by stream.
func TestKilled(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	address := ""
	for i, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM, syscall.SIGKILL} {
		pid, out := spawn(t, s)
		if i > 0 {
			if got, want := line(t, out), fmt.Sprintf("packet %d stream %d", i, i); got != want {
				t.Errorf("read %q, want %q", got, want)
			}
		}
		got := line(t, out)
		if address == "" {
			address = got
		}
		if got != address {
			t.Fatalf("listens at %q, want %q", got, address)
		}
		check(t, syscall.Kill(pid, sig))
		var status syscall.WaitStatus
		_, err := syscall.Wait4(pid, &status, 0, nil)
		check(t, err)
		send(t, "udp", address, fmt.Sprintf("packet %d", i+1))
		send(t, "tcp", address, fmt.Sprintf("stream %d", i+1))
	}
}

// spawn starts a process that plays, and returns what it prints.
func spawn(t *testing.T, s *Store) (pid int, out *bufio.Reader) {
	t.Helper()
	r, w, err := os.Pipe()
	check(t, err)
	t.Cleanup(func() { _ = r.Close() })
	check(t, s.Start(func(env []string, fds []uintptr) (int, error) {
		files := append([]uintptr{0, w.Fd(), 2}, fds...)
		pid, err = syscall.ForkExec("/proc/self/exe", []string{"play"}, &syscall.ProcAttr{Env: append(env, playing+"=1"), Files: files})
		return pid, err
	}))
	check(t, w.Close())
	return pid, bufio.NewReader(r)
}

func line(t *testing.T, out *bufio.Reader) string {
	t.Helper()
	text, err := out.ReadString('\n')
	check(t, err)
	return strings.TrimSpace(text)
}

func send(t *testing.T, network, address, text string) {
	t.Helper()
	conn, err := net.Dial(network, address)
	check(t, err)
	_, err = io.WriteString(conn, text)
	check(t, errors.Join(err, conn.Close()))
}

// own has the Store listen to this process, and returns a Keeper that speaks to it.
func own(t testing.TB, s *Store) *Keeper {
	t.Helper()
	check(t, s.Start(func([]string, []uintptr) (int, error) { return os.Getpid(), nil }))
	return &Keeper{address: s.path, there: map[string][]identity{}}
}

// next are the variables that a Store gives to the process that it starts, but for those that every process gets.
func next(t testing.TB, s *Store) string {
	t.Helper()
	var given []string
	check(t, s.Start(func(env []string, _ []uintptr) (int, error) {
		for _, v := range env {
			if name, value, _ := strings.Cut(v, "="); name == listenFDs || name == listenNames {
				given = append(given, value)
			}
		}
		return os.Getpid(), nil
	}))
	return strings.Join(given, " ")
}

func listenUDP(t testing.TB) *net.UDPConn {
	t.Helper()
	conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	check(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// What is kept is what was said last; the same socket is kept once.
func TestKeep(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	k := own(t, s)
	a, b, c := listenUDP(t), listenUDP(t), listenUDP(t)
	for _, step := range []struct {
		what string
		keep func() error
		want string
	}{
		{"nothing yet", func() error { return nil }, ""},
		{"two", func() error { return k.Keep("x", a, b) }, "2 x:x"},
		{"the same again", func() error { return k.Keep("x", b, a) }, "2 x:x"},
		{"by one that does not know", func() error { return own(t, s).Keep("y", a) }, "2 x:x"},
		{"one more", func() error { return k.Keep("x", a, b, c) }, "3 x:x:x"},
		{"one less", func() error { return k.Keep("x", b, c) }, "2 x:x"},
		{"another name", func() error { return k.Keep("y", a) }, "3 x:x:y"},
		{"none of the first", func() error { return k.Keep("x") }, "1 y"},
		{"a name that cannot be passed on", func() error { return k.Keep("a:b", b) }, "2 y:stored"},
		{"a closed one", func() error {
			_ = c.Close()
			if err := k.Keep("x", c); err == nil {
				return errors.New("no error")
			}
			return nil
		}, "2 y:stored"},
		{"ready", func() error { return k.Ready() }, "2 y:stored"},
	} {
		check(t, step.keep())
		if got := next(t, s); got != step.want {
			t.Errorf("%s: %q, want %q", step.what, got, step.want)
		}
	}
}

// What an earlier run kept under a name that nobody asks for any more is dropped, and what was taken is not.
func TestReady(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	k := own(t, s)
	check(t, k.Keep("old", listenUDP(t)))
	check(t, k.Keep("used", listenUDP(t)))
	k.files = map[string][]*os.File{"old": nil, "used": nil}
	k.Take("used")
	check(t, k.Ready())
	if got := next(t, s); got != "1 used" {
		t.Errorf("kept %q", got)
	}
}

func TestBounded(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	k := own(t, s)
	var all []syscall.Conn
	for range maxKept + 5 {
		all = append(all, listenUDP(t))
	}
	check(t, k.Keep("x", all...))
	if got, _, _ := strings.Cut(next(t, s), " "); got != fmt.Sprint(maxKept) {
		t.Errorf("%s are kept, want %d", got, maxKept)
	}
	check(t, k.Keep("x", all[0]))
	if got := next(t, s); got != "1 x" {
		t.Errorf("kept %q", got)
	}
}

// A Store hears nobody but the process that it started, and nothing that is no message.
func TestRefused(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	k := own(t, s)
	conn := listenUDP(t)
	send := func(text string) { check(t, with(conn, func(fd int) error { return k.notify(text, fd) })) }
	for _, text := range []string{
		"FDSTORE", "FDSTORE=0", "FDSTORE=1\nFDSTOREREMOVE=1\nFDNAME=x", "FDSTORE=1\x00", "READY=1", " FDSTORE=1", strings.Repeat("X", maxMessage) + "\nFDSTORE=1",
	} {
		send(text)
		if got := next(t, s); got != "" {
			t.Errorf("%.20q: kept %q", text, got)
		}
	}
	check(t, s.Start(func([]string, []uintptr) (int, error) { return os.Getppid(), nil }))
	send("FDSTORE=1")
	if got := next(t, s); got != "" {
		t.Errorf("of a stranger %q is kept", got)
	}
	for _, text := range []string{"FDSTORE=1", "FDSTOREREMOVE=1", "FDSTOREREMOVE=1\nFDNAME=", "FDSTOREREMOVE=1\nFDNAME=other"} { // the last three say nothing of it
		send(text)
	}
	if got := next(t, s); got != "1 stored" {
		t.Errorf("kept %q", got)
	}
	if err := s.Start(func([]string, []uintptr) (int, error) { return 0, io.ErrUnexpectedEOF }); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("Start: %v", err)
	}
}

// Without a supervisor nothing is kept and nothing fails; with one that has gone, that is said.
func TestNoSupervisor(t *testing.T) {
	t.Parallel()
	for _, k := range []*Keeper{nil, {}} {
		check(t, k.Keep("x", listenUDP(t)))
		check(t, k.Ready())
		if k.Has("x") || k.Take("x") != nil {
			t.Error("something is kept")
		}
	}
	var s *Store
	check(t, s.Start(func(env []string, fds []uintptr) (int, error) {
		if len(fds) > 0 || slices.ContainsFunc(env, func(v string) bool { return strings.HasPrefix(v, notifySocket) }) {
			t.Errorf("fds %v, environment %q", fds, env)
		}
		return 1, nil
	}))
	check(t, s.Close())
	for _, address := range []string{filepath.Join(t.TempDir(), "gone"), "relative", "/nowhere/x"} {
		k := &Keeper{address: address}
		if err := k.Ready(); err == nil || !strings.Contains(err.Error(), "supervisor at "+address) {
			t.Errorf("%s: %v", address, err)
		}
	}
}

// The socket may be at a path that is too long for an address, or have an abstract name, and what systemd gets is what it wants.
func TestAddress(t *testing.T) {
	t.Parallel()
	folder := filepath.Join(t.TempDir(), strings.Repeat("long/", 40))
	check(t, os.MkdirAll(folder, 0o700))
	for _, address := range []string{filepath.Join(folder, "notify"), fmt.Sprintf("@endpointd-fdstore-%d", os.Getpid())} {
		name, done, err := reach(address)
		check(t, err)
		l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: name})
		check(t, err)
		done()
		k := &Keeper{address: address, there: map[string][]identity{}}
		conn := listenUDP(t)
		check(t, k.Keep("dns", conn))
		text, control := make([]byte, maxMessage), make([]byte, unix.CmsgSpace(4*maxRights))
		n, oobn, _, _, err := l.ReadMsgUnix(text, control)
		check(t, errors.Join(err, l.Close()))
		_, fds := accompanied(control[:oobn])
		if string(text[:n]) != "FDSTORE=1\nFDPOLL=0\nFDNAME=dns" || len(fds) != 1 {
			t.Fatalf("%q with %v", text[:n], fds)
		}
		got, err := identify(fds[0])
		check(t, errors.Join(err, unix.Close(fds[0])))
		check(t, with(conn, func(fd int) error {
			want, err := identify(fd)
			if got != want {
				t.Errorf("another socket came")
			}
			return err
		}))
	}
	if _, err := Listen("notify", slog.New(slog.DiscardHandler)); err == nil {
		t.Error("a relative path is taken")
	}
}

// Whom descriptors are for.
func TestPassed(t *testing.T) {
	t.Parallel()
	const pid, parent = 7, 5
	for _, c := range []struct{ env, want string }{
		{"", ""},
		{"LISTEN_FDS=2 LISTEN_PID=7 LISTEN_FDNAMES=a:b", "a b"},
		{"LISTEN_FDS=2 LISTEN_PPID=5 LISTEN_FDNAMES=a:b", "a b"},
		{"LISTEN_FDS=2 LISTEN_PID=7 LISTEN_PPID=6 LISTEN_FDNAMES=a:b", "a b"},
		{"LISTEN_FDS=2 LISTEN_PID=7", "unknown unknown"},
		{"LISTEN_FDS=2 LISTEN_PID=7 LISTEN_FDNAMES=a", "unknown unknown"},
		{"LISTEN_FDS=1 LISTEN_PID=7 LISTEN_FDNAMES=a:b", "unknown"},
		{"LISTEN_FDS=2 LISTEN_FDNAMES=a:b", ""},
		{"LISTEN_FDS=2 LISTEN_PID=8 LISTEN_FDNAMES=a:b", ""},
		{"LISTEN_FDS=2 LISTEN_PID=8 LISTEN_PPID=5 LISTEN_FDNAMES=a:b", ""},
		{"LISTEN_FDS=2 LISTEN_PPID=6 LISTEN_FDNAMES=a:b", ""},
		{"LISTEN_FDS=0 LISTEN_PID=7", ""},
		{"LISTEN_FDS=-1 LISTEN_PID=7", ""},
		{"LISTEN_FDS=x LISTEN_PID=7", ""},
		{"LISTEN_PID=7", ""},
	} {
		if got := strings.Join(passed(environment(c.env), pid, parent), " "); got != c.want {
			t.Errorf("%s: %q, want %q", c.env, got, c.want)
		}
	}
	if n := len(passed(environment("LISTEN_FDS=99999999 LISTEN_PID=7"), pid, parent)); n != maxFDs {
		t.Errorf("%d descriptors", n)
	}
}

func environment(text string) func(string) string {
	return func(name string) string {
		for v := range strings.FieldsSeq(text) {
			if key, value, _ := strings.Cut(v, "="); key == name {
				return value
			}
		}
		return ""
	}
}

// FuzzStore has a Store hear any message with a descriptor: it is bounded, what it says to the next process can be read, and no descriptor is left.
func FuzzStore(f *testing.F) {
	for _, seed := range []string{
		"FDSTORE=1\nFDNAME=dns", "FDSTORE=1\nFDNAME=a:b\nFDPOLL=0", "FDSTOREREMOVE=1\nFDNAME=dns", "READY=1\nSTATUS=all is well\n", "=\n=\n==", "FDNAME", "\x00",
	} {
		f.Add(seed, seed)
	}
	f.Fuzz(func(t *testing.T, first, second string) {
		s := newStore(t)
		own(t, s)
		for _, text := range []string{first, second, first} {
			pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			check(t, err)
			s.mu.Lock()
			s.hear(os.Getpid(), []byte(text), pair[:])
			s.mu.Unlock()
		}
		check(t, s.Start(func(env []string, fds []uintptr) (int, error) {
			given := strings.Join(slices.DeleteFunc(env, func(v string) bool { return !strings.HasPrefix(v, "LISTEN_") }), " ")
			given = strings.ReplaceAll(given, listenParent+"=", listenPID+"=") // for this process
			if strings.ContainsAny(first+second, " ") {
				return 1, nil // environment cuts there
			}
			names := passed(environment(given), os.Getpid(), 0)
			if len(names) != len(fds) || slices.Contains(names, unnamed) && !strings.Contains(first+second, unnamed) {
				t.Errorf("%q %q: %d descriptors with the names %q", first, second, len(fds), names)
			}
			return 1, nil
		}))
	})
}
