package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/record"
	"sigs.k8s.io/yaml"

	"github.com/endpointd/endpointd/internal/controller/controllertest"
	"github.com/endpointd/endpointd/internal/node/container"
	"github.com/endpointd/endpointd/internal/node/podnet"
	"github.com/endpointd/endpointd/internal/node/podspec"
	"github.com/endpointd/endpointd/internal/node/watch"
	"github.com/endpointd/endpointd/internal/prober"
	"github.com/endpointd/endpointd/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

var nodeIPs = []netip.Addr{netip.MustParseAddr("10.200.0.11")}

// drainGrace of the agents under test.
const drainGrace = 100 * time.Millisecond

// world is an agent with an API, a runtime, a network and probes in memory, within a synctest bubble.
type world struct {
	t       *testing.T
	api     *controllertest.API
	user    *fake.Clientset // writes as people and controllers do
	client  *fake.Clientset // the agent's
	runtime *fakeRuntime
	network *fakeNetwork
	specs   *fakeSpecs
	probes  *fakeProbes
	events  *record.FakeRecorder
	mirrors map[types.UID]string    // static UID → namespace/name of its mirror
	stale   *corev1.Pod             // a mirror that is taken to be there still
	pods    corev1client.PodsGetter // what the agent writes with
	traffic Traffic
	drain   time.Duration // the agent's DrainGrace

	agent *Agent
	stop  func()
	log   *fakeLog // everything that was done, in order
}

// in runs f in a bubble with a world whose agent has started.
func in(t *testing.T, f func(*world)) {
	t.Helper()
	inWith(t, func(*world) {}, f)
}

// inWith is in with a world that is changed before its agent starts.
func inWith(t *testing.T, set, f func(*world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		log := &fakeLog{began: time.Now()}
		w := &world{
			t: t, api: controllertest.NewAPI(), log: log, mirrors: map[types.UID]string{}, drain: drainGrace,
			runtime: newFakeRuntime(log), network: &fakeNetwork{log: log, held: map[string]netip.Addr{}}, specs: &fakeSpecs{errs: map[string]error{}},
		}
		w.user, w.client = w.api.Client(), w.api.Client()
		w.pods = w.client.CoreV1()
		set(w)
		w.startAgent()
		defer w.stopAgent()
		f(w)
	})
}

