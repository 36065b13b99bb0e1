package manifest_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/record"

	"github.com/endpointd/endpointd/internal/controller/controllertest"
	"github.com/endpointd/endpointd/internal/node/apitest"
	"github.com/endpointd/endpointd/internal/node/manifest"
	"github.com/endpointd/endpointd/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

const patience = 10 * time.Second

// text is a manifest of one pod.
func text(name, image string) string {
	return "apiVersion: v1\nkind: Pod\nmetadata: {name: " + name + "}\nspec:\n  containers: [{name: c, image: " + image + "}]\n"
}

type world struct {
	t      *testing.T
	dir    string
	server *apitest.Server
	user   kubernetes.Interface
	m      *manifest.Manifest
	events *record.FakeRecorder

	mu      sync.Mutex
	pods    []*corev1.Pod
	told    int
	running map[types.UID]bool
	hasNode bool
	stop    func()
}

func start(t *testing.T, dir string, objs ...*corev1.Pod) *world {
	return startKeeping(t, dir, filepath.Join(t.TempDir(), "keep"), objs...)
}

func startKeeping(t *testing.T, dir, keep string, objs ...*corev1.Pod) *world {
	api := controllertest.NewAPI()
	w := &world{
		t: t, dir: dir, server: apitest.New(api), user: api.Client(), events: record.NewFakeRecorder(100),
		running: map[types.UID]bool{}, hasNode: true,
	}
	for _, p := range objs {
		if _, err := w.user.CoreV1().Pods(p.Namespace).Create(t.Context(), p, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	w.m = manifest.New(manifest.Options{
		Dir: dir, NodeName: "N1", Keep: keep, Client: w.server.Client(), Events: w.events,
		Node: func() (*corev1.Node, bool) {
			w.mu.Lock()
			defer w.mu.Unlock()
			return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "N1", UID: "node-uid"}}, w.hasNode
		},
		OnChange: func(pods []*corev1.Pod) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.pods = pods
			w.told++
		},
		Running: func(uid types.UID) bool {
			w.mu.Lock()
			defer w.mu.Unlock()
			return w.running[uid]
		},
		Logger: slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.m.Run(ctx) }()
	w.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		w.server.Close()
	})
	t.Cleanup(w.stop)
	return w
}

func (w *world) write(name, content string) {
	w.t.Helper()
	if err := os.WriteFile(filepath.Join(w.dir, name), []byte(content), 0o600); err != nil {
		w.t.Fatal(err)
	}
}

// has waits until the pods told are want, as "name=image" words, and gives them.
func (w *world) has(want string) []*corev1.Pod {
	w.t.Helper()
	var pods []*corev1.Pod
	testkit.Await(w.t, patience, func() error {
		w.mu.Lock()
		defer w.mu.Unlock()
		pods = w.pods
		var got []string
		for _, p := range pods {
			got = append(got, p.Name+"="+p.Spec.Containers[0].Image)
		}
		if got := strings.Join(got, " "); got != want || w.told == 0 {
			return fmt.Errorf("told %d times, last %q, want %q", w.told, got, want)
		}
		return nil
	})
	return pods
}

// shows waits until the API has a mirror pod of each of pods and nothing else on the node.
func (w *world) shows(pods []*corev1.Pod) {
	w.t.Helper()
	testkit.Await(w.t, patience, func() error {
		l, err := w.user.CoreV1().Pods("").List(w.t.Context(), metav1.ListOptions{FieldSelector: "spec.nodeName=N1"})
		if err != nil {
			return err
		}
		if len(l.Items) != len(pods) {
			return fmt.Errorf("%d mirror pods, want %d", len(l.Items), len(pods))
		}
		for i, p := range pods {
			got := &l.Items[i]
			if got.Name != p.Name || manifest.StaticUID(got) != p.UID || got.DeletionTimestamp != nil || got.UID == p.UID {
				return fmt.Errorf("mirror pod %+v of %s %s", got.ObjectMeta, p.Name, p.UID)
			}
			if known, ok := w.m.Mirror(p.UID); !ok || known.UID != got.UID {
				return fmt.Errorf("Mirror(%s) does not know the mirror pod", p.UID)
			}
		}
		return nil
	})
}

