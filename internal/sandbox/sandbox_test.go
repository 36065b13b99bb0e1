package sandbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/endpointd/endpointd/internal/testkit"
)

const patience = 15 * time.Second

func prefixes(texts ...string) []netip.Prefix {
	var all []netip.Prefix
	for _, text := range texts {
		all = append(all, netip.MustParsePrefix(text))
	}
	return all
}

// box is a sandbox under test.
type box struct {
	*testing.T
	*Sandbox
	dir    string
	events chan Event
}

func start(t *testing.T, nodes int, prepare ...func(dir string)) *box {
	t.Helper()
	testkit.Need(t, testkit.Net())
	b := &box{T: t, dir: t.TempDir(), events: make(chan Event, 1000)}
	for _, f := range prepare {
		f(b.dir)
	}
	spec, err := testSpec(b.dir, nodes)
	check(t, err)
	api, err := listenOn("tcp", "127.0.0.1:0")
	check(t, err)
	b.Sandbox, err = Start(Options{Spec: spec, Args: []string{"inside"}, API: api, Event: func(e Event) { b.events <- e }})
	check(t, errors.Join(err, api.Close()))
	t.Cleanup(func() {
		b.Kill()
		if t.Failed() {
			files, _ := filepath.Glob(filepath.Join(b.dir, "logs", "*"))
			for _, f := range files {
				text, _ := os.ReadFile(f)
				t.Logf("%s:\n%s", filepath.Base(f), text)
			}
		}
	})
	if nodes == 0 {
		b.await("sandbox", EventStep)
	} else {
		b.await("nodes", EventStep)
	}
	return b
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// await returns the next event of a part.
func (b *box) await(name string, kind EventKind) Event {
	b.Helper()
	late := time.After(patience)
	for {
		select {
		case e := <-b.events:
			if e.Name == name && e.Kind == kind {
				return e
			}
		case <-b.Done():
			b.Fatalf("it ended: %v", b.Err())
		case <-late:
			b.Fatalf("no %s event of %s", kind, name)
		}
	}
}

// exec runs this binary inside; stdin is closed after input.
func (b *box) exec(c Command, input string) (stdout, stderr string, code int, err error) {
	b.Helper()
	client := b.dial()
	defer client.Close() //nolint:errcheck // a test
	var streams, ours [3]*os.File
	for i := range streams {
		r, w, err := os.Pipe()
		check(b, err)
		if streams[i], ours[i] = w, r; i == 0 {
			streams[i], ours[i] = r, w
		}
	}
	_, _ = io.WriteString(ours[0], input)
	_ = ours[0].Close()
	code, err = client.Exec(b.Context(), c, streams)
	closeFiles(streams[:])
	out, _ := io.ReadAll(ours[1])
	errOut, _ := io.ReadAll(ours[2])
	closeFiles(ours[:])
	return string(out), string(errOut), code, err
}

func (b *box) dial() *Client {
	b.Helper()
	var client *Client
	testkit.Await(b, patience, func() (err error) { client, err = Dial(b.dir); return err })
	return client
}

func (b *box) status() map[string]PartStatus {
	b.Helper()
	client := b.dial()
	defer client.Close() //nolint:errcheck // a test
	s, err := client.Status()
	check(b, err)
	parts := map[string]PartStatus{}
	for _, p := range s.Parts {
		parts[p.Name] = p
	}
	return parts
}

// A node is on the network, has its own name and resolv.conf, and reaches the others.
func TestNetwork(t *testing.T) {
	b := start(t, 2)
	for _, from := range []string{"", "node-1", "node-2"} {
		for to, address := range map[string]string{"server": "10.200.0.1", "node-1": "10.200.0.11", "node-2": "[fd00:200::c]"} {
			testkit.Await(t, patience, func() error { // a part listens a moment after it runs
				out, errOut, _, err := b.exec(Command{Node: from, Args: []string{os.Args[0], "dial", address}}, "")
				if err != nil || out != to {
					return fmt.Errorf("from %q to %s: %q %s %w", from, address, out, errOut, err)
				}
				return nil
			})
		}
	}
	wd, err := os.Getwd()
	check(t, err)
	out, _, code, err := b.exec(Command{Node: "node-2", Args: []string{os.Args[0], "show"}, Env: []string{"A=1"}, Dir: wd}, "")
	check(t, err)
	for _, want := range []string{"host node-2 wd " + wd + " env [A=1]", "nameserver 10.96.0.10\nsearch default.svc.cluster.local ", "eth0 [10.200.0.12/24 fd00:200::c/64"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in (exit code %d)\n%s", want, code, out)
		}
	}
	if strings.Contains(out, bridgeName) {
		t.Errorf("a node sees the bridge:\n%s", out)
	}
}

