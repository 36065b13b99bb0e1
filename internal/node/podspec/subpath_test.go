package podspec

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
)

func TestSubPathStaysInItsVolume(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "host-secret")
	must(t, os.Mkdir(secret, 0o700))
	writeText(t, filepath.Join(secret, "f"), "secret")
	tests := []struct {
		name, path string
		make       func(volume string)
		want       string // below the volume; "" = refused
	}{
		{"a folder", "a", func(v string) { must(t, os.Mkdir(filepath.Join(v, "a"), 0o755)) }, "a"},
		{"a file", "f", func(v string) { writeText(t, filepath.Join(v, "f"), "") }, "f"},
		{"made", "new/deep", func(string) {}, "new/deep"},
		{"half made", "a/new", func(v string) { must(t, os.Mkdir(filepath.Join(v, "a"), 0o755)) }, "a/new"},
		{"a link within", "l", func(v string) {
			must(t, os.Mkdir(filepath.Join(v, "a"), 0o755))
			must(t, os.Symlink("a", filepath.Join(v, "l")))
		}, "a"},
		{"a link up and down again", "a/l", func(v string) {
			must(t, os.Mkdir(filepath.Join(v, "a"), 0o755))
			must(t, os.Symlink("../a", filepath.Join(v, "a/l")))
		}, "a"},
		{"made behind a link within", "l/new", func(v string) {
			must(t, os.Mkdir(filepath.Join(v, "a"), 0o755))
			must(t, os.Symlink("a", filepath.Join(v, "l")))
		}, "a/new"},
		{"an absolute link", "l", func(v string) { must(t, os.Symlink(secret, filepath.Join(v, "l"))) }, ""},
		{"behind an absolute link", "l/f", func(v string) { must(t, os.Symlink(secret, filepath.Join(v, "l"))) }, ""},
		{"made behind an absolute link", "l/new", func(v string) { must(t, os.Symlink(secret, filepath.Join(v, "l"))) }, ""},
		{"a link up", "l", func(v string) { must(t, os.Symlink("../..", filepath.Join(v, "l"))) }, ""},
		{"a link to itself", "l", func(v string) { must(t, os.Symlink("l", filepath.Join(v, "l"))) }, ""},
		{"a link to nothing", "l", func(v string) { must(t, os.Symlink("gone", filepath.Join(v, "l"))) }, ""},
		{"a way out by name", "a/../../x", func(string) {}, ""},
		{"an absolute path", "/etc", func(string) {}, ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			b, _ := newBuilder(t, newObjects())
			pod := withVolume(corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}})
			pod.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "v", MountPath: "/v", SubPath: test.path}}
			must(t, b.Prepare(t.Context(), pod))
			volume := filepath.Join(b.dir, "uid-1/v")
			test.make(volume)
			c, err := b.Container(t.Context(), pod, &pod.Spec.Containers[0], facts())
			if test.want == "" {
				wantError(t, err, ReasonContainerConfig, "subPath")
			} else if err != nil {
				t.Error(err)
			} else if got := c.Mounts[0].Source; got != filepath.Join(volume, test.want) || c.Mounts[0].Target != "/v" {
				t.Errorf("mount %+v, want %s", c.Mounts[0], test.want)
			}
			entries, err := os.ReadDir(secret)
			if err != nil || len(entries) != 1 {
				t.Errorf("something was made outside: %v, %v", entries, err)
			}
		})
	}
}

func TestSubPathOfAnObject(t *testing.T) {
	source := newObjects()
	source.setConfigMap("shop", "config", map[string]string{"key": "value"})
	b, _ := newBuilder(t, source)
	pod := withVolume(configMapVolume("config", false))
	must(t, b.Prepare(t.Context(), pod))
	for path, there := range map[string]bool{"key": true, "none": false} {
		pod.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "v", MountPath: "/v", SubPath: path}}
		c, err := b.Container(t.Context(), pod, &pod.Spec.Containers[0], facts())
		if !there {
			wantError(t, err, ReasonContainerConfig, `subPath "none"`, "no such key")
			continue
		}
		must(t, err)
		if got := readString(t, c.Mounts[0].Source); got != "value" || !c.Mounts[0].ReadOnly {
			t.Errorf("mount %+v holds %q", c.Mounts[0], got)
		}
		if resolved, err := filepath.EvalSymlinks(c.Mounts[0].Source); err != nil || resolved != c.Mounts[0].Source {
			t.Errorf("the source %s is %s, %v", c.Mounts[0].Source, resolved, err)
		}
	}
}

func TestFileKeyRef(t *testing.T) {
	b, _ := newBuilder(t, newObjects())
	pod := withVolume(corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}})
	must(t, b.Prepare(t.Context(), pod))
	volume := filepath.Join(b.dir, "uid-1/v")
	writeText(t, filepath.Join(volume, "env"), "A='one'\n")
	must(t, os.Symlink("/proc/version", filepath.Join(volume, "out")))
	must(t, unix.Mkfifo(filepath.Join(volume, "pipe"), 0o600))
	value := func(path, key string, optional bool) ([]string, error) {
		pod.Spec.Containers[0].Env = []corev1.EnvVar{{Name: "V", ValueFrom: &corev1.EnvVarSource{FileKeyRef: &corev1.FileKeySelector{
			VolumeName: "v", Path: path, Key: key, Optional: &optional,
		}}}}
		c, err := b.Container(t.Context(), pod, &pod.Spec.Containers[0], facts())
		return c.Env, err
	}
	if env, err := value("env", "A", false); err != nil || !slices.Contains(env, "V=one") {
		t.Errorf("%q, %v", env, err)
	}
	for _, path := range []string{"env", "none"} {
		env, err := value(path, "B", true)
		if err != nil || slices.ContainsFunc(env, func(v string) bool { return strings.HasPrefix(v, "V=") }) {
			t.Errorf("%s, optional: %q, %v", path, env, err)
		}
		_, err = value(path, "B", false)
		wantError(t, err, ReasonContainerConfig, "fileKeyRef")
	}
	for _, path := range []string{"out", "pipe", "../../x"} {
		_, err := value(path, "A", true)
		wantError(t, err, ReasonContainerConfig, "fileKeyRef: volume v")
	}
}
