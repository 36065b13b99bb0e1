package process_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/endpointd/endpointd/internal/node/container"
	"github.com/endpointd/endpointd/internal/node/process"
)

// TestStartError names for each mistake what the message must say, and sees that nothing of the container is left.
func TestStartError(t *testing.T) {
	dir := t.TempDir()
	plain := write(t, filepath.Join(dir, "plain"), "no program")
	garbage := write(t, filepath.Join(dir, "garbage"), "no program")
	script := write(t, filepath.Join(dir, "script"), "#!/no/such/interpreter\n")
	for _, file := range []string{garbage, script} {
		if err := os.Chmod(file, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	args := func(args ...string) func(*container.Container) {
		return func(c *container.Container) { c.Args = args }
	}
	for _, test := range []struct {
		name   string
		change func(*container.Container)
		code   int
		want   []string
	}{
		{"not in PATH", args("no-such-program"), 127, []string{"no-such-program", "not found in PATH /usr/bin:/bin"}},
		{"no such file", args("/no/such/program"), 127, []string{"/no/such/program", "no such file"}},
		{"empty", args(""), 127, []string{"command is empty"}},
		{"not executable", args(plain), 126, []string{"permission denied", plain, "chmod +x"}},
		{"a directory", args(dir), 126, []string{dir, "is a directory"}},
		{"no program", args(garbage), 126, []string{"exec format error"}},
		{"no interpreter", args(script), 127, []string{script, "interpreter"}},
		{"no working directory", func(c *container.Container) { c.WorkingDir = "/no/such" }, 128, []string{"working directory /no/such does not exist"}},
		{"working directory is a file", func(c *container.Container) { c.WorkingDir = plain }, 128, []string{"not a directory"}},
		{"no mount source", func(c *container.Container) {
			c.Mounts = []container.Mount{{Source: "/no/such", Target: dir}}
		}, 128, []string{"mount /no/such at " + dir, "does not exist on the node"}},
		{"file over a directory", func(c *container.Container) {
			c.Mounts = []container.Mount{{Source: plain, Target: dir}}
		}, 128, []string{"mount point " + dir, "it is a directory in the container"}},
		{"mount point that is no path", func(c *container.Container) {
			c.Mounts = []container.Mount{{Source: dir, Target: "data"}}
		}, 128, []string{`mount point "data"`, "absolute path"}},
		{"no root", func(c *container.Container) { c.Rootfs = "/no/such" }, 128, []string{"root file system /no/such", "directory on the node"}},
		{"unknown capability", func(c *container.Container) { c.Capabilities = []string{"CAP_FLY"} }, 128, []string{`unknown capability "CAP_FLY"`}},
		{"NUL", func(c *container.Container) { c.Env = []string{"A=\x00"} }, 128, []string{"NUL"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := newRuntime(t, process.Options{})
			startPod(t, r, container.Sandbox{})
			c := shell("true")
			test.change(&c)
			_, err := r.Start(t.Context(), c)
			var startErr *container.StartError
			if !errors.As(err, &startErr) {
				t.Fatalf("start is %v, want a StartError", err)
			}
			if startErr.Code != test.code || startErr.Reason != "RunContainerError" {
				t.Errorf("code %d, reason %s; want %d", startErr.Code, startErr.Reason, test.code)
			}
			for _, want := range append(test.want, "container main") {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("the message %q lacks %q", err, want)
				}
			}
			pods, err := r.Pods(t.Context())
			if err != nil || len(pods) != 1 || len(pods[0].Containers) != 0 {
				t.Errorf("left behind: %+v, %v", pods, err)
			}
		})
	}
}

func TestUnmappedUser(t *testing.T) {
	if os.Getenv(inside) != worldUser {
		t.Skip("every user is known in the world of root")
	}
	r := newRuntime(t, process.Options{})
	startPod(t, r, container.Sandbox{})
	c := shell("true")
	c.User.UID = 1000
	_, err := r.Start(t.Context(), c)
	if err == nil || !strings.Contains(err.Error(), "user 1000: it is not mapped in this user namespace") {
		t.Errorf("start as an unknown user: %v", err)
	}
}

func TestStartPodRefuses(t *testing.T) {
	r := newRuntime(t, process.Options{})
	startPod(t, r, container.Sandbox{})
	if _, err := r.StartPod(t.Context(), container.Sandbox{UID: "uid-1"}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("the same UID again: %v", err)
	}
	for name, test := range map[string]struct {
		sandbox container.Sandbox
		want    string
	}{
		"path as UID":     {container.Sandbox{UID: "../x"}, "not safe"},
		"machine sysctl":  {container.Sandbox{UID: "s", Sysctls: map[string]string{"vm.swappiness": "1"}}, "vm.swappiness"},
		"path as sysctl":  {container.Sandbox{UID: "s", Sysctls: map[string]string{"net.../../vm/x": "1"}}, "with dots"},
		"unknown sysctl":  {container.Sandbox{UID: "s", Sysctls: map[string]string{"net.no.such": "1"}}, "net.no.such"},
		"hostNetwork":     {container.Sandbox{UID: "s", HostNetwork: true, Sysctls: map[string]string{"net.core.somaxconn": "1"}}, "hostNetwork"},
		"hostname length": {container.Sandbox{UID: "s", Hostname: strings.Repeat("x", 100)}, "hostname"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := r.StartPod(t.Context(), test.sandbox)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("start is %v, want %q in it", err, test.want)
			}
		})
	}
	pods, err := r.Pods(t.Context())
	if err != nil || len(pods) != 1 {
		t.Errorf("pods are %+v, %v", pods, err)
	}
	c := shell("sleep 100")
	start(t, r, c)
	if _, err := r.Start(t.Context(), c); err == nil || !strings.Contains(err.Error(), "runs already") {
		t.Errorf("a second container of the name: %v", err)
	}
}