func TestExecCodes(t *testing.T) {
	b := start(t, 0)
	for _, test := range []struct {
		command     string
		input, want string
		code        int
	}{
		{"cat; exit 3", "hello", "hello", 3},
		{"kill -TERM $$", "", "", 128 + 15},
		{"echo $A", "", "b\n", 0},
	} {
		out, errOut, code, err := b.exec(Command{Args: []string{"sh", "-c", test.command}, Env: []string{"A=b", "PATH=/usr/bin:/bin"}}, test.input)
		if out != test.want || code != test.code || err != nil {
			t.Errorf("%s: %q %q, exit code %d, %v", test.command, out, errOut, code, err)
		}
	}
	for _, test := range []struct {
		Command
		code int
		want string
	}{
		{Command{Args: []string{"nosuch"}}, 127, "nosuch: file does not exist in PATH"},
		{Command{Args: []string{"/etc/passwd"}}, 126, "permission denied"},
		{Command{Args: []string{"true"}, Node: "node-9"}, 1, `no node "node-9"`},
		{Command{}, 1, "arguments"},
	} {
		_, _, code, err := b.exec(test.Command, "")
		if code != test.code || err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%v: exit code %d, %v", test.Args, code, err)
		}
	}
}

// A command ends with its client.
func TestExecClientDies(t *testing.T) {
	b := start(t, 0)
	r, w, err := os.Pipe()
	check(t, err)
	defer r.Close() //nolint:errcheck // a test
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	check(t, err)
	defer null.Close() //nolint:errcheck // a test
	client := b.dial()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := client.Exec(ctx, Command{Args: []string{"sh", "-c", "echo runs; sleep 1000 & wait"}, Env: []string{"PATH=/usr/bin:/bin"}}, [3]*os.File{null, w, null})
		ended <- err
	}()
	text := make([]byte, 4)
	_, err = io.ReadFull(r, text)
	check(t, err)
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("exec: %v", err)
	}
	_ = w.Close()
	check(t, r.SetReadDeadline(time.Now().Add(patience)))
	if _, err := io.ReadAll(r); err != nil { // its end is that of all who hold the pipe
		t.Errorf("the command still runs: %v", err)
	}
}

// A part that dies is started again, and says so.
func TestRestart(t *testing.T) {
	b := start(t, 1)
	testkit.Await(t, patience, func() error {
		if b.status()["node-1"].PID == 0 {
			return errors.New("node-1 does not run")
		}
		return nil
	})
	before := b.status()["node-1"]
	check(t, syscall.Kill(before.PID, syscall.SIGKILL))
	e := b.await("node-1", EventExited)
	if e.Text != "killed by killed" || e.Again != firstBackoff {
		t.Errorf("event %+v", e)
	}
	testkit.Await(t, patience, func() error {
		if now := b.status()["node-1"]; now.PID == 0 || now.PID == before.PID || now.Restarts != 1 || now.LastExit != e.Text {
			return fmt.Errorf("%+v", now)
		}
		return nil
	})
	testkit.Await(t, patience, func() error {
		log, err := os.ReadFile(LogFile(b.dir, "node-1"))
		if n := bytes.Count(log, []byte("part node-1 runs\n")); n != 2 {
			return fmt.Errorf("log says %d times that it runs: %w", n, err)
		}
		return nil
	})
}

// What a node's part keeps collects connections while the part is killed and started again, and goes with the sandbox. The server keeps nothing.
func TestKept(t *testing.T) {
	b := start(t, 1)
	logs := func(part, text string, times int) {
		t.Helper()
		testkit.Await(t, patience, func() error {
			log, err := os.ReadFile(LogFile(b.dir, part))
			if n := bytes.Count(log, []byte("part "+part+" "+text+"\n")); n != times {
				return fmt.Errorf("%s says %d times that it %s, want %d: %w", part, n, text, times, err)
			}
			return nil
		})
	}
	logs("node-1", "runs", 1)
	logs("server", "runs", 1)
	for times := 1; times <= 2; times++ {
		check(t, syscall.Kill(b.status()["node-1"].PID, syscall.SIGKILL))
		for range 3 { // some of them before it runs again
			if out, errOut, _, err := b.exec(Command{Args: []string{os.Args[0], "dial", "10.200.0.11"}}, ""); err != nil || out != "node-1" {
				t.Errorf("while it is started again: %q %s %v", out, errOut, err)
			}
		}
		logs("node-1", "inherits", times)
	}
	check(t, syscall.Kill(b.status()["server"].PID, syscall.SIGKILL))
	logs("server", "runs", 2)
	logs("server", "inherits", 0)
	check(t, b.Stop(t.Context()))
	if left, err := filepath.Glob(filepath.Join(runDir(b.dir), "*"+keptSuffix)); err != nil || len(left) > 0 {
		t.Errorf("left: %v %v", left, err)
	}
}

