package podspec

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

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

func TestRefreshFollowsObjects(t *testing.T) {
	source := newObjects()
	source.setConfigMap("shop", "config", map[string]string{"a": "1", "b": "1"})
	b, _ := newBuilder(t, source)
	pod := withVolume(configMapVolume("config", true))
	dir := filepath.Join(b.dir, "uid-1/v")
	refresh := func(wantChange bool, want map[string]string) {
		t.Helper()
		changed, err := b.Refresh(t.Context(), pod)
		if err != nil || changed != wantChange {
			t.Fatalf("changed %v, %v; want %v", changed, err, wantChange)
		}
		checkVolume(t, dir, want)
	}
	if err := b.Prepare(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	refresh(false, map[string]string{"a": "1", "b": "1"})
	source.setConfigMap("shop", "config", map[string]string{"a": "2", "c": "2"})
	refresh(true, map[string]string{"a": "2", "c": "2"})
	refresh(false, map[string]string{"a": "2", "c": "2"})

	source.away = errors.New("the API is away")
	if changed, err := b.Refresh(t.Context(), pod); changed || err == nil {
		t.Errorf("with the API away: %v, %v", changed, err)
	}
	checkVolume(t, dir, map[string]string{"a": "2", "c": "2"})
	source.away = nil

	delete(source.configMaps, "shop/config")
	refresh(true, map[string]string{}) // optional, so its keys go
	pod.Spec.Volumes[0].ConfigMap.Optional = new(false)
	source.setConfigMap("shop", "config", map[string]string{"a": "3"})
	refresh(true, map[string]string{"a": "3"})
	delete(source.configMaps, "shop/config")
	if changed, err := b.Refresh(t.Context(), pod); changed || err == nil {
		t.Errorf("without the object: %v, %v", changed, err)
	}
	checkVolume(t, dir, map[string]string{"a": "3"}) // not optional, so it stays
}

// checkVolume fails unless exactly these files are seen, and nothing is left of what was.
func checkVolume(t *testing.T, dir string, want map[string]string) {
	t.Helper()
	got := map[string]string{}
	for name, text := range tree(t, dir) {
		_, text, _ = strings.Cut(text, " ")
		got[name] = text
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("the volume shows %v, want %v", got, want)
	}
	own, err := filepath.Glob(filepath.Join(dir, "..*"))
	if err != nil || len(own) != 2 { // ..data, and what it leads to
		t.Errorf("the volume has %q of its own, %v", own, err)
	}
}

// What an agent that was killed half-way left is in nobody's way.
func TestWriteAfterACrash(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "v")
	content := func(text string) payload {
		return payload{"a": {data: []byte(text), mode: 0o644, uid: -1, gid: -1}, "d/e": {data: []byte(text), mode: 0o600, uid: -1, gid: -1}}
	}
	now := time.Unix(1, 0) // a clock that stands still
	for i, crash := range []func(){
		func() {},
		func() { must(t, os.Symlink("..nowhere", filepath.Join(dir, dataNext))) },
		func() { must(t, os.Mkdir(filepath.Join(dir, now.UTC().Format(timeForm)+".7"), 0o755)) },
		func() { must(t, os.Remove(filepath.Join(dir, "a"))) },
		func() { must(t, os.Remove(filepath.Join(dir, dataLink))) },
		func() { must(t, os.Symlink("..data/old", filepath.Join(dir, "old"))) },
	} {
		if i > 0 {
			crash()
		}
		text := fmt.Sprint(i)
		for _, want := range []bool{true, false} {
			changed, err := writeAtomically(dir, content(text), nil, now)
			if err != nil || changed != want {
				t.Fatalf("crash %d: changed %v, %v", i, changed, err)
			}
		}
		checkVolume(t, dir, map[string]string{"a": text, "d/": "", "d/e": text})
	}
	changed, err := writeAtomically(dir, payload{"a": {data: []byte("5"), mode: 0o600, uid: -1, gid: -1}, "d/e": content("5")["d/e"]}, nil, now)
	if err != nil || !changed {
		t.Errorf("another mode is no change: %v, %v", changed, err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// A reader that holds the folder open sees the keys of one object together, never some of the old and some of the new.
func TestReadersSeeAllOrNothing(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "v")
	write := func(n int) {
		text := fmt.Appendf(nil, "%d", n)
		if _, err := writeAtomically(dir, payload{
			"a": {data: text, mode: 0o644, uid: -1, gid: -1}, "b": {data: text, mode: 0o644, uid: -1, gid: -1},
		}, nil, time.Now()); err != nil {
			t.Error(err)
		}
	}
	write(0)
	ctx, stop := context.WithCancel(t.Context())
	seen, done := 0, make(chan error, 1)
	first := make(chan struct{})
	go func() {
		var once bool
		for ctx.Err() == nil {
			current, err := os.Readlink(filepath.Join(dir, dataLink))
			if err != nil {
				done <- err
				return
			}
			a, errA := os.ReadFile(filepath.Join(dir, current, "a"))
			b, errB := os.ReadFile(filepath.Join(dir, current, "b"))
			if errors.Is(errA, fs.ErrNotExist) || errors.Is(errB, fs.ErrNotExist) {
				continue // replaced meanwhile: look again, as a reader of symbolic links does
			}
			if err := errors.Join(errA, errB); err != nil || string(a) != string(b) {
				done <- fmt.Errorf("a %q, b %q: %w", a, b, err)
				return
			}
			seen++
			if !once {
				once = true
				close(first)
			}
		}
		done <- nil
	}()
	select {
	case <-first:
	case err := <-done:
		t.Fatal(err)
	}
	for n := range 200 {
		write(n + 1)
	}
	stop()
	if err := <-done; err != nil || seen == 0 {
		t.Errorf("after %d looks: %v", seen, err)
	}
}

func TestTokens(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	source := newObjects()
	source.now = func() time.Time { return now }
	var log strings.Builder
	b, _ := newBuilderWith(t, source, func(o *Options) {
		o.Now = source.now
		o.Logger = slog.New(slog.NewTextHandler(&log, nil))
	})
	pod := withVolume(corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
		{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token", Audience: "vault", ExpirationSeconds: new(int64(1000))}},
	}}})
	pod.Spec.ServiceAccountName = "robot"
	must(t, b.Prepare(t.Context(), pod))
	path := filepath.Join(b.dir, "uid-1/v/token")
	step := func(after time.Duration, wantChange bool, want string) {
		t.Helper()
		now = now.Add(after)
		if changed, err := b.Refresh(t.Context(), pod); err != nil || changed != wantChange {
			t.Fatalf("changed %v, %v; want %v", changed, err, wantChange)
		}
		if got := readString(t, path); got != want {
			t.Errorf("token %q, want %q", got, want)
		}
	}
	step(0, false, "token-1-of-shop/robot")
	step(799*time.Second, false, "token-1-of-shop/robot")
	source.away = errors.New("the API is away")
	now = now.Add(time.Second)
	if changed, err := b.Refresh(t.Context(), pod); changed || err == nil || strings.Contains(err.Error(), "token-1") {
		t.Errorf("with the API away: %v, %v", changed, err)
	}
	source.away = nil
	step(0, true, "token-2-of-shop/robot")
	request := source.requests[0].Spec
	if bound := request.BoundObjectRef; bound == nil || bound.Kind != "Pod" || bound.Name != "web" || bound.UID != "uid-1" ||
		!slices.Equal(request.Audiences, []string{"vault"}) || *request.ExpirationSeconds != 1000 {
		t.Errorf("asked for %+v", request)
	}
	must(t, b.Remove("uid-1"))
	if len(b.tokens) != 0 {
		t.Error("a removed pod's token is kept")
	}
	if strings.Contains(log.String(), "token-") {
		t.Errorf("the log tells a token: %s", &log)
	}
	// A day is the longest that a token is used.
	if got := renewal(now, now.Add(1000*time.Hour)); !got.Equal(now.Add(24 * time.Hour)) {
		t.Errorf("a token of 1000 h is renewed at %v", got.Sub(now))
	}
}

func TestTokenBelongsToTheSoleUser(t *testing.T) {
	uid, gid := int64(os.Getuid()), int64(os.Getgid())
	source := newObjects()
	b, _ := newBuilder(t, source)
	pod := withVolume(corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
		{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token"}},
	}}})
	mode := func(want fs.FileMode) {
		t.Helper()
		must(t, b.Prepare(t.Context(), pod))
		info, err := os.Stat(filepath.Join(b.dir, "uid-1/v/token"))
		if err != nil || info.Mode() != want {
			t.Errorf("mode %v, %v; want %v", info.Mode(), err, want)
		}
	}
	mode(0o644)
	pod.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsUser: &uid}
	mode(0o600)
	pod.Spec.SecurityContext.FSGroup = &gid
	mode(0o640)
	other := uid + 1
	pod.Spec.Containers = append(pod.Spec.Containers, corev1.Container{Name: "d", SecurityContext: &corev1.SecurityContext{RunAsUser: &other}})
	if sole := soleUser(pod); sole != nil {
		t.Errorf("two users, and %d is the sole one", *sole)
	}
}

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
