package podspec

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/endpointd/endpointd/internal/testkit"
)

func withVolume(source corev1.VolumeSource) *corev1.Pod {
	return newPod(func(p *corev1.Pod) { p.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: source}} })
}

func configMapVolume(name string, optional bool, items ...corev1.KeyToPath) corev1.VolumeSource {
	return corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{
		LocalObjectReference: corev1.LocalObjectReference{Name: name}, Items: items, Optional: &optional,
	}}
}

func TestRefusedVolumes(t *testing.T) {
	hostPath := func(path string, kind corev1.HostPathType) corev1.VolumeSource {
		return corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: path, Type: &kind}}
	}
	projected := func(p corev1.VolumeProjection) corev1.VolumeSource {
		return corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{p}}}
	}
	tests := []struct {
		name   string
		source corev1.VolumeSource
		says   []string
	}{
		{"claim", corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "x"}}, []string{"persistentVolumeClaim", supportedKinds}},
		{"NFS", corev1.VolumeSource{NFS: &corev1.NFSVolumeSource{}}, []string{"nfs", supportedKinds}},
		{"CSI", corev1.VolumeSource{CSI: &corev1.CSIVolumeSource{}}, []string{"csi", supportedKinds}},
		{"image", corev1.VolumeSource{Image: &corev1.ImageVolumeSource{}}, []string{"image", supportedKinds}},
		{"trust bundle", projected(corev1.VolumeProjection{ClusterTrustBundle: &corev1.ClusterTrustBundleProjection{}}), []string{"clusterTrustBundle", "configMap"}},
		{"pod certificate", projected(corev1.VolumeProjection{PodCertificate: &corev1.PodCertificateProjection{}}), []string{"podCertificate"}},
		{"huge pages", corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: "HugePages-2Mi"}}, []string{"HugePages-2Mi", "Memory"}},
		{"configmap that is not there", configMapVolume("none", false), []string{`configmap "none" not found`, "optional"}},
		{"key that is not there", configMapVolume("config", false, corev1.KeyToPath{Key: "none", Path: "p"}), []string{"configmap shop/config", "none"}},
		{"path that leads out", configMapVolume("config", false, corev1.KeyToPath{Key: "key", Path: "a/../../p"}), []string{"within the volume"}},
		{"absolute path", configMapVolume("config", false, corev1.KeyToPath{Key: "key", Path: "/p"}), []string{"within the volume"}},
		{"path of the volume's own", configMapVolume("config", false, corev1.KeyToPath{Key: "key", Path: "..data"}), []string{"must not start with .."}},
		{"file and folder", configMapVolume("config", false, corev1.KeyToPath{Key: "key", Path: "a"}, corev1.KeyToPath{Key: "key", Path: "a/b"}), []string{"cannot be a folder too"}},
		{"long name", configMapVolume("config", false, corev1.KeyToPath{Key: "key", Path: strings.Repeat("x", 256)}), []string{"longer than the kernel takes"}},
		{"field a volume cannot show", corev1.VolumeSource{DownwardAPI: &corev1.DownwardAPIVolumeSource{Items: []corev1.DownwardAPIVolumeFile{
			{Path: "ip", FieldRef: &corev1.ObjectFieldSelector{FieldPath: "status.podIP"}},
		}}}, []string{"downwardAPI ip", "variable"}},
		{"no directory", hostPath("/nonexistent/d", corev1.HostPathDirectory), []string{"/nonexistent/d", "DirectoryOrCreate"}},
		{"a file is no directory", hostPath("/proc/version", corev1.HostPathDirectory), []string{"not a Directory"}},
		{"a directory is no file", hostPath("/proc", corev1.HostPathFile), []string{"not a File"}},
		{"a file is no socket", hostPath("/proc/version", corev1.HostPathSocket), []string{"not a Socket"}},
		{"a device of characters is none of blocks", hostPath("/dev/null", corev1.HostPathBlockDev), []string{"not a BlockDevice"}},
		{"a directory is no device", hostPath("/proc", corev1.HostPathCharDev), []string{"not a CharDevice"}},
		{"file in no folder", hostPath("/nonexistent/f", corev1.HostPathFileOrCreate), []string{"folder must be there"}},
		{"relative host path", hostPath("etc", corev1.HostPathUnset), []string{"must start with /"}},
		{"host path that leads back", hostPath("/tmp/../etc", corev1.HostPathUnset), []string{`no part ".."`}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			source := newObjects()
			source.setConfigMap("shop", "config", map[string]string{"key": "value"})
			b, _ := newBuilder(t, source)
			err := b.Prepare(t.Context(), withVolume(test.source))
			wantError(t, err, ReasonMount, append(test.says, `volume "v"`)...)
		})
	}
}

