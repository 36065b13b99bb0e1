package node

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/record"

	"github.com/endpointd/endpointd/internal/node/container"
	"github.com/endpointd/endpointd/internal/node/podnet"
	"github.com/endpointd/endpointd/internal/node/podspec"
	"github.com/endpointd/endpointd/internal/prober"
)

// Network gives pods their addresses; *podnet.Network is one.
type Network interface {
	Add(ctx context.Context, uid, netns string, ports []podnet.HostPort) ([]netip.Addr, error)
	Adopt(uid string, addrs []netip.Addr, ports []podnet.HostPort) error
	Remove(ctx context.Context, uid string) error
	Prune(ctx context.Context, keep []string) error
}

// Specs resolves what pods say; *podspec.Builder does so.
type Specs interface {
	Sandbox(pod *corev1.Pod) (container.Sandbox, error)
	Prepare(ctx context.Context, pod *corev1.Pod) error
	Refresh(ctx context.Context, pod *corev1.Pod) (changed bool, err error)
	Container(ctx context.Context, pod *corev1.Pod, c *corev1.Container, f podspec.Facts) (container.Container, error)
	Remove(uid string) error
}

// Probes makes the probes; *prober.Prober does so.
type Probes interface {
	Add(key prober.Key, spec prober.Spec) error
	RemoveContainer(uid, container string)
	Terminate(uid, container string)
}

// Options of an Agent. All are needed unless a field says otherwise.
type Options struct {
	HostIPs  []netip.Addr // of the node, primary first
	Client   corev1client.PodsGetter
	Recorder record.EventRecorder
	Runtimes map[string]container.Runtime // runtimeClassName → runtime; ClassProcess is that of pods without one
	Network  Network
	Specs    Specs
	Probes   Probes
	// Mirror finds the API's object of a static pod; nil = there are no static pods.
	Mirror func(static types.UID) (*corev1.Pod, bool)
	// LastWords is the termination message of a container that has ended; logFile is where its output went.
	LastWords func(pod *corev1.Pod, c *corev1.Container, s *container.Status, logFile string) string
	// Traffic hears first of pods that can serve no more; nil = nobody wants to.
	Traffic Traffic
	// DrainGrace is how long a ready pod that is to end is left alone, so that data planes stop leading new connections to it first. With
	// Traffic it is the longest time. It is never more than half of the pod's grace period.
	DrainGrace time.Duration
	Logger     *slog.Logger
}

// Agent keeps the pods of a node. SetPod, RemovePod, Synced and SetStatic tell it which; they may be called concurrently and before Run.
type Agent struct {
	options  Options
	facts    facts
	statuses *statuses
	slots    chan struct{} // bounds how many pods and containers are being started at once

	mu      sync.Mutex                   // guards all below
	ctx     context.Context              // of the workers; nil before Run
	left    map[types.UID]*container.Pod // what an earlier life left and nobody has claimed
	workers map[types.UID]*worker
	done    map[types.UID]bool        // pods that are gone from here and whose objects may still be seen
	named   map[types.UID]bool        // pods that the API named before Synced; nil afterwards
	shown   map[types.UID]*corev1.Pod // pod → with its newest status
	synced  chan struct{}             // closed when named is nil
	running sync.WaitGroup
}

// New returns an Agent that knows what its predecessor left.
func New(ctx context.Context, o Options) (*Agent, error) {
	if len(o.HostIPs) == 0 {
		return nil, errors.New("node agent: no address of the node")
	}
	if o.Mirror == nil {
		o.Mirror = func(types.UID) (*corev1.Pod, bool) { return nil, false }
	}
	a := &Agent{
		options: o, statuses: newStatuses(o.Client, o.Logger),
		slots: make(chan struct{}, 4*runtime.NumCPU()),
		left:  map[types.UID]*container.Pod{}, workers: map[types.UID]*worker{},
		done: map[types.UID]bool{}, named: map[types.UID]bool{}, shown: map[types.UID]*corev1.Pod{}, synced: make(chan struct{}),
	}
	a.facts = facts{hostIPs: o.HostIPs, schemes: scheme}
	for _, class := range a.classes() {
		pods, err := o.Runtimes[class].Pods(ctx)
		if err != nil {
			return nil, fmt.Errorf("pods of an earlier run: %w", err)
		}
		for i := range pods {
			a.left[types.UID(pods[i].Sandbox.UID)] = &pods[i]
		}
	}
	return a, nil
}

