// Package manifest runs pods from a folder of files: static pods, as a kubelet's --pod-manifest-path.
//
// In: files *.yaml, *.yml and *.json, each with one or more Pods. Out: the list of pods to the agent
// (Options.OnChange), and for each a mirror pod in the API, which shows it to everybody else.
//
// Invariants: a pod's UID is a hash of its content and the node, so an edit ends the old pod and starts a new one, while a
// comment, a new name of the file and a restart of the agent change nothing; a file that cannot be read or understood
// keeps what it gave last, and says so once a content; a folder that cannot be read ends nothing; mirror pods follow the
// files, never the other way round: one that is deleted or differs is made anew, when the API is there.
//
// It refuses, naming the file and the field: other kinds than Pod, unknown fields, pods that need objects of the API (the
// agent must be able to run them without it), and two pods of one name.
//
// Test it with go test -race in this folder: real folders, an API in memory.
package manifest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/record"

	"github.com/endpointd/endpointd/internal/node/watch"
)

// Annotations of static pods, as a kubelet's.
const (
	AnnotationSource = "kubernetes.io/config.source" // "file"
	AnnotationHash   = "kubernetes.io/config.hash"   // the UID
	AnnotationSeen   = "kubernetes.io/config.seen"   // when this agent saw it first
	AnnotationMirror = corev1.MirrorPodAnnotationKey // on mirror pods: the static pod's UID
)

const (
	settle = 100 * time.Millisecond // after the last change of the folder: an editor writes more than once
	reread = 20 * time.Second       // for what file system events do not tell, such as edits behind a symbolic link
)

// Options are required where nothing else is said.
type Options struct {
	Dir      string
	NodeName string
	// Keep is a folder of the agent's own where it keeps what each file said when it was understood last, so that a file
	// that is broken while the agent starts ends no pod either. It is made when needed; "" = nothing is kept.
	Keep   string
	Client kubernetes.Interface
	// ListFirst is watch.Options.ListFirst, for clients in memory.
	ListFirst bool
	// Node is the Node of the API, the owner of mirror pods; without it they wait.
	Node func() (*corev1.Node, bool)
	// OnChange is told of all static pods after each change, by namespace and name. They are shared: do not
	// modify them. It is called from one goroutine and first with what is found at the start, once the folder could be
	// read.
	OnChange func([]*corev1.Pod)
	// Running says whether a static pod that is not wanted any more still has processes. Until it has none, its mirror pod
	// stays, terminating, so that endpoints drain. Nil = it never has.
	Running func(types.UID) bool
	Events  record.EventRecorder // nil = none
	Logger  *slog.Logger         // nil = none
}

// Manifest follows one folder. Make it with [New].
type Manifest struct {
	o     Options
	log   *slog.Logger
	store *watch.Store[*corev1.Pod] // this node's pods in the API
	poke  chan struct{}             // holds one; asks for a look at the mirror pods

	mu   sync.Mutex // guards the fields below
	read bool       // whether the folder could be read yet
	pods []*corev1.Pod

	// The fields below belong to the goroutine of the folder.
	files map[string]*file        // by name
	seen  map[types.UID]time.Time // when this agent saw a pod first
	said  map[string]string       // about what → what was logged last
}

// New makes a Manifest that does nothing until Run.
func New(o Options) *Manifest {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Running == nil {
		o.Running = func(types.UID) bool { return false }
	}
	if abs, err := filepath.Abs(o.Dir); err == nil { // else there is no working directory
		o.Dir = abs
	}
	m := &Manifest{
		o: o, log: o.Logger, poke: make(chan struct{}, 1),
		files: map[string]*file{}, seen: map[types.UID]time.Time{}, said: map[string]string{},
	}
	m.store = watch.New(watch.Options[*corev1.Pod]{
		Name: "mirror pods", Source: watch.From(o.Client.CoreV1().Pods("")), Fields: "spec.nodeName=" + o.NodeName,
		Changed: func(was, now *corev1.Pod) {
			if was != nil && IsMirror(was) || now != nil && m.static(now.Namespace, now.Name) != nil || now != nil && IsMirror(now) {
				m.Sync()
			}
		},
		ListFirst: o.ListFirst, Logger: o.Logger,
	})
	return m
}

// Pods are all static pods by namespace and name; shared, do not modify them.
func (m *Manifest) Pods() []*corev1.Pod {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.pods)
}

func (m *Manifest) static(namespace, name string) *corev1.Pod {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range m.pods {
		if p.Namespace == namespace && p.Name == name {
			return p
		}
	}
	return nil
}

// Run follows the folder and keeps the mirror pods until ctx ends; then it returns nil. Pods and mirror pods stay.
func (m *Manifest) Run(ctx context.Context) error {
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch the manifests in %s: %w; raise fs.inotify.max_user_instances", m.o.Dir, err)
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	defer func() { _ = watcher.Close() }()
	wg.Go(func() { _ = m.store.Run(ctx) }) // never fails
	wg.Go(func() { m.mirror(ctx) })
	m.follow(ctx, watcher)
	return nil
}