// warned waits for an event that has all words.
func (w *world) warned(words ...string) {
	w.t.Helper()
	for {
		select {
		case e := <-w.events.Events:
			all := true
			for _, word := range words {
				all = all && strings.Contains(e, word)
			}
			if all {
				return
			}
			w.t.Log("another event:", e)
		case <-time.After(patience):
			w.t.Fatalf("no event with %q", words)
		}
	}
}

func TestPodsFollowTheFiles(t *testing.T) {
	w := start(t, t.TempDir())
	w.has("")
	w.write("a.yaml", text("a", "x:1"))
	w.write(".hidden.yaml", text("hidden", "x:1"))
	w.write("notes.txt", "no manifest")
	a := w.has("a-n1=x:1")
	w.shows(a)
	p := a[0]
	if p.Annotations[manifest.AnnotationSource] != "file" || p.Annotations[manifest.AnnotationHash] != string(p.UID) ||
		p.Annotations[manifest.AnnotationSeen] == "" || p.Namespace != "default" || p.Spec.NodeName != "N1" ||
		!manifest.IsStatic(p) || manifest.IsMirror(p) {
		t.Errorf("pod %+v", p.ObjectMeta)
	}
	mirror, _ := w.m.Mirror(p.UID)
	if o := mirror.OwnerReferences; len(o) != 1 || o[0].Kind != "Node" || o[0].UID != "node-uid" || !*o[0].Controller {
		t.Errorf("mirror pod is owned by %v", o)
	}

	w.write("b.json", `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"b","namespace":"kube-system"},"spec":{"containers":[{"name":"c","image":"y:1"}]}}`)
	w.write("a.yaml", "# a comment\n---\n"+text("a", "x:1")+"---\n"+text("a2", "z:1"))
	two := w.has("a-n1=x:1 a2-n1=z:1 b-n1=y:1")
	w.shows(two)
	if two[0].UID != p.UID {
		t.Error("a comment has replaced the pod")
	}

	w.write("a.yaml", text("a", "x:2"))
	edited := w.has("a-n1=x:2 b-n1=y:1")
	w.shows(edited)
	if edited[0].UID == p.UID {
		t.Error("an edit has not replaced the pod")
	}
	if err := os.Remove(filepath.Join(w.dir, "a.yaml")); err != nil {
		t.Fatal(err)
	}
	w.shows(w.has("b-n1=y:1"))
}

func TestBrokenFileKeepsItsPods(t *testing.T) {
	for name, c := range map[string]struct {
		content string
		words   []string
	}{
		"not YAML":              {"apiVersion: v1\nkind: Pod\nspec: {containers: [", []string{"a.yaml", "not YAML"}},
		"empty":                 {"", []string{"a.yaml", "no Pod"}},
		"another kind":          {"apiVersion: v1\nkind: Service\nmetadata: {name: s}\n", []string{"a.yaml", "Service", "kubectl apply"}},
		"a typo":                {strings.Replace(text("a", "x:1"), "image", "imaeg", 1), []string{"a.yaml", "imaeg"}},
		"second document wrong": {text("a", "x:2") + "---\n" + text("B_", "y"), []string{"a.yaml", "document 2", "metadata.name"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := start(t, t.TempDir())
			w.write("a.yaml", text("a", "x:1"))
			before := w.has("a-n1=x:1")
			w.write("a.yaml", c.content)
			w.warned(append(c.words, "stay as they were")...)
			w.write("b.yaml", text("b", "y:1")) // others go on
			w.shows(w.has("a-n1=x:1 b-n1=y:1"))
			w.write("a.yaml", text("a", "x:1")+"# mended\n")
			w.write("c.yaml", text("c", "z:1"))
			if after := w.has("a-n1=x:1 b-n1=y:1 c-n1=z:1"); after[0].UID != before[0].UID {
				t.Error("the pod was replaced")
			}
		})
	}
}