func TestStop(t *testing.T) {
	b := start(t, 2)
	for _, part := range []string{"server", "node-1", "node-2"} {
		testkit.Await(t, patience, func() error { // before, nobody listens to SIGTERM
			log, err := os.ReadFile(LogFile(b.dir, part))
			if !bytes.Contains(log, []byte("runs")) {
				return fmt.Errorf("%s does not run yet: %w", part, err)
			}
			return nil
		})
	}
	pid := b.PID()
	began := time.Now()
	check(t, b.Stop(t.Context()))
	if took := time.Since(began); took > agentGrace {
		t.Errorf("took %v, although everything ends on SIGTERM", took)
	}
	if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("the inside is still there: %v", err)
	}
	if _, err := Dial(b.dir); !errors.Is(err, ErrNotRunning) {
		t.Errorf("dial after the end: %v", err)
	}
}

// When the inside dies, that is an error that names it.
func TestInsideDies(t *testing.T) {
	b := start(t, 1)
	check(t, syscall.Kill(b.PID(), syscall.SIGKILL))
	<-b.Done()
	if err := b.Err(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("%v", err)
	}
}

// When the host side is killed, nothing runs on.
func TestHostDies(t *testing.T) {
	testkit.Need(t, testkit.Net())
	dir := t.TempDir()
	host := exec.Command(os.Args[0])
	host.Args = []string{"host", dir}
	out, err := host.StdoutPipe()
	check(t, err)
	check(t, host.Start())
	ready := make([]byte, len("ready\n"))
	_, err = io.ReadFull(out, ready)
	check(t, err)
	var pids []int // of the inside and its parts
	testkit.Await(t, patience, func() error {
		client, err := Dial(dir)
		if err != nil {
			return err
		}
		defer client.Close() //nolint:errcheck // a test
		s, err := client.Status()
		if err != nil || len(s.Parts) != 2 || s.Parts[0].PID*s.Parts[1].PID == 0 {
			return fmt.Errorf("%v %w", s, err)
		}
		pids = []int{client.peer(), s.Parts[0].PID, s.Parts[1].PID}
		return nil
	})
	check(t, host.Process.Kill())
	_ = host.Wait() // it was killed
	for _, pid := range pids {
		testkit.Await(t, patience, func() error {
			if err := syscall.Kill(pid, 0); pid == 0 || !errors.Is(err, syscall.ESRCH) {
				return fmt.Errorf("pid %d is still there: %w", pid, err)
			}
			return nil
		})
	}
	check(t, Clean(dir))
	if _, err := os.Stat(filepath.Join(runDir(dir), controlName)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the control socket is left: %v", err)
	}
}

func TestPublish(t *testing.T) {
	free, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	address := free.Addr().String()
	_, port, _ := net.SplitHostPort(address)
	write := func(dir string) { check(t, os.WriteFile(filepath.Join(dir, "port"), []byte(port), 0o600)) }

	taken := start(t, 0, write)
	if e := taken.await("test", EventWarn); !strings.Contains(e.Text, "address already in use") {
		t.Errorf("%+v", e)
	}
	check(t, free.Close())
	b := start(t, 0, write)
	b.await("test", EventStep)
	conn, err := net.Dial("tcp", address)
	check(t, err)
	defer conn.Close() //nolint:errcheck // a test
	if text, err := io.ReadAll(conn); string(text) != "inside" {
		t.Errorf("%q %v", text, err)
	}
}

// The machine's own network is the same before, during and after.
func TestMachineUntouched(t *testing.T) {
	look := func() string {
		var text strings.Builder
		links, err := netlink.LinkList()
		check(t, err)
		for _, l := range links {
			fmt.Fprintln(&text, l.Attrs().Name, l.Type(), l.Attrs().OperState)
		}
		addrs, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
		check(t, err)
		for _, a := range addrs {
			fmt.Fprintln(&text, a.String())
		}
		for _, table := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			routes, err := netlink.RouteListFiltered(table, &netlink.Route{}, netlink.RT_FILTER_TABLE*0)
			check(t, err)
			rules, err := netlink.RuleList(table)
			check(t, err)
			fmt.Fprintln(&text, routes, rules)
		}
		mounts, err := os.ReadFile("/proc/self/mounts")
		check(t, err)
		host, err := os.Hostname()
		check(t, err)
		forward, err := os.ReadFile("/proc/sys/net/ipv4/ip_forward")
		check(t, err)
		return text.String() + string(mounts) + host + string(forward)
	}
	before := look()
	b := start(t, 2)
	if during := look(); during != before {
		t.Errorf("during\n%s\nbefore\n%s", during, before)
	}
	check(t, b.Stop(t.Context()))
	if after := look(); after != before {
		t.Errorf("after\n%s\nbefore\n%s", after, before)
	}
}