// No kind of volume is left out by oversight: what is not made is refused, and by the name that a manifest has.
func TestEveryKindOfVolumeIsKnown(t *testing.T) {
	made := 0
	source := newObjects()
	b, _ := newBuilder(t, source)
	for _, kind := range volumeKinds() {
		err := b.Prepare(t.Context(), withVolume(kind.source))
		if strings.Contains(supportedKinds, kind.name) {
			made++
			if err != nil && strings.Contains(err.Error(), "not supported") {
				t.Errorf("%s: %v", kind.name, err)
			}
			continue
		}
		wantError(t, err, ReasonMount, "kind "+kind.name+" ")
	}
	if want := strings.Count(supportedKinds, ",") + 2; made != want {
		t.Errorf("%d kinds are made, want %d", made, want)
	}
}

func TestHostPathIsMade(t *testing.T) {
	dir := t.TempDir()
	for _, test := range []struct {
		kind corev1.HostPathType
		path string
		dir  bool
	}{
		{corev1.HostPathDirectoryOrCreate, filepath.Join(dir, "a/b"), true},
		{corev1.HostPathUnset, filepath.Join(dir, "c"), true},
		{corev1.HostPathFileOrCreate, filepath.Join(dir, "f"), false},
	} {
		b, _ := newBuilder(t, newObjects())
		pod := withVolume(corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: test.path, Type: &test.kind}})
		for range 2 { // made, then found
			if err := b.Prepare(t.Context(), pod); err != nil {
				t.Fatal(err)
			}
		}
		info, err := os.Stat(test.path)
		if err != nil || info.IsDir() != test.dir {
			t.Errorf("%s: %v, %v", test.path, info, err)
		}
		writeText(t, filepath.Join(dir, "kept"), "kept")
		if err := b.Remove(string(pod.UID)); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(test.path); err != nil {
			t.Errorf("removing the pod touched the host path: %v", err)
		}
	}
}

func TestEmptyDirKeepsWhatIsInIt(t *testing.T) {
	group := int64(os.Getgid())
	b, _ := newBuilder(t, newObjects())
	pod := withVolume(corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}})
	pod.Spec.SecurityContext = &corev1.PodSecurityContext{FSGroup: &group}
	path := filepath.Join(b.dir, "uid-1/v")
	for i := range 2 {
		if err := b.Prepare(t.Context(), pod); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(path)
		want := []fs.FileMode{fs.ModeDir | fs.ModeSetgid | 0o777, fs.ModeDir | 0o700}[i]
		if err != nil || info.Mode() != want {
			t.Errorf("mode %v, %v; want %v", info.Mode(), err, want)
		}
		writeText(t, filepath.Join(path, "f"), "kept")
		must(t, os.Chmod(path, 0o700)) // as a database does with its folder
	}
	if got := readString(t, filepath.Join(path, "f")); got != "kept" {
		t.Errorf("the file holds %q", got)
	}
	info, err := os.Stat(filepath.Dir(path))
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the pod's folder: %v, %v", info, err)
	}
	uids, err := b.UIDs()
	if err != nil || !slices.Equal(uids, []string{"uid-1"}) {
		t.Errorf("pods %q, %v", uids, err)
	}
	for range 2 { // there, and gone
		if err := b.Remove("uid-1"); err != nil {
			t.Fatal(err)
		}
	}
	if uids, err := b.UIDs(); err != nil || len(uids) != 0 {
		t.Errorf("after removing: %q, %v", uids, err)
	}
}

