package ebpf

import (
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/endpointd/endpointd/internal/dataplane"
	"github.com/endpointd/endpointd/internal/dataplane/dptest"
	"github.com/endpointd/endpointd/internal/testkit"
)

func TestSupported(t *testing.T) {
	n := newNode(t)
	if err := Supported(t.Context(), n.options); err != nil {
		t.Error(err)
	}
	n.sync()
	if err := Supported(t.Context(), n.options); err != nil {
		t.Errorf("beside one that runs: %v", err)
	}
	onePinEach(t, n)
}

func TestWhatIsMissingIsNamed(t *testing.T) {
	n := newNode(t)
	for want, change := range map[string]func(o *Options){
		"without a cgroup":     func(o *Options) { o.Cgroups = nil },
		"cgroup version 2 at ": func(o *Options) { o.Cgroups = []string{t.TempDir()} },
		"bpffs for pins at ":   func(o *Options) { o.Pins = t.TempDir() },
		"no such file":         func(o *Options) { o.Pins = filepath.Join(t.TempDir(), "none") },
	} {
		o := n.options
		change(&o)
		for name, err := range map[string]error{"Supported": Supported(t.Context(), o), "New": failsToStart(o)} {
			if !errors.Is(err, dataplane.ErrNotSupported) || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%s: %v, want that it is not supported and %q", name, err, want)
			}
		}
	}
}

func failsToStart(o Options) error {
	p, err := New(o)
	if err == nil {
		err = errors.Join(errors.New("it started"), p.Close())
	}
	return err
}

const insideUser = "EBPF_TEST_PINS"

// In a user namespace nobody may load programs, whoever he is there.
func TestUserNamespace(t *testing.T) {
	if pins := os.Getenv(insideUser); pins != "" {
		own, _, err := OwnCgroup()
		if err != nil {
			t.Fatal(err)
		}
		err = Supported(t.Context(), Options{Cgroups: []string{own}, Pins: pins, Logger: slog.Default()})
		if !errors.Is(err, dataplane.ErrNotSupported) || !strings.Contains(err.Error(), "user namespace") {
			t.Errorf("%v, want that it is not supported in a user namespace", err)
		}
		return
	}
	dptest.NeedBPF(t)
	testkit.Need(t, testkit.Net())
	pins := filepath.Join(t.TempDir(), "pins")
	if err := MountPins(pins); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(pins, 0); err != nil {
			t.Error(err)
		}
	})
	if err := os.Chmod(pins, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^TestUserNamespace$", "-test.v")
	cmd.Env = append(os.Environ(), insideUser+"="+pins)
	cmd.SysProcAttr = testkit.AsRootOf(syscall.CLONE_NEWNET | syscall.CLONE_NEWNS)
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "PASS: TestUserNamespace") {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestMountPinsTwice(t *testing.T) {
	n := newNode(t)
	if err := MountPins(n.options.Pins); err != nil {
		t.Error(err)
	}
	if err := MountPins(filepath.Join(n.options.Pins, "below")); err != nil { // a folder of a bpffs is good
		t.Error(err)
	}
	if err := os.Remove(filepath.Join(n.options.Pins, "below")); err != nil {
		t.Error(err)
	}
	if err := pinsExist(n.options.Pins); err != nil {
		t.Error(err)
	}
}

func TestCgroupMount(t *testing.T) {
	for line, want := range map[string][2]string{
		"41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw":                  {"/", "/sys/fs/cgroup/unified"},
		`41 31 0:38 /a\040b /x\134y rw,relatime shared:4 master:1 - cgroup2 none rw,nsdelegate`: {"/a b", `/x\y`},
		"40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd":                {},
		"40 31 0:37 / /cgroup2 rw - tmpfs cgroup2 rw":                                           {},
		"41 - cgroup2 x": {},
		"":               {},
	} {
		top, point, ok := cgroupMount(line)
		if top != want[0] || point != want[1] || ok != (want[1] != "") {
			t.Errorf("%q: %q at %q, %t", line, top, point, ok)
		}
	}
}
