package stream

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/endpointd/endpointd/internal/testkit"
)

// inside is set in the child of TestDialIn, which is root of namespaces of its own.
const inside = "STREAM_TEST_INSIDE"

func TestDialIn(t *testing.T) {
	if os.Getenv(inside) != "" {
		dialInNamespaces(t)
		return
	}
	testkit.Need(t, testkit.Net())
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^TestDialIn$", "-test.v")
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.SysProcAttr = testkit.AsRootOf(syscall.CLONE_NEWNET)
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS: TestDialIn") {
		t.Fatalf("%v\n%s", err, out)
	}
}

// dialInNamespaces makes a network namespace with a server on its loopback, which only a dial within it reaches.
func dialInNamespaces(t *testing.T) {
	home := netnsOf(t, os.Getpid())
	type pod struct {
		path string
		l    net.Listener
		err  error
	}
	made, done := make(chan pod), make(chan struct{})
	onSpareThread(func() {
		p := pod{path: fmt.Sprintf("/proc/%d/task/%d/ns/net", os.Getpid(), unix.Gettid())}
		p.err = unix.Unshare(unix.CLONE_NEWNET)
		if p.err == nil {
			p.err = loopbackUp()
		}
		if p.err == nil {
			p.l, p.err = net.Listen("tcp", "127.0.0.1:0")
		}
		made <- p
		<-done // the path is that of this thread
	})
	defer close(done)
	p := <-made
	if p.err != nil {
		t.Fatal(p.err)
	}
	defer func() { _ = p.l.Close() }()
	answered := make(chan error, 1)
	go func() {
		conn, err := p.l.Accept()
		if err == nil {
			_, err = io.WriteString(conn, "from the pod")
			_ = conn.Close()
		}
		answered <- err
	}()
	address := p.l.Addr().String()
	for range 50 { // on whatever threads the runtime has
		if conn, err := DialIn(context.Background(), "", address); err == nil {
			_ = conn.Close()
			t.Fatal("the pod's loopback was reached from outside: a thread was left in the namespace, or the test is no test")
		}
	}
	conn, err := DialIn(context.Background(), p.path, address)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	text, err := io.ReadAll(conn)
	if err != nil || string(text) != "from the pod" {
		t.Errorf("got %q, %v", text, err)
	}
	if err := <-answered; err != nil {
		t.Error(err)
	}
	if _, err := DialIn(context.Background(), "/proc/self/ns/none", address); err == nil || !strings.Contains(err.Error(), "/proc/self/ns/none") {
		t.Errorf("no such namespace: got %v", err)
	}
	if now := netnsOf(t, os.Getpid()); now != home {
		t.Errorf("the process is in %s, and was in %s", now, home)
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if here := netnsOf(t, unix.Gettid()); here != home {
		t.Errorf("a thread was left in %s", here)
	}
}

func netnsOf(t *testing.T, id int) string {
	t.Helper()
	name, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", id))
	if err != nil {
		t.Fatal(err)
	}
	return name
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo)
}
