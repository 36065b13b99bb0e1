package server

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/endpointd/endpointd/internal/testkit"
)

// duplicates are descriptors as a supervisor has them: they hold sockets open that their process has closed.
func duplicates(t testing.TB, conns ...syscall.Conn) []*os.File {
	t.Helper()
	var files []*os.File
	for _, c := range conns {
		raw, err := c.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		if err := raw.Control(func(fd uintptr) {
			again, err := unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0)
			if err != nil {
				t.Error(err)
			}
			files = append(files, os.NewFile(uintptr(again), "kept"))
		}); err != nil {
			t.Fatal(err)
		}
	}
	return files
}

// TestInherited has a server follow another one, whose sockets were kept meanwhile, with as many sockets, more and less: whatever was asked in between
// is answered.
func TestInherited(t *testing.T) {
	t.Parallel()
	s, stop := startUntil(t, Options{Sockets: 2})
	if s.Inherited() {
		t.Error("the first server has inherited")
	}
	listen := s.Addrs()
	for _, sockets := range []int{2, 5, 1} {
		kept := duplicates(t, s.Sockets()...)
		stop()
		packet := pack(t, question("web.ns.svc.cluster.test.", dns.TypeA))
		var asked []net.Conn
		for range 40 { // so many that each socket has some
			c := dial(t, listen[0])
			if _, err := c.Write(packet); err != nil {
				t.Fatal(err)
			}
			asked = append(asked, c)
		}
		stream, err := net.Dial("tcp", listen[0].String())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Write(append([]byte{0, byte(len(packet))}, packet...)); err != nil {
			t.Fatal(err)
		}
		s, stop = startUntil(t, Options{Listen: listen, Sockets: sockets, Inherited: kept})
		if !s.Inherited() || s.Addrs()[0] != listen[0] {
			t.Errorf("inherited %v, addresses %v", s.Inherited(), s.Addrs())
		}
		for _, c := range asked {
			wantBrief(t, readMsg(t, c), webAnswer)
		}
		r, err := (&dns.Conn{Conn: stream}).ReadMsg()
		if err != nil {
			t.Fatal(err)
		}
		wantBrief(t, r, webAnswer)
		_ = stream.Close()
	}
}

// What fits no address is closed, and what is missing is bound.
func TestInheritedOthers(t *testing.T) {
	t.Parallel()
	pid := os.Getpid()
	mine := func(second byte) netip.AddrPort { // where nobody takes a port while it is free
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, second, byte(pid >> 8), byte(pid)}), 0)
	}
	first, stop := startUntil(t, Options{Listen: []netip.AddrPort{mine(77), mine(78)}, Sockets: 1})
	here, there := first.Addrs()[0], first.Addrs()[1]
	kept := duplicates(t, first.Sockets()...)
	stop()

	file, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	tcp, err := net.Dial("tcp", here.String()) // the kept listener takes it
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close() //nolint:errcheck // a test
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := kept[0].Close(); err != nil { // the TCP listener of one
		t.Fatal(err)
	}
	all := append(duplicates(t, dial(t, here).(*net.UDPConn), tcp.(*net.TCPConn)), file, os.NewFile(uintptr(pair[0]), "unix"), os.NewFile(uintptr(pair[1]), "unix"))
	all = append(all, kept[1:]...)
	s := start(t, Options{Listen: []netip.AddrPort{here}, Inherited: all, Sockets: 3})
	if n := len(s.Sockets()); !s.Inherited() || n != 4 {
		t.Errorf("inherited %v, %d sockets", s.Inherited(), n)
	}
	for _, network := range []string{"udp", "tcp"} {
		wantBrief(t, ask(t, s, network, question("web.ns.svc.cluster.test.", dns.TypeA)), webAnswer)
	}
	again := start(t, Options{Listen: []netip.AddrPort{there}}) // nobody has it any more
	if again.Inherited() {
		t.Error("what was closed is inherited")
	}
	// Options that are refused do not leak either; the end of the tests would tell.
	if _, err := New(context.Background(), Options{Inherited: duplicates(t, s.Sockets()...)}); err == nil {
		t.Error("no error without an address")
	}
}

const foreignSocket = "DNS_SERVER_TEST_FOREIGN"

// TestInheritedElsewhere has a socket of another network namespace not be taken for one of this, though its address is the same. It runs alone: until
// a child executes it has all that is open here, and addresses that other tests bind again.
func TestInheritedElsewhere(t *testing.T) {
	testkit.Need(t, testkit.Net())
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pair[0]) //nolint:errcheck // a test
	theirs := os.NewFile(uintptr(pair[1]), "pair")
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
	cmd.Env, cmd.ExtraFiles, cmd.Stderr = append(os.Environ(), foreignSocket+"=1"), []*os.File{theirs}, os.Stderr
	cmd.SysProcAttr = testkit.AsRootOf(syscall.CLONE_NEWNET)
	err = cmd.Run()
	_ = theirs.Close()
	if err != nil {
		t.Fatal(err)
	}
	control := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(pair[0], make([]byte, 1), control, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	messages, err := unix.ParseSocketControlMessage(control[:n])
	if err != nil {
		t.Fatal(err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		t.Fatal(err)
	}
	foreign := os.NewFile(uintptr(fds[0]), "foreign")
	if isHere(foreign) {
		if _, err := unix.GetsockoptUint64(fds[0], unix.SOL_SOCKET, unix.SO_NETNS_COOKIE); err == nil {
			t.Error("a socket of another network passes for one of this")
		}
	}
	if got := inherit([]*os.File{foreign}); len(got.udp) > 0 {
		t.Errorf("inherited %v", got.udp)
	}
	mine := dial(t, netip.MustParseAddrPort("127.0.0.1:9"))
	if files := duplicates(t, mine.(*net.UDPConn)); !isHere(files[0]) || files[0].Close() != nil {
		t.Error("a socket of this network passes for one of another")
	}
}

// sendForeign sends a socket of this process's network to its parent.
func sendForeign() error {
	conn, err := net.ListenPacket("udp4", "0.0.0.0:5353")
	if err != nil {
		return err
	}
	raw, err := conn.(*net.UDPConn).SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := raw.Control(func(fd uintptr) { inner = unix.Sendmsg(3, []byte("x"), unix.UnixRights(int(fd)), nil, 0) }); err != nil {
		return err
	}
	if inner != nil {
		return fmt.Errorf("send the socket: %w", inner)
	}
	return conn.Close()
}