func (w *world) startAgent() {
	w.t.Helper()
	ctx, cancel := context.WithCancel(w.t.Context())
	w.events = record.NewFakeRecorder(1000)
	w.probes = &fakeProbes{specs: map[prober.Key]prober.Spec{}}
	agent, err := New(ctx, Options{
		HostIPs: nodeIPs, Client: w.pods, Recorder: w.events,
		Runtimes: map[string]container.Runtime{ClassProcess: w.runtime, ClassExternal: NewExternal()},
		Network:  w.network, Specs: w.specs, Probes: w.probes, DrainGrace: w.drain, Traffic: w.traffic, Logger: slog.New(slog.DiscardHandler),
		Mirror: func(uid types.UID) (*corev1.Pod, bool) {
			if w.stale != nil {
				return w.stale, true
			}
			namespace, name, ok := strings.Cut(w.mirrors[uid], "/")
			if !ok {
				return nil, false
			}
			pod, err := w.user.CoreV1().Pods(namespace).Get(ctx, name, metav1.GetOptions{})
			return pod, err == nil
		},
		LastWords: func(_ *corev1.Pod, _ *corev1.Container, _ *container.Status, _ string) string { return "" },
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.agent = agent
	pods := watch.New(watch.Options[*corev1.Pod]{
		Name: "pods", Source: watch.From(w.client.CoreV1().Pods("")), Fields: "spec.nodeName=n1", ListFirst: true,
		Changed: func(was, now *corev1.Pod) {
			switch {
			case now == nil:
				agent.RemovePod(was.UID)
			case now.Annotations["kubernetes.io/config.mirror"] == "":
				agent.SetPod(now)
			}
		},
	})
	var running sync.WaitGroup
	running.Go(func() { _ = agent.Run(ctx) })
	running.Go(func() { _ = pods.Run(ctx) })
	running.Go(func() {
		select {
		case <-pods.Synced():
			agent.Synced()
		case <-ctx.Done():
		}
	})
	w.stop = func() {
		cancel()
		running.Wait()
	}
	synctest.Wait()
}

func (w *world) stopAgent() { w.stop() }

// create makes a pod of node n1 from YAML that says the rest.
func (w *world) create(text string) *corev1.Pod {
	w.t.Helper()
	pod := &corev1.Pod{}
	if err := yaml.UnmarshalStrict([]byte(text), pod); err != nil {
		w.t.Fatal(err)
	}
	pod.Namespace, pod.Spec.NodeName = "default", "n1"
	if pod.Name == "" {
		pod.Name = "a"
	}
	pod.UID = types.UID("uid-" + pod.Name)
	pod.Generation = 1
	pod.Status.Phase = corev1.PodPending
	created, err := w.user.CoreV1().Pods("default").Create(w.t.Context(), pod, metav1.CreateOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	synctest.Wait()
	return created
}

// pod is the object in the API.
func (w *world) pod(name string) *corev1.Pod {
	w.t.Helper()
	pod, err := w.user.CoreV1().Pods("default").Get(w.t.Context(), name, metav1.GetOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	return pod
}

func (w *world) exists(name string) bool {
	_, err := w.user.CoreV1().Pods("default").Get(w.t.Context(), name, metav1.GetOptions{})
	return err == nil
}

// deletePod asks for the pod's end, with this many seconds.
func (w *world) deletePod(name string, grace int64) {
	w.t.Helper()
	if err := w.user.CoreV1().Pods("default").Delete(w.t.Context(), name, metav1.DeleteOptions{GracePeriodSeconds: &grace}); err != nil {
		w.t.Fatal(err)
	}
	synctest.Wait()
}

// wait lets time go by.
func (w *world) wait(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

// saw fails the test unless an event holds this text.
func (w *world) saw(text string) {
	w.t.Helper()
	var all []string
	for {
		select {
		case e := <-w.events.Events:
			all = append(all, e)
			if strings.Contains(e, text) {
				return
			}
			continue
		default:
		}
		break
	}
	w.t.Errorf("no event with %q among\n%s", text, strings.Join(all, "\n"))
}

// ready is the pod's condition, "" without one.
func ready(pod *corev1.Pod) corev1.ConditionStatus { return condition(pod, corev1.PodReady).Status }

func condition(pod *corev1.Pod, kind corev1.PodConditionType) corev1.PodCondition {
	for _, c := range pod.Status.Conditions {
		if c.Type == kind {
			return c
		}
	}
	return corev1.PodCondition{}
}

func (w *world) status(pod, name string) corev1.ContainerStatus {
	w.t.Helper()
	p := w.pod(pod)
	for _, s := range slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses) {
		if s.Name == name {
			return s
		}
	}
	w.t.Fatalf("no status of container %s in %+v", name, p.Status)
	return corev1.ContainerStatus{}
}

// fakeLog is what was done, a line each, with the seconds since the world began.
type fakeLog struct {
	began time.Time
	mu    sync.Mutex // guards lines
	lines []string
}

func (l *fakeLog) add(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, fmt.Sprintf("%gs ", time.Since(l.began).Seconds())+fmt.Sprintf(format, args...))
}

// take returns the lines since the last call.
func (l *fakeLog) take() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	text := strings.Join(l.lines, "\n")
	l.lines = nil
	return text
}

// fakeRuntime keeps pods in memory. It logs what it is told to do.
type fakeRuntime struct {
	log    *fakeLog
	events chan container.Event

	mu     sync.Mutex // guards all below
	pods   map[string]*container.Pod
	errs   map[string]error // container name → what Start returns; "" = StartPod
	deaf   map[string]bool  // containers that end only by SIGKILL
	inExec func(ctx context.Context, o container.ExecOptions) (int, error)
}

func newFakeRuntime(log *fakeLog) *fakeRuntime {
	return &fakeRuntime{log: log, events: make(chan container.Event, 100), pods: map[string]*container.Pod{}, errs: map[string]error{}, deaf: map[string]bool{}}
}

func (r *fakeRuntime) StartPod(_ context.Context, s container.Sandbox) (container.Pod, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.errs[""]; err != nil {
		return container.Pod{}, err
	}
	if r.pods[s.UID] != nil {
		return container.Pod{}, fs.ErrExist
	}
	p := &container.Pod{Sandbox: s, CreatedAt: time.Now(), PID: 1, NetNS: "/proc/1/ns/net"}
	r.pods[s.UID] = p
	r.log.add("pod %s", s.Name)
	return *p, nil
}

func (r *fakeRuntime) Pods(context.Context) ([]container.Pod, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var pods []container.Pod
	for _, uid := range slices.Sorted(maps.Keys(r.pods)) {
		p := *r.pods[uid]
		p.Containers = slices.Clone(p.Containers)
		pods = append(pods, p)
	}
	return pods, nil
}

func (r *fakeRuntime) RemovePod(_ context.Context, uid string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p := r.pods[uid]; p != nil {
		r.log.add("remove %s", p.Sandbox.Name)
		delete(r.pods, uid)
	}
	return nil
}

func (r *fakeRuntime) Start(_ context.Context, c container.Container) (container.Status, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.errs[c.Name]; err != nil {
		return container.Status{}, err
	}
	p := r.pods[c.Pod]
	if p == nil {
		return container.Status{}, errors.New("no such pod")
	}
	p.Containers = slices.DeleteFunc(p.Containers, func(s container.Status) bool { return s.Name == c.Name })
	s := container.Status{
		Pod: c.Pod, Name: c.Name, Attempt: c.Attempt, ID: fmt.Sprintf("%s/%s/%d", c.Pod, c.Name, c.Attempt),
		State: container.Running, PID: 100, StartedAt: time.Now(), Labels: c.Labels,
	}
	p.Containers = append(p.Containers, s)
	r.log.add("start %s", c.Name)
	return s, nil
}

func (r *fakeRuntime) Signal(_ context.Context, pod, name string, sig syscall.Signal) error {
	r.log.add("%s %s", strings.ToUpper(sig.String()), name)
	r.mu.Lock()
	deaf := r.deaf[name]
	r.mu.Unlock()
	if sig == syscall.SIGKILL || !deaf {
		r.exit(pod, name, 128+int(sig), int(sig))
	}
	return nil
}

// exit has a container end.
func (r *fakeRuntime) exit(pod, name string, code, signal int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.pods[pod]
	for i := range p.Containers {
		if s := &p.Containers[i]; s.Name == name && s.State == container.Running {
			s.State, s.FinishedAt, s.ExitCode, s.Signal = container.Exited, time.Now(), code, signal
			gone := *s
			r.events <- container.Event{Pod: pod, Container: &gone}
		}
	}
}

// die has a whole sandbox end.
func (r *fakeRuntime) die(pod string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.pods[pod]
	p.PID = 0
	for i := range p.Containers {
		if s := &p.Containers[i]; s.State == container.Running {
			s.State, s.FinishedAt, s.ExitCode, s.Signal = container.Exited, time.Now(), 137, 9
		}
	}
	r.events <- container.Event{Pod: pod}
}

func (r *fakeRuntime) Events() <-chan container.Event { return r.events }

func (r *fakeRuntime) Exec(ctx context.Context, o container.ExecOptions, _ container.Streams) (int, error) {
	r.log.add("exec %s in %s", strings.Join(o.Args, " "), o.Container)
	r.mu.Lock()
	exec := r.inExec
	r.mu.Unlock()
	if exec == nil {
		return 0, nil
	}
	return exec(ctx, o)
}

func (*fakeRuntime) Attach(context.Context, string, string, container.Streams) error { return nil }
func (*fakeRuntime) LogFile(pod, name string, attempt int) string {
	return fmt.Sprintf("/logs/%s/%s/%d", pod, name, attempt)
}
func (*fakeRuntime) Close() error { return nil }

// fakeNetwork counts addresses up.
type fakeNetwork struct {
	log  *fakeLog
	mu   sync.Mutex // guards all below
	next int
	held map[string]netip.Addr // uid → address
	err  error
}

func (n *fakeNetwork) Add(_ context.Context, uid, _ string, _ []podnet.HostPort) ([]netip.Addr, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.err != nil {
		return nil, n.err
	}
	n.next++
	n.held[uid] = netip.AddrFrom4([4]byte{10, 244, 1, byte(n.next)})
	return []netip.Addr{n.held[uid]}, nil
}

func (n *fakeNetwork) Adopt(uid string, addrs []netip.Addr, _ []podnet.HostPort) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.held[uid] = addrs[0]
	n.log.add("adopt %s", addrs[0])
	return n.err
}

func (n *fakeNetwork) Remove(_ context.Context, uid string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.held, uid)
	return nil
}