// scheme is what the IDs of a pod's containers begin with.
func scheme(pod *corev1.Pod) string {
	if pod.Spec.RuntimeClassName != nil && *pod.Spec.RuntimeClassName == ClassExternal {
		return ClassExternal
	}
	return ClassProcess
}

func (a *Agent) classes() []string { return slices.Sorted(maps.Keys(a.options.Runtimes)) }

// Run keeps the pods until ctx ends, and leaves them running.
func (a *Agent) Run(ctx context.Context) error {
	keep := []string{}
	a.mu.Lock()
	a.ctx = ctx
	for _, w := range a.workers {
		a.start(w)
	}
	for uid := range a.workers {
		keep = append(keep, string(uid))
	}
	for uid := range a.left {
		keep = append(keep, string(uid))
	}
	a.mu.Unlock()
	if err := a.options.Network.Prune(ctx, keep); err != nil && ctx.Err() == nil {
		a.options.Logger.Warn("addresses of an earlier run", "err", err)
	}

	a.running.Go(func() { a.statuses.run(ctx) })
	a.running.Go(func() {
		a.await(ctx)
		if ctx.Err() == nil {
			a.startLeft()
		}
	})
	for _, class := range a.classes() {
		a.running.Go(func() { a.dispatch(ctx, a.options.Runtimes[class]) })
	}
	<-ctx.Done()
	a.running.Wait()
	return nil
}

// patience is how long pods of an earlier life wait for the API to tell what it knows of them. Without it they are kept as they were
// when they began.
const patience = 3 * time.Second

// await returns when the API has told what it knows, or after patience.
func (a *Agent) await(ctx context.Context) {
	patient := time.NewTimer(patience)
	defer patient.Stop()
	select {
	case <-a.synced:
	case <-patient.C:
	case <-ctx.Done():
	}
}

// startLeft goes on with the pods that nobody has claimed.
func (a *Agent) startLeft() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for uid, left := range a.left {
		if a.workers[uid] != nil {
			continue
		}
		pod, err := decodePod(left.Sandbox.Labels[labelPod])
		if err != nil {
			a.options.Logger.Warn("pod of an earlier run is not known again and ends", "uid", uid, "err", err)
			pod = &corev1.Pod{}
			pod.UID, pod.Namespace, pod.Name = uid, left.Sandbox.Namespace, left.Sandbox.Name
		}
		w := newWorker(a, pod, pod.Annotations[sourceAnnotation] == sourceFile)
		w.removed = err != nil || !w.static && a.named == nil
		a.workers[uid] = w
		a.start(w)
	}
}

// start runs a worker. a.mu is held, and a.ctx set.
func (a *Agent) start(w *worker) {
	left := a.left[w.uid]
	delete(a.left, w.uid)
	a.running.Go(func() {
		w.run(a.ctx, left)
		if a.ctx.Err() != nil {
			return
		}
		w.standing.forget()
		a.mu.Lock()
		defer a.mu.Unlock()
		delete(a.workers, w.uid)
		delete(a.shown, w.uid)
		if !w.removed {
			a.done[w.uid] = true
		}
	})
}

// dispatch brings what happens to the workers. Nothing here may wait.
func (a *Agent) dispatch(ctx context.Context, r container.Runtime) {
	for {
		select {
		case <-ctx.Done():
			return
		case e := <-r.Events():
			a.mu.Lock()
			w := a.workers[types.UID(e.Pod)]
			a.mu.Unlock()
			if w != nil {
				w.take(ctx, e)
			}
		}
	}
}

