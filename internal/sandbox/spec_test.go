package sandbox

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestLayout(t *testing.T) {
	s, err := Layout(12, prefixes("10.244.0.0/16", "fd00:244::/56"), prefixes("10.96.0.0/16", "fd00:96::/112"))
	check(t, err)
	last := s.Nodes[11]
	if got, want := fmt.Sprint(s.Gateways, last), "[10.200.0.1/24 fd00:200::1/64] {node-12 [10.200.0.22 fd00:200::16] [10.244.12.0/24 fd00:244:0:c::/64] [] }"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	six, err := Layout(1, prefixes("fd00:244::/56"), prefixes("fd00:96::/112"))
	check(t, err)
	if got, want := fmt.Sprint(six.Gateways, six.Nodes), "[fd00:200::1/64] [{node-1 [fd00:200::b] [fd00:244:0:1::/64] [] }]"; got != want {
		t.Errorf("IPv6 alone: got %s, want %s", got, want)
	}
	if got := Resolv(netip.MustParsePrefix("fd00:96::/112")); !strings.HasPrefix(got, "nameserver fd00:96::a\n") {
		t.Errorf("resolv.conf %q", got)
	}
	for _, test := range []struct {
		nodes          int
		pods, services []netip.Prefix
		want           string
	}{
		{-1, prefixes("10.244.0.0/16"), nil, "-1 nodes"},
		{MaxNodes + 1, prefixes("10.244.0.0/16"), nil, "201 nodes"},
		{1, nil, nil, "want one, or one of each"},
		{1, prefixes("10.1.0.0/16", "10.2.0.0/16"), nil, "want one, or one of each"},
		{1, prefixes("10.244.0.0/16"), prefixes("10.244.128.0/24"), "10.244.0.0/16 and 10.244.128.0/24 overlap"},
		{1, prefixes("10.200.0.0/16"), nil, "10.200.0.0/24 and 10.200.0.0/16 overlap"},
		{4, prefixes("10.244.0.0/22"), nil, "10.244.0.0/22: too small for 4 nodes of a /24"},
		{1, prefixes("10.244.0.0/25"), nil, "too small"},
	} {
		if _, err := Layout(test.nodes, test.pods, test.services); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%d %v %v: %v, want %q", test.nodes, test.pods, test.services, err, test.want)
		}
	}
	if _, err := Layout(3, prefixes("10.244.0.0/22"), nil); err != nil {
		t.Errorf("three nodes fit: %v", err)
	}
}

func TestBackoff(t *testing.T) {
	var got []string
	var wait time.Duration
	for _, ran := range []time.Duration{0, 0, time.Second, 0, 0, 0, 0, 0, 9 * time.Second, 10 * time.Second, 0} {
		wait = nextBackoff(wait, ran)
		got = append(got, wait.String())
	}
	if want := "100ms 200ms 400ms 800ms 1.6s 3.2s 5s 5s 5s 100ms 200ms"; strings.Join(got, " ") != want {
		t.Errorf("got %v, want %s", got, want)
	}
}

func TestLogFileIsBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "logs", "x.log")
	l, err := openLog(path)
	check(t, err)
	l.max = 10
	for _, text := range []string{"12345", "67890", "abc", "a line that is longer than a file"} {
		if n, err := l.Write([]byte(text)); n != len(text) || err != nil {
			t.Errorf("%d %v", n, err)
		}
	}
	check(t, l.Close())
	for file, want := range map[string]string{path: "a line that is longer than a file", path + ".1": "abc"} {
		if text, err := os.ReadFile(file); string(text) != want {
			t.Errorf("%s: %q %v, want %q", file, text, err, want)
		}
	}
}

func TestLookPath(t *testing.T) {
	dir := t.TempDir()
	check(t, os.Mkdir(filepath.Join(dir, "folder"), 0o755))
	check(t, os.WriteFile(filepath.Join(dir, "text"), nil, 0o644))
	check(t, os.WriteFile(filepath.Join(dir, "program"), nil, 0o755))
	env := []string{"A=b", "PATH=/nowhere:" + dir}
	if got, err := lookPath("program", env); got != filepath.Join(dir, "program") || err != nil {
		t.Errorf("%q %v", got, err)
	}
	for name, want := range map[string]error{"none": os.ErrNotExist, "text": os.ErrPermission, "folder": os.ErrPermission, dir + "/text": os.ErrPermission, dir + "/none": os.ErrNotExist} {
		if _, err := lookPath(name, env); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", name, err, want)
		}
	}
}

func TestLock(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	lock, err := Acquire(dir)
	check(t, err)
	var running *RunningError
	if _, err := Acquire(dir); !errors.As(err, &running) || running.PID != os.Getpid() || !strings.Contains(err.Error(), "endpointd down") {
		t.Errorf("%v", err)
	}
	if !holds(os.Getpid(), lockFile(dir)) {
		t.Error("this process does not hold the file that it holds")
	}
	lock.Release()
	if holds(os.Getpid(), lockFile(dir)) || holds(1<<30, lockFile(dir)) {
		t.Error("somebody holds the file that nobody holds")
	}
	if ran, err := Down(t.Context(), dir); ran || err != nil {
		t.Errorf("down where nothing runs: %v %v", ran, err)
	}
	empty := t.TempDir()
	for _, other := range []string{dir + "none", empty} {
		if ran, err := Down(t.Context(), other); ran || err != nil {
			t.Errorf("down where never one was: %v %v", ran, err)
		}
	}
	if made, err := filepath.Glob(empty + "*/*"); len(made) > 0 || err != nil {
		t.Errorf("down made %v %v", made, err)
	}
	if _, err := os.Stat(dir + "none"); !errors.Is(err, os.ErrNotExist) {
		t.Error("down made a folder")
	}
}

func TestMissing(t *testing.T) {
	if text := missing(syscall.EPERM).Error(); !strings.Contains(text, "run as root") || strings.Contains(text, "\n") {
		t.Errorf("%q does not say in one line what to do", text)
	}
}

func TestInsideEnviron(t *testing.T) {
	got := insideEnviron([]string{"PATH=/bin", "HTTPS_PROXY=http://proxy", "no_proxy=x", "KUBECONFIG=/mine", "PROXY=kept"})
	if want := "[PATH=/bin PROXY=kept]"; fmt.Sprint(got) != want {
		t.Errorf("got %v, want %s", got, want)
	}
}