func TestRemoveStaysInItsFolder(t *testing.T) {
	b, _ := newBuilder(t, newObjects())
	outside := filepath.Join(filepath.Dir(b.dir), "outside")
	if err := os.MkdirAll(outside, 0o700); err != nil {
		t.Fatal(err)
	}
	writeText(t, filepath.Join(outside, "f"), "kept")
	pod := withVolume(corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}})
	if err := b.Prepare(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(b.dir, "uid-1/v/link")); err != nil {
		t.Fatal(err)
	}
	if err := b.Remove("uid-1"); err != nil {
		t.Fatal(err)
	}
	for _, uid := range []string{"", ".", "..", "../outside", "a/b"} {
		if err := b.Remove(uid); err == nil {
			t.Errorf("UID %q is taken", uid)
		}
	}
	if got := readString(t, filepath.Join(outside, "f")); got != "kept" {
		t.Errorf("a file outside holds %q", got)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestTerminationMessage(t *testing.T) {
	b, _ := newBuilder(t, newObjects())
	pod := newPod(nil)
	for attempt := range 3 {
		f := facts()
		f.Attempt = attempt
		c, err := b.Container(t.Context(), pod, &pod.Spec.Containers[0], f)
		must(t, err)
		source := c.Mounts[len(c.Mounts)-1]
		if source.Target != "/dev/termination-log" || source.ReadOnly {
			t.Fatalf("mount %+v", source)
		}
		writeText(t, source.Source, strings.Repeat("x", attempt*4096)+fmt.Sprint("end ", attempt))
	}
	for attempt, want := range map[int]string{0: "", 1: strings.Repeat("x", 4091) + "end 1", 2: strings.Repeat("x", 4091) + "end 2", 9: ""} {
		got, err := b.TerminationMessage("uid-1", "c", attempt)
		if err != nil || got != want {
			t.Errorf("attempt %d: %d bytes, %v; want %d", attempt, len(got), err, len(want))
		}
	}
	for _, name := range []string{"..", "a/b", ""} {
		if _, err := b.TerminationMessage("uid-1", name, 0); err == nil {
			t.Errorf("name %q is taken", name)
		}
	}
}

func TestFSGroupThatIsNotThere(t *testing.T) {
	inNamespace(t, func(t *testing.T) {
		b, _ := newBuilder(t, newObjects())
		pod := withVolume(corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}})
		pod.Spec.SecurityContext = &corev1.PodSecurityContext{FSGroup: new(int64(4242))}
		wantError(t, b.Prepare(t.Context(), pod), ReasonMount, "group 4242", "user namespace")
	})
}

func TestEmptyDirInMemory(t *testing.T) {
	inNamespace(t, func(t *testing.T) {
		b, _ := newBuilder(t, newObjects())
		pod := withVolume(corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{
			Medium: corev1.StorageMediumMemory, SizeLimit: resource.NewQuantity(1<<20, resource.BinarySI),
		}})
		path := filepath.Join(b.dir, "uid-1/v")
		for range 2 { // once mounted, it stays
			must(t, b.Prepare(t.Context(), pod))
			writeText(t, filepath.Join(path, "f"), "kept")
		}
		var st unix.Statfs_t
		must(t, unix.Statfs(path, &st))
		if size := int64(st.Blocks) * st.Bsize; st.Type != unix.TMPFS_MAGIC || size != 1<<20 {
			t.Errorf("file system %x of %d bytes", st.Type, size)
		}
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o777 {
			t.Errorf("mode %v, %v", info.Mode(), err)
		}
		err := os.WriteFile(filepath.Join(path, "big"), make([]byte, 2<<20), 0o600)
		if !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("more than the limit: %v", err)
		}
		must(t, b.Remove("uid-1"))
		mounts := readString(t, "/proc/self/mountinfo")
		if strings.Contains(mounts, b.dir) {
			t.Errorf("a mount is left:\n%s", mounts)
		}
	})
}

// inNamespace runs the test again as root of user and mount namespaces of its own, where it may mount.
func inNamespace(t *testing.T, test func(*testing.T)) {
	t.Helper()
	const marker = "PODSPEC_TEST_IN_NAMESPACE"
	if os.Getenv(marker) == t.Name() {
		test(t)
		return
	}
	testkit.Need(t, testkit.Mount())
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), marker+"="+t.Name())
	cmd.SysProcAttr = testkit.AsRootOf(syscall.CLONE_NEWNS)
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		t.Errorf("in a namespace: %v\n%s", err, out)
	}
}