func TestFileThatIsBrokenWhileTheAgentStartsKeepsItsPods(t *testing.T) {
	dir, keep := t.TempDir(), filepath.Join(t.TempDir(), "keep")
	first := startKeeping(t, dir, keep)
	first.write("a.yaml", text("a", "x:1"))
	first.write("b.yaml", text("b", "x:1"))
	before := first.has("a-n1=x:1 b-n1=x:1")
	first.stop()
	first.write("a.yaml", "apiVersion: v1\nki")
	if err := os.Remove(filepath.Join(dir, "b.yaml")); err != nil {
		t.Fatal(err)
	}
	second := startKeeping(t, dir, keep)
	if after := second.has("a-n1=x:1"); after[0].UID != before[0].UID {
		t.Error("the pod was replaced")
	}
	second.warned("a.yaml", "stay as they were")
	if err := os.Remove(filepath.Join(dir, "a.yaml")); err != nil {
		t.Fatal(err)
	}
	second.has("")
	testkit.Await(t, patience, func() error {
		left, err := os.ReadDir(keep)
		if err == nil && len(left) > 0 {
			err = fmt.Errorf("%v kept of files that are gone", left)
		}
		return err
	})
}

func TestFolderThatGoesAwayEndsNothing(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "manifests")
	w := start(t, dir) // not there yet
	w.warned("manifests", "no such file")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	w.write("a.yaml", text("a", "x:1"))
	a := w.has("a-n1=x:1")
	if err := os.Rename(dir, dir+".old"); err != nil {
		t.Fatal(err)
	}
	w.warned("manifests", "stay as they are")
	w.shows(a)
	if err := os.Rename(dir+".old", dir); err != nil {
		t.Fatal(err)
	}
	w.write("b.yaml", text("b", "y:1"))
	w.shows(w.has("a-n1=x:1 b-n1=y:1"))
}

func TestFolderLikeAMountedConfigMap(t *testing.T) {
	dir := t.TempDir()
	swap := func(version, image string) {
		t.Helper()
		err := errors.Join(
			os.Mkdir(filepath.Join(dir, version), 0o700),
			os.WriteFile(filepath.Join(dir, version, "a.yaml"), []byte(text("a", image)), 0o600),
			os.Symlink(version, filepath.Join(dir, "..tmp")),
			os.Rename(filepath.Join(dir, "..tmp"), filepath.Join(dir, "..data")))
		if err != nil {
			t.Fatal(err)
		}
	}
	swap("..1", "x:1")
	if err := os.Symlink("..data/a.yaml", filepath.Join(dir, "a.yaml")); err != nil {
		t.Fatal(err)
	}
	w := start(t, dir)
	w.has("a-n1=x:1")
	swap("..2", "x:2")
	w.has("a-n1=x:2")
}