// follow reads the folder at the start, after changes and now and then.
func (m *Manifest) follow(ctx context.Context, watcher *fsnotify.Watcher) {
	// The folder above tells when the folder appears, is replaced, or is a symbolic link that moves.
	above := filepath.Dir(m.o.Dir)
	target := ""
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case e := <-watcher.Events:
			if !m.concerns(e.Name) {
				continue
			}
			timer.Reset(settle)
			continue
		case err := <-watcher.Errors:
			m.say("events", fmt.Errorf("watch %s: %w", m.o.Dir, err))
			timer.Reset(settle)
			continue
		case <-timer.C:
		}
		if now, err := filepath.EvalSymlinks(m.o.Dir); now != target || err != nil {
			_ = watcher.Remove(m.o.Dir)
			target = ""
			if watcher.Add(m.o.Dir) == nil {
				target = now
			}
			_ = watcher.Add(above)
		}
		if m.load() {
			timer.Reset(settle)
		} else {
			timer.Reset(reread)
		}
	}
}

// concerns says whether a change of path matters: of the folder, of a manifest in it, or of a link behind which manifests
// lie, as a mounted ConfigMap has them (..data).
func (m *Manifest) concerns(path string) bool {
	name := filepath.Base(path)
	return path == m.o.Dir || filepath.Dir(path) == m.o.Dir && (manifest(name) || strings.HasPrefix(name, ".."))
}

// load reads the folder and tells what changed. It is to be called again soon where a file is still being written.
func (m *Manifest) load() (again bool) {
	entries, err := os.ReadDir(m.o.Dir)
	if err != nil {
		m.say(m.o.Dir, fmt.Errorf("read the manifests: %w; the pods stay as they are", err))
		return false
	}
	m.say(m.o.Dir, nil)
	there := map[string]bool{}
	for _, e := range entries {
		name := e.Name()
		if !manifest(name) {
			continue
		}
		path := filepath.Join(m.o.Dir, name)
		if info, err := os.Stat(path); err == nil && info.IsDir() {
			continue
		} else if errors.Is(err, os.ErrNotExist) && e.Type()&os.ModeSymlink == 0 {
			continue // gone since
		}
		there[name] = true
		if m.files[name] == nil {
			m.files[name] = m.remembered(name)
		}
		err := m.files[name].load(path, m.o.NodeName)
		if errors.Is(err, errFresh) {
			again = true
			continue
		}
		if err == nil {
			err = m.remember(name)
		} else if len(m.files[name].pods) > 0 {
			err = fmt.Errorf("%w; its pods stay as they were", err)
		}
		m.say(path, err)
	}
	maps.DeleteFunc(m.files, func(name string, _ *file) bool {
		if !there[name] {
			delete(m.said, filepath.Join(m.o.Dir, name))
		}
		return !there[name]
	})
	m.say("kept", m.forget(there))
	if again && !m.known() {
		return true // the first list is to be whole
	}
	m.tell(m.merge())
	return again
}

// known says whether the folder could be read yet.
func (m *Manifest) known() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.read
}

// manifest says whether a file of this name is one.
func manifest(name string) bool {
	ext := filepath.Ext(name)
	return !strings.HasPrefix(name, ".") && (ext == ".yaml" || ext == ".yml" || ext == ".json")
}

// merge takes the pods of all files together. Of two with one name, that of the first file wins.
func (m *Manifest) merge() []*corev1.Pod {
	from := map[types.NamespacedName]string{}
	var all []*corev1.Pod
	for _, name := range slices.Sorted(maps.Keys(m.files)) {
		var twice error
		for _, p := range m.files[name].pods {
			key := types.NamespacedName{Namespace: p.Namespace, Name: p.Name}
			if other, ok := from[key]; ok {
				twice = fmt.Errorf("%s: pod %s is in %s already, which wins: rename one of them", filepath.Join(m.o.Dir, name), key, other)
				continue
			}
			from[key] = name
			if m.seen[p.UID].IsZero() {
				m.seen[p.UID] = time.Now()
			}
			if p.Annotations[AnnotationSeen] == "" { // else others read it already
				p.Annotations[AnnotationSeen] = m.seen[p.UID].Format(time.RFC3339Nano)
			}
			all = append(all, p)
		}
		m.say("twice "+name, twice)
	}
	maps.DeleteFunc(m.seen, func(uid types.UID, _ time.Time) bool {
		return !slices.ContainsFunc(all, func(p *corev1.Pod) bool { return p.UID == uid })
	})
	slices.SortFunc(all, func(a, b *corev1.Pod) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	return all
}

// tell passes the pods on if they are not those of before.
func (m *Manifest) tell(pods []*corev1.Pod) {
	m.mu.Lock()
	same := m.read && slices.EqualFunc(m.pods, pods, func(a, b *corev1.Pod) bool { return a.UID == b.UID })
	m.read = true
	if !same {
		m.pods = pods
	}
	m.mu.Unlock()
	if same {
		return
	}
	m.log.Info("static pods", "dir", m.o.Dir, "pods", len(pods))
	m.o.OnChange(slices.Clone(pods))
	m.Sync()
}

// say logs an error about something, and makes it an event of the Node, unless that was said last; nil = all is well.
func (m *Manifest) say(what string, err error) {
	if err == nil {
		delete(m.said, what)
		return
	}
	if m.said[what] == err.Error() {
		return
	}
	m.said[what] = err.Error()
	m.log.Error("a manifest is refused", "error", err)
	m.event("FailedManifest", err.Error())
}

func (m *Manifest) event(reason, message string) {
	if m.o.Events == nil {
		return
	}
	ref := &corev1.ObjectReference{APIVersion: "v1", Kind: "Node", Name: m.o.NodeName, UID: types.UID(m.o.NodeName)}
	m.o.Events.Event(ref, corev1.EventTypeWarning, reason, message)
}
