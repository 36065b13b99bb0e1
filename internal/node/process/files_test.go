package process_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/endpointd/endpointd/internal/node/container"
	"github.com/endpointd/endpointd/internal/node/process"
)

// write makes a file and the folders above it.
func write(t *testing.T, path, text string) string {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
		t.Fatal(err)
	}
	return path
}

// listing gives every path below a folder.
func listing(t *testing.T, dir string) []string {
	t.Helper()
	var paths []string
	err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		paths = append(paths, path)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

func mounts(t *testing.T) string {
	t.Helper()
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// TestMounts has volumes at places that are there and at places that are not, on the machine's own files.
func TestMounts(t *testing.T) {
	data := t.TempDir()
	file := write(t, filepath.Join(data, "config", "key"), "value\n")
	volume := filepath.Dir(file)
	existing := filepath.Join(data, "there")
	beside := write(t, filepath.Join(data, "beside", "old"), "old\n")
	write(t, filepath.Join(existing, "hidden"), "hidden\n")
	if err := os.Symlink("beside/nowhere", filepath.Join(data, "dangling")); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name, script, want string
		mounts             []container.Mount
	}{
		{
			"existing directory", "ls " + existing + "; echo x > " + existing + "/new && cat " + existing + "/key",
			"key\nvalue\n", []container.Mount{{Source: volume, Target: existing}},
		},
		{
			"read-only", "echo x 2>/dev/null > " + existing + "/no || cat " + existing + "/key",
			"value\n", []container.Mount{{Source: volume, Target: existing, ReadOnly: true}},
		},
		{
			"missing below an existing directory", "ls " + filepath.Dir(beside) + "; cat " + filepath.Dir(beside) + "/a/b/key " + beside,
			"a\nold\nvalue\nold\n", []container.Mount{{Source: volume, Target: filepath.Dir(beside) + "/a/b"}},
		},
		{
			"missing in the root", "cat /no-such-folder/x/key; ls -d /usr /etc/passwd",
			"value\n/etc/passwd\n/usr\n", []container.Mount{{Source: volume, Target: "/no-such-folder/x"}},
		},
		{
			"file", "cat " + filepath.Dir(beside) + "/new-file " + beside,
			"value\nvalue\n", []container.Mount{
				{Source: file, Target: filepath.Dir(beside) + "/new-file"}, {Source: file, Target: beside},
			},
		},
		{
			"link that leads nowhere", "cat " + data + "/dangling",
			"value\n", []container.Mount{{Source: file, Target: filepath.Join(data, "dangling")}},
		},
		{
			"memory", "df -k " + existing + " | tail -1 | tr -s ' ' | cut -d' ' -f1,2; echo x > " + existing + "/f && ls " + existing,
			"tmpfs 1024\nf\n", []container.Mount{{Source: "tmpfs", Target: existing, Size: 1 << 20}},
		},
		{
			"one in another", "echo kept > " + existing + "/sub/../beside; cat " + existing + "/sub/key",
			"value\n", []container.Mount{
				{Source: filepath.Join(data, "beside"), Target: existing}, {Source: volume, Target: existing + "/sub"},
			},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := newRuntime(t, process.Options{})
			startPod(t, r, container.Sandbox{})
			before, rootBefore, mountsBefore := listing(t, data), rootEntries(t), mounts(t)
			c := shell("exec 2>&1; " + test.script)
			c.Mounts = test.mounts
			start(t, r, c)
			if after := mounts(t); after != mountsBefore {
				t.Errorf("mounts reached the machine:\n%s\nbefore:\n%s", after, mountsBefore)
			}
			status := nextExit(t, r)
			if got := output(t, r, c); got != test.want || status.ExitCode != 0 {
				t.Errorf("wrote %q, want %q; %+v", got, test.want, status)
			}
			after := slices.DeleteFunc(listing(t, data), func(path string) bool {
				// What the container itself wrote into its volume, and the mount point within a volume.
				return path == volume+"/new" || strings.HasPrefix(path, data+"/beside/sub") || path == data+"/beside/beside"
			})
			if !slices.Equal(after, before) || !slices.Equal(rootEntries(t), rootBefore) {
				t.Errorf("the machine's files changed: %v, before %v", after, before)
			}
			for _, made := range []string{volume + "/new", data + "/beside/sub", data + "/beside/beside"} {
				if err := os.RemoveAll(made); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

func rootEntries(t *testing.T) []string {
	t.Helper()
	entries, err := os.ReadDir("/")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, entry := range entries {
		names = append(names, entry.Name())
	}
	return names
}

// rootfs makes a root that has links alone; the machine's programs come with a mount.
func rootfs(t *testing.T) (dir string, programs container.Mount) {
	t.Helper()
	dir = t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"bin", "lib", "lib64"} {
		if err := os.Symlink("usr/"+name, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	return dir, container.Mount{Source: "/usr", Target: "/usr", ReadOnly: true}
}

func TestRootfs(t *testing.T) {
	dir, programs := rootfs(t)
	write(t, filepath.Join(dir, "etc", "hosts"), "hosts\n")
	before := listing(t, dir)
	for _, test := range []struct {
		name, script, want string
		change             func(*container.Container)
	}{
		{"entries", "echo /*", "/bin /dev /etc /lib /lib64 /proc /sys /usr\n", nil},
		{"own processes", "echo $$; ls -d /proc/[0-9]* | head -1", "1\n/proc/1\n", nil},
		{"devices", "echo lost > /dev/null; head -c 3 /dev/zero | od -An -tx1; ls /dev/fd/0 /dev/ptmx; test -c /dev/urandom && echo ok",
			" 00 00 00\n/dev/fd/0\n/dev/ptmx\nok\n", nil},
		{"shared memory", "echo x > /dev/shm/x && cat /dev/shm/x", "x\n", nil},
		{"machine's settings", "for f in /proc/sys/kernel/panic /proc/sysrq-trigger /sys/kernel/mm/ksm/run; do echo 0 2>/dev/null > $f && echo wrote $f; done; echo done",
			"done\n", nil},
		{"read-only", "echo x 2>/dev/null > /etc/new || echo refused; echo x > /dev/shm/x && echo memory", "refused\nmemory\n",
			func(c *container.Container) { c.ReadOnlyRootfs = true }},
		{"read-only, with a mount point that is missing", "cat /etc/hosts; mkdir 2>/dev/null /etc/no || cat /deep/er/hosts", "hosts\nhosts\n",
			func(c *container.Container) {
				c.ReadOnlyRootfs = true
				c.Mounts = append(c.Mounts, container.Mount{Source: filepath.Join(dir, "etc"), Target: "/deep/er"})
			}},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := newRuntime(t, process.Options{})
			startPod(t, r, container.Sandbox{})
			c := shell("exec 2>&1; " + test.script)
			c.Rootfs, c.Mounts = dir, []container.Mount{programs}
			if test.change != nil {
				test.change(&c)
			}
			if _, got := run(t, r, c); got != test.want {
				t.Errorf("wrote %q, want %q", got, test.want)
			}
			if after := listing(t, dir); !slices.Equal(after, before) {
				t.Errorf("the root file system changed: %v, before %v", after, before)
			}
		})
	}
}

// TestEscape has a root file system with links that lead out of it.
func TestEscape(t *testing.T) {
	dir, programs := rootfs(t)
	secret := t.TempDir()
	write(t, filepath.Join(secret, "secret"), "secret\n")
	volume := filepath.Dir(write(t, filepath.Join(t.TempDir(), "key"), "value\n"))
	for link, to := range map[string]string{"absolute": secret, "relative": strings.Repeat("../", 20) + secret} {
		if err := os.Symlink(to, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	for _, link := range []string{"absolute", "relative"} {
		t.Run(link, func(t *testing.T) {
			r := newRuntime(t, process.Options{})
			startPod(t, r, container.Sandbox{})
			c := shell("cat /" + link + "/in/key; cat /" + link + "/secret 2>/dev/null || echo nothing; ls " + secret)
			c.Rootfs, c.Mounts = dir, []container.Mount{programs, {Source: volume, Target: "/" + link + "/in"}}
			if _, got := run(t, r, c); got != "value\nnothing\nin\n" {
				t.Errorf("wrote %q", got)
			}
			if got := listing(t, secret); len(got) != 2 {
				t.Errorf("the machine's files changed: %v", got)
			}
		})
	}
	t.Run("through proc", func(t *testing.T) {
		r := newRuntime(t, process.Options{})
		startPod(t, r, container.Sandbox{})
		c := shell("true")
		c.Rootfs, c.Mounts = dir, []container.Mount{programs, {Source: volume, Target: "/proc/self/root/in"}}
		if _, err := r.Start(t.Context(), c); err == nil {
			t.Error("a mount point was followed through /proc")
			nextExit(t, r)
		}
	})
}

// TestReadOnlyMachine has a container on the machine's files that may write to its volume and to memory alone.
func TestReadOnlyMachine(t *testing.T) {
	dir, volume := t.TempDir(), t.TempDir()
	r := newRuntime(t, process.Options{})
	startPod(t, r, container.Sandbox{})
	c := shell("for d in " + dir + " " + volume + " /new /dev/shm; do echo x 2>/dev/null > $d/f && echo $d; done; echo x > /dev/null && echo end")
	c.ReadOnlyRootfs = true
	c.Mounts = []container.Mount{{Source: volume, Target: volume}, {Source: volume, Target: "/new"}}
	if _, got := run(t, r, c); got != volume+"\n/new\n/dev/shm\nend\n" {
		t.Errorf("it could write to %q", got)
	}
	if left := listing(t, dir); len(left) != 1 {
		t.Errorf("files on the machine: %v", left)
	}
}

// TestPropagation mounts on the node's side and in the container, and looks from the other.
func TestPropagation(t *testing.T) {
	for _, test := range []struct {
		propagate string
		down, up  bool
	}{{"", false, false}, {"HostToContainer", true, false}, {"Bidirectional", true, true}} {
		t.Run("mode "+test.propagate, func(t *testing.T) {
			dir := t.TempDir()
			mountTmpfs(t, dir, "")
			if err := unix.Mount("", dir, "", unix.MS_SHARED, ""); err != nil {
				t.Fatal(err)
			}
			down, up := filepath.Join(dir, "down"), filepath.Join(dir, "up")
			if err := errors.Join(os.Mkdir(down, 0o755), os.Mkdir(up, 0o755)); err != nil {
				t.Fatal(err)
			}
			r := newRuntime(t, process.Options{})
			startPod(t, r, container.Sandbox{})
			c := shell("mount -t tmpfs none /v/up && touch /v/up/seen && echo mounted; sleep 100")
			c.Privileged = true
			c.Mounts = []container.Mount{{Source: dir, Target: "/v", Propagate: test.propagate}}
			start(t, r, c)
			awaitOutput(t, r, c, "mounted\n")
			if _, err := os.Stat(filepath.Join(up, "seen")); (err == nil) != test.up {
				t.Errorf("the node sees the container's mount: %v, want %v", err == nil, test.up)
			}
			mountTmpfs(t, down, "")
			write(t, filepath.Join(down, "seen"), "")
			if code, _ := execute(t, r, "test", "-e", "/v/down/seen"); (code == 0) != test.down {
				t.Errorf("the container sees the node's mount: %v, want %v", code == 0, test.down)
			}
			if test.up {
				if err := unix.Unmount(up, unix.MNT_DETACH); err != nil {
					t.Error(err)
				}
			}
		})
	}
}