func TestFolderThatIsALinkMayMove(t *testing.T) {
	top := t.TempDir()
	link := filepath.Join(top, "manifests")
	for _, version := range []string{"1", "2"} {
		err := errors.Join(os.Mkdir(filepath.Join(top, version), 0o700),
			os.WriteFile(filepath.Join(top, version, "a.yaml"), []byte(text("a", "x:"+version)), 0o600))
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("1", link); err != nil {
		t.Fatal(err)
	}
	w := start(t, link)
	w.has("a-n1=x:1")
	if err := errors.Join(os.Symlink("2", link+"~"), os.Rename(link+"~", link)); err != nil {
		t.Fatal(err)
	}
	w.has("a-n1=x:2")
	w.write("a.yaml", text("a", "x:3"))
	w.has("a-n1=x:3")
}

func TestTwoPodsOfOneName(t *testing.T) {
	w := start(t, t.TempDir())
	w.write("b.yaml", text("a", "second"))
	w.write("a.yaml", text("a", "first"))
	w.has("a-n1=first")
	w.warned("b.yaml", "default/a-n1", "a.yaml", "rename")
}

func TestMirrorPodIsMadeAgain(t *testing.T) {
	w := start(t, t.TempDir())
	w.write("a.yaml", text("a", "x:1"))
	a := w.has("a-n1=x:1")
	w.shows(a)
	pods := w.user.CoreV1().Pods("default")
	for name, grace := range map[string]int64{"at once": 0, "gracefully": 30} {
		first, err := pods.Get(t.Context(), "a-n1", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if err := pods.Delete(t.Context(), "a-n1", *metav1.NewDeleteOptions(grace)); err != nil {
			t.Fatal(name, err)
		}
		testkit.Await(t, patience, func() error {
			now, err := pods.Get(t.Context(), "a-n1", metav1.GetOptions{})
			if err == nil && (now.UID == first.UID || now.DeletionTimestamp != nil) {
				err = fmt.Errorf("deleted %s: %v is still there", name, now.UID)
			}
			return err
		})
	}
	changed, err := pods.Get(t.Context(), "a-n1", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	changed.Annotations[manifest.AnnotationMirror] = "another"
	if _, err := pods.Update(t.Context(), changed, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	w.shows(a)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.told != 1 && w.told != 2 { // 2: the folder was read when it was empty
		t.Errorf("static pods were told %d times, though no file changed", w.told)
	}
}

func TestMirrorPodsOfAnEarlierAgentAreAdoptedOrDeleted(t *testing.T) {
	dir := t.TempDir()
	first := start(t, dir)
	first.write("a.yaml", text("a", "x:1"))
	a := first.has("a-n1=x:1")
	first.shows(a)
	kept, _ := first.m.Mirror(a[0].UID)
	kept = kept.DeepCopy()
	kept.ResourceVersion = ""
	gone := kept.DeepCopy()
	gone.Name, gone.UID = "gone-n1", "gone"
	gone.Annotations[manifest.AnnotationMirror] = "gone"
	w := start(t, dir, kept, gone)
	w.shows(w.has("a-n1=x:1"))
	if now, _ := w.m.Mirror(a[0].UID); now.UID != kept.UID {
		t.Error("the mirror pod was replaced")
	}
}

func TestMirrorPodDrainsWhileItsPodRuns(t *testing.T) {
	w := start(t, t.TempDir())
	w.write("a.yaml", text("a", "x:1"))
	old := w.has("a-n1=x:1")
	w.shows(old)
	w.mu.Lock()
	w.running[old[0].UID] = true
	w.mu.Unlock()
	w.write("a.yaml", text("a", "x:2"))
	now := w.has("a-n1=x:2")
	testkit.Await(t, patience, func() error {
		if m, ok := w.m.Mirror(old[0].UID); !ok || m.DeletionTimestamp == nil {
			return errors.New("the old mirror pod is not terminating")
		}
		return nil
	})
	w.mu.Lock()
	w.running[old[0].UID] = false
	w.mu.Unlock()
	w.m.Sync()
	w.shows(now)
}

func TestAPIAwayAndNodeUnknownAreWaitedFor(t *testing.T) {
	w := start(t, t.TempDir())
	w.has("")
	w.mu.Lock()
	w.hasNode = false
	w.mu.Unlock()
	w.server.Down()
	w.write("a.yaml", text("a", "x:1"))
	a := w.has("a-n1=x:1") // runs all the same
	w.server.Up()
	w.write("b.yaml", text("b", "y:1"))
	b := w.has("a-n1=x:1 b-n1=y:1")
	w.shows(nil)
	w.mu.Lock()
	w.hasNode = true
	w.mu.Unlock()
	w.shows(b)
	w.server.Down()
	if err := os.Remove(filepath.Join(w.dir, "b.yaml")); err != nil {
		t.Fatal(err)
	}
	w.has("a-n1=x:1")
	w.server.Up()
	w.shows(a)
}

func TestPodOfSomebodyElseIsLeftAlone(t *testing.T) {
	other := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "a-n1"}, Spec: corev1.PodSpec{NodeName: "N1"}}
	w := start(t, t.TempDir(), other)
	w.write("a.yaml", text("a", "x:1"))
	w.has("a-n1=x:1")
	w.warned("default/a-n1", "another pod of this name")
	if err := w.user.CoreV1().Pods("default").Delete(t.Context(), "a-n1", *metav1.NewDeleteOptions(0)); err != nil {
		t.Fatal(err)
	}
	w.shows(w.m.Pods())
}
