package process_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/endpointd/endpointd/internal/node/container"
	"github.com/endpointd/endpointd/internal/node/process"
)

// rights prints what a process is and may.
const rights = `id -u; id -g; id -G; grep -E '^(Cap(Inh|Prm|Eff|Bnd|Amb)|NoNewPrivs|SigIgn|SigBlk):' /proc/self/status | tr -d '\t' | tr '\n' ' '; echo`

func TestRights(t *testing.T) {
	const bind, chown = "0000000000000400", "0000000000000001"
	const none = "0000000000000000"
	status := func(inh, prm, eff, bnd, nnp string) string {
		return "SigBlk:" + none + " SigIgn:" + none + " CapInh:" + inh + " CapPrm:" + prm + " CapEff:" + eff + " CapBnd:" + bnd + " CapAmb:" + none + " NoNewPrivs:" + nnp + " \n"
	}
	for _, test := range []struct {
		name, world string
		change      func(*container.Container)
		want        string
	}{
		{"root without capabilities", "", nil, "0\n0\n0\n" + status(none, none, none, none, "0")},
		{"root with one", "", func(c *container.Container) { c.Capabilities = []string{"CAP_NET_BIND_SERVICE"} },
			"0\n0\n0\n" + status(none, bind, bind, bind, "0")},
		{"no new privileges", "", func(c *container.Container) { c.NoNewPrivileges, c.Capabilities = true, []string{"chown"} },
			"0\n0\n0\n" + status(none, chown, chown, chown, "1")},
		{"user with one", worldRoot, func(c *container.Container) {
			c.User = container.User{UID: 1000, GID: 1001, Groups: []uint32{1002, 1003}}
			c.Capabilities = []string{"NET_BIND_SERVICE"}
		}, "1000\n1001\n1001 1002 1003\n" + status(none, none, none, bind, "0")},
	} {
		if test.world != "" && test.world != os.Getenv(inside) {
			continue
		}
		t.Run(test.name, func(t *testing.T) {
			r := newRuntime(t, process.Options{})
			startPod(t, r, container.Sandbox{})
			c := shell(rights)
			if test.change != nil {
				test.change(&c)
			}
			if _, got := run(t, r, c); got != test.want {
				t.Errorf("in the container:\n%swant:\n%s", got, test.want)
			}
			c = shell("sleep 100")
			if test.change != nil {
				test.change(&c)
			}
			c.Attempt = 1
			start(t, r, c)
			code, got := execute(t, r, "sh", "-c", rights)
			if code != 0 || got != test.want {
				t.Errorf("exec: code %d\n%swant:\n%s", code, got, test.want)
			}
		})
	}
}

func TestPrivileged(t *testing.T) {
	r := newRuntime(t, process.Options{})
	startPod(t, r, container.Sandbox{})
	c := shell("mkdir " + t.TempDir() + "/m && mount -t tmpfs none /tmp && echo mounted; echo 5 > /proc/sys/net/ipv4/ip_default_ttl && echo written")
	c.Privileged, c.ReadOnlyRootfs = true, true
	if _, got := run(t, r, c); got != "mounted\nwritten\n" {
		t.Errorf("a privileged container wrote %q", got)
	}
}

// TestFilesOfUser sees that a user is held to its own rights, with a directory and a program that it must not use.
func TestFilesOfUser(t *testing.T) {
	if os.Getenv(inside) != worldRoot {
		t.Skip("there is one user only")
	}
	dir := t.TempDir()
	secret := filepath.Join(dir, "secret")
	if err := os.Mkdir(secret, 0o700); err != nil {
		t.Fatal(err)
	}
	r := newRuntime(t, process.Options{})
	startPod(t, r, container.Sandbox{})
	c := shell("true")
	c.User = container.User{UID: 1000, GID: 1000}
	c.WorkingDir = secret
	if _, err := r.Start(t.Context(), c); err == nil || !strings.Contains(err.Error(), "user 1000 may not enter working directory") {
		t.Errorf("working directory of another: %v", err)
	}
	c.WorkingDir, c.Args = "", []string{filepath.Join(secret, "program")}
	if _, err := r.Start(t.Context(), c); err == nil || !strings.Contains(err.Error(), "permission denied: user 1000 may not execute") {
		t.Errorf("program of another: %v", err)
	}
}