// SetPod tells of a pod of this node in the API, new or changed. Mirrors of static pods are none of them.
func (a *Agent) SetPod(pod *corev1.Pod) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.named != nil {
		a.named[pod.UID] = true
	}
	a.set(pod, false)
}

// set makes a worker or tells the one there is. a.mu is held.
func (a *Agent) set(pod *corev1.Pod, static bool) {
	if a.done[pod.UID] {
		return // an echo of what was deleted
	}
	if w := a.workers[pod.UID]; w != nil {
		w.inbox.post(func() { w.update(pod) })
		return
	}
	w := newWorker(a, pod, static)
	a.workers[pod.UID] = w
	if a.ctx != nil {
		a.start(w)
	}
}

// RemovePod tells that a pod is no longer in the API.
func (a *Agent) RemovePod(uid types.UID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.done, uid)
	a.drop(uid)
}

// drop has a pod end that nobody wants any more. a.mu is held.
func (a *Agent) drop(uid types.UID) {
	if w := a.workers[uid]; w != nil {
		w.inbox.post(func() { w.removed = true })
	}
}

// Synced tells that SetPod was called for every pod that the API has now: others, from an earlier life, are ended.
func (a *Agent) Synced() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for uid, w := range a.workers {
		if a.named != nil && !a.named[uid] && !w.static {
			a.drop(uid)
		}
	}
	if a.named != nil {
		a.named = nil
		close(a.synced)
	}
}

// SetStatic tells which static pods there are now.
func (a *Agent) SetStatic(pods []*corev1.Pod) {
	a.mu.Lock()
	defer a.mu.Unlock()
	wanted := map[types.UID]bool{}
	for _, pod := range pods {
		wanted[pod.UID] = true
		if w := a.workers[pod.UID]; w == nil || !w.static {
			a.set(pod, true)
		}
	}
	for uid, w := range a.workers {
		if w.static && !wanted[uid] {
			a.drop(uid)
		}
	}
}

// MirrorChanged tells that the API's object of a static pod is there, or another one.
func (a *Agent) MirrorChanged(static types.UID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if w := a.workers[static]; w != nil {
		w.inbox.post(func() {})
	}
}

// Pods lists the pods of the node with their newest status. They are not to be modified.
func (a *Agent) Pods() []*corev1.Pod {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Collect(maps.Values(a.shown))
}

// Keeps reports whether something of the pod is still here.
func (a *Agent) Keeps(uid types.UID) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.workers[uid] != nil
}

// Lookup finds a pod by name, with its newest status. A static pod has the UID of its processes, not of its mirror.
func (a *Agent) Lookup(namespace, name string) (*corev1.Pod, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, pod := range a.shown {
		if pod.Namespace == namespace && pod.Name == name {
			return pod, true
		}
	}
	return nil, false
}

// show keeps what Pods and Lookup give.
func (a *Agent) show(uid types.UID, pod *corev1.Pod) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.workers[uid] != nil {
		a.shown[uid] = pod
	}
}

func (a *Agent) mirror(static types.UID) *corev1.Pod {
	if pod, ok := a.options.Mirror(static); ok {
		return pod
	}
	return nil
}

// slot waits for a turn to start something; release gives it back.
func (a *Agent) slot(ctx context.Context) (release func(), err error) {
	select {
	case a.slots <- struct{}{}:
		return func() { <-a.slots }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// insecure is for hooks over https: their certificates are not verified, as in the kubelet.
func insecure() *tls.Config { return &tls.Config{InsecureSkipVerify: true} } //nolint:gosec // see above

// What the kubelet notes on a static pod.
const (
	sourceAnnotation = "kubernetes.io/config.source"
	sourceFile       = "file"
)