func (*fakeNetwork) Prune(context.Context, []string) error { return nil }

// fakeSpecs resolves everything, but what errs names.
type fakeSpecs struct {
	mu   sync.Mutex       // guards errs
	errs map[string]error // container name → error; "" = the volumes
}

func (s *fakeSpecs) set(name string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.errs[name] = err
}

func (s *fakeSpecs) get(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.errs[name]
}

func (*fakeSpecs) Sandbox(pod *corev1.Pod) (container.Sandbox, error) {
	return container.Sandbox{UID: string(pod.UID), Namespace: pod.Namespace, Name: pod.Name, HostNetwork: pod.Spec.HostNetwork}, nil
}
func (s *fakeSpecs) Prepare(context.Context, *corev1.Pod) error       { return s.get("") }
func (*fakeSpecs) Refresh(context.Context, *corev1.Pod) (bool, error) { return false, nil }
func (*fakeSpecs) Remove(string) error                                { return nil }
func (s *fakeSpecs) Container(_ context.Context, pod *corev1.Pod, c *corev1.Container, f podspec.Facts) (container.Container, error) {
	return container.Container{Pod: string(pod.UID), Name: c.Name, Attempt: f.Attempt, Args: c.Command}, s.get(c.Name)
}

// fakeProbes keeps the probes; the test says what they find.
type fakeProbes struct {
	mu    sync.Mutex // guards specs
	specs map[prober.Key]prober.Spec
}

func (p *fakeProbes) Add(key prober.Key, spec prober.Spec) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.specs[key] = spec
	return nil
}

func (p *fakeProbes) RemoveContainer(uid, name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, kind := range prober.Kinds() {
		delete(p.specs, prober.Key{UID: uid, Container: name, Kind: kind})
	}
}

func (p *fakeProbes) Terminate(uid, name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.specs, prober.Key{UID: uid, Container: name, Kind: prober.Liveness})
}

// find has a probe come to a verdict.
func (w *world) find(uid, name string, kind prober.Kind, r prober.Result) {
	w.t.Helper()
	w.probes.mu.Lock()
	spec, ok := w.probes.specs[prober.Key{UID: uid, Container: name, Kind: kind}]
	w.probes.mu.Unlock()
	if !ok {
		w.t.Fatalf("no %s probe of container %s", kind, name)
	}
	if r == prober.Failed && spec.OnFailure != nil {
		spec.OnFailure(string(kind)+" probe failed: no", 1)
	}
	spec.OnResult(r)
	synctest.Wait()
}