func TestSandbox(t *testing.T) {
	r := newRuntime(t, process.Options{})
	p := startPod(t, r, container.Sandbox{Sysctls: map[string]string{"net.ipv4.ip_local_port_range": "2000 3000"}, Labels: map[string]string{"a": "b"}})
	if p.Sandbox.Labels["a"] != "b" || p.PID == 0 {
		t.Errorf("pod is %+v", p)
	}
	if _, err := os.Stat(p.NetNS); err != nil {
		t.Error(err)
	}
	_, got := run(t, r, shell("hostname; echo $(cat /proc/sys/net/ipv4/ip_local_port_range); cat /sys/class/net/lo/operstate >/dev/null; "+
		"grep -c . /proc/net/if_inet6; awk '/lo:/{print $1}' /proc/net/dev; ls /proc/sys/net/ipv4/conf; pwd; umask; echo $MARK $HOME; ulimit -n"))
	want := "web\n2000 3000\n"
	if !strings.HasPrefix(got, want) || !strings.Contains(got, "all\ndefault\nlo\n/\n0022\nhere\n") {
		t.Errorf("the container sees %q", got)
	}
}

// TestFirstProcess sees that a container has a process namespace to itself, or shares the pod's.
func TestFirstProcess(t *testing.T) {
	for _, share := range []bool{false, true} {
		r := newRuntime(t, process.Options{})
		startPod(t, r, container.Sandbox{ShareProcessNamespace: share})
		other := shell("sleep 100")
		other.Name = "other"
		start(t, r, other)
		// It counts until there are as many as there should be, because the other one may not be sleep yet. Grep finds itself.
		status, got := run(t, r, shell("echo $$; i=0; while n=$(grep -lsx -z 100 /proc/[0-9]*/cmdline | wc -l); [ $n -lt "+map[bool]string{false: "1", true: "2"}[share]+
			" -a $i -lt 300 ]; do i=$((i+1)); sleep 0.05; done; echo $n; sleep 1000 & exit 3"))
		want := map[bool]string{false: "1\n1\n", true: ""}[share]
		if share && (strings.HasPrefix(got, "1\n") || !strings.HasSuffix(got, "\n2\n")) || !share && got != want {
			t.Errorf("shareProcessNamespace %v: wrote %q", share, got)
		}
		if status.ExitCode != 3 {
			t.Errorf("exit is %+v", status)
		}
		if left := processes(t, "sleep\x001000"); left != 0 {
			t.Errorf("shareProcessNamespace %v: %d processes are left of the container that exited", share, left)
		}
	}
}
