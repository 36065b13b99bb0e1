package node

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/endpointd/endpointd/internal/node/container"
)

// Notes that the agent leaves with what it starts, to know it again after a restart of its own.
const (
	labelPod = "pod" // of a sandbox: the pod as JSON, as it was when the sandbox was made
	labelIPs = "ips" // of a container: the pod's addresses, comma-separated
)

// worker owns one pod. Everything but uid, agent, inbox and standing belongs to its goroutine.
type worker struct {
	agent    *Agent
	uid      types.UID
	inbox    *inbox
	standing *standing
	log      *slog.Logger

	pod     *corev1.Pod // the newest known object, by resourceVersion
	static  bool        // from a manifest: the API has only its mirror
	removed bool        // its source has it no more
	runtime container.Runtime
	class   string // which one it is

	seen  observed
	end   *ending // nil = the pod is to run
	retry retry   // of the sandbox
	hooks context.Context
	work  sync.WaitGroup // the hooks that run

	later   []func()  // what can wait until endpoints have been told
	laterAt time.Time // when it is called

	refreshAt time.Time         // when volumes are brought up to date
	reported  *corev1.PodStatus // the newest status
	settled   settled           // our last write
	deleted   bool              // the API was told that nothing is left, and agrees
	cleaned   bool              // nothing is left here
}

// settled is a status that was written, and the resourceVersion that came of it. If the API keeps something else of it, it is not written
// again.
type settled struct {
	version string
	status  *corev1.PodStatus
}

func newWorker(a *Agent, pod *corev1.Pod, static bool) *worker {
	w := &worker{
		agent: a, uid: pod.UID, inbox: newInbox(), standing: &standing{traffic: a.options.Traffic}, pod: pod, static: static,
		log:  a.options.Logger.With("pod", pod.Namespace+"/"+pod.Name),
		seen: observed{containers: map[string]*containerState{}},
	}
	if !static {
		w.standing.meet(pod)
	}
	return w
}

// run returns when nothing of the pod is left, or when ctx ends: then the pod runs on.
func (w *worker) run(ctx context.Context, left *container.Pod) {
	hooks, unhook := context.WithCancel(ctx)
	w.hooks = hooks
	defer w.work.Wait()
	defer unhook()
	w.choose()
	if w.static && left != nil {
		w.agent.await(ctx) // what the API knows of it is in its mirror
	}
	w.adopt(ctx, left)
	if left != nil { // what ended meanwhile is down before it is started again
		object, _, s := w.status()
		w.standing.see(object, isReady(&s), w.unable())
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-w.inbox.ready:
		}
		w.inbox.drain()
		wake := w.step(ctx)
		if w.cleaned && (w.deleted || w.removed) {
			return
		}
		timer.Stop()
		if !wake.IsZero() {
			timer.Reset(time.Until(wake))
		}
	}
}

// choose takes the runtime that the pod's runtimeClassName names. An unknown one leaves w.runtime nil.
func (w *worker) choose() {
	if w.pod.Spec.RuntimeClassName != nil {
		w.class = *w.pod.Spec.RuntimeClassName
	}
	if w.class == "" {
		w.class = ClassProcess
	}
	w.runtime = w.agent.options.Runtimes[w.class]
}

// update takes a newer object. An older one, such as a watch event from before our own write, is not taken.
func (w *worker) update(pod *corev1.Pod) {
	if !w.static && older(pod.ResourceVersion, w.pod.ResourceVersion) {
		return
	}
	w.pod = pod
}

// step does what is next and returns when it wants to be called again, zero for "when something happens".
func (w *worker) step(ctx context.Context) time.Time {
	now := time.Now()
	if w.seen.startTime.IsZero() {
		w.seen.startTime = now
	}
	if w.end == nil && w.unwanted() {
		w.beginEnd(now)
	}
	var wake time.Time
	switch {
	case w.end != nil:
		wake = w.finish(ctx, now)
	case w.seen.ended || terminal(w.pod):
		wake = w.settle(ctx, now)
	default:
		wake = w.keep(ctx, now)
	}
	w.report()
	if len(w.later) > 0 {
		if now.Before(w.laterAt) && w.end == nil {
			return soonest(wake, w.laterAt)
		}
		for _, f := range w.later {
			f()
		}
		w.later = nil
	}
	return wake
}

// keep makes the pod run as it should.
func (w *worker) keep(ctx context.Context, now time.Time) time.Time {
	wake := w.deadline(now)
	if w.end != nil {
		return now
	}
	if !w.seen.sandbox {
		if w.retry.at.After(now) {
			return soonest(wake, w.retry.at)
		}
		if err := w.startSandbox(ctx); err != nil {
			if ctx.Err() == nil {
				w.sandboxFailed(err)
			}
			return soonest(wake, w.retry.at)
		}
		w.retry = retry{}
	}
	if w.class == ClassExternal {
		w.moveExternal()
	}
	wake = soonest(wake, w.refresh(ctx, now))
	d := plan(w.pod, &w.seen, now)
	if d.over {
		w.seen.ended = true
		return now // to settle
	}
	for _, c := range d.start {
		w.startContainer(ctx, c)
		if ctx.Err() != nil || !w.seen.sandbox {
			return now
		}
		if w.seen.state(c.Name).hooking || isInit(w.pod, c.Name) {
			break // decided anew when it is further
		}
	}
	if len(d.start) > 0 {
		wake = soonest(wake, plan(w.pod, &w.seen, time.Now()).next(time.Now()))
	}
	return soonest(soonest(wake, d.wake), w.pushStops(ctx, time.Now()))
}

// next is when a decision wants to be carried out.
func (d decision) next(now time.Time) time.Time {
	if d.over || len(d.start) > 0 {
		return now
	}
	return d.wake
}

// deadline ends the pod when it has run for activeDeadlineSeconds.
func (w *worker) deadline(now time.Time) time.Time {
	limit := w.pod.Spec.ActiveDeadlineSeconds
	if limit == nil {
		return time.Time{}
	}
	at := w.seen.startTime.Add(time.Duration(*limit) * time.Second)
	if now.Before(at) {
		return at
	}
	w.seen.failure = &failure{reasonDeadline, "Pod was active on the node longer than the specified deadline"}
	w.event(corev1.EventTypeNormal, "", reasonDeadline, "%s", w.seen.failure.message)
	w.beginEnd(now)
	return now
}

// settle ends what still runs of a pod that is over (sidecars), and gives its address back. Logs stay until the object goes.
func (w *worker) settle(ctx context.Context, now time.Time) time.Time {
	w.seen.ended = true
	_, sidecars, mains := split(w.pod)
	for _, name := range append(mains, sidecars...) {
		if s := w.seen.state(name); s.running() && s.stop == nil {
			w.stopContainer(name, now, w.grace(), "", true)
		}
	}
	wake := w.pushStops(ctx, now)
	if w.seen.sandbox && !w.seen.anyRunning(append(mains, sidecars...)) {
		w.releaseAddress(ctx)
	}
	return wake
}

// take is what the runtime tells; it is called by who heard of it.
func (w *worker) take(ctx context.Context, e container.Event) {
	if e.Container == nil {
		noticed := w.standing.sandboxDied()
		w.inbox.post(func() {
			w.standing.hear(noticed)
			w.sandboxDied(ctx)
		})
		return
	}
	noticed := w.standing.exited(e.Container.Name, e.Container.Attempt)
	w.inbox.post(func() {
		w.standing.hear(noticed)
		w.exited(*e.Container)
	})
}

// object is the API's, nil while it has none.
func (w *worker) object() *corev1.Pod {
	if w.static {
		return w.agent.mirror(w.uid)
	}
	return w.pod
}

// status is what the object is to show, or for want of one the pod itself.
func (w *worker) status() (object, target *corev1.Pod, s corev1.PodStatus) {
	object = w.object()
	target = object
	if object == nil {
		target = w.pod
	}
	return object, target, status(target, &w.seen, w.agent.facts, time.Now())
}

// report tells who leads connections here, and hands the status over if it is another one than the API has.
func (w *worker) report() {
	object, target, s := w.status()
	ticket, owed := w.standing.see(object, isReady(&s), w.unable())
	same := sameStatus(&target.Status, &s)
	settled := target.ResourceVersion == w.settled.version && sameStatus(w.settled.status, &s)
	if w.reported != nil && sameStatus(w.reported, &s) && (same || settled) && !owed {
		return
	}
	w.reported = &s
	shown := w.pod.DeepCopy()
	shown.Status = s
	w.agent.show(w.uid, shown)
	if w.deleted || w.removed || object == nil || same && !owed {
		return
	}
	w.agent.statuses.set(w, object, s, ticket)
}

// unable is why a pod that is not ready is not.
func (w *worker) unable() Fact {
	_, sidecars, mains := split(w.pod)
	for _, name := range slices.Concat(mains, sidecars) {
		if !w.seen.state(name).running() {
			return Dead
		}
	}
	return NotReady
}

// wrote takes the object that the API gave back for a status, nil if it is gone. Replaced is whether the status is what the API was to keep,
// and not merged with what others wrote.
func (w *worker) wrote(r report, pod *corev1.Pod, replaced bool) {
	if pod == nil {
		w.deleted = !w.static || w.deleted // a mirror that is gone comes again, and is to show the pod then
		w.settled = settled{r.pod.ResourceVersion, &r.status}
		return
	}
	if replaced {
		w.settled = settled{pod.ResourceVersion, &r.status}
	}
	if !w.static {
		w.update(pod)
	}
}

// event records one about the pod, or about one of its containers.
func (w *worker) event(kind, containerName, reason, format string, args ...any) {
	ref := podRef(w.pod)
	if w.static {
		if m := w.agent.mirror(w.uid); m != nil {
			ref = podRef(m)
		}
	}
	if containerName != "" {
		ref.FieldPath = fieldPath(w.pod, containerName)
	}
	w.agent.options.Recorder.Eventf(ref, kind, reason, format, args...)
}

func podRef(pod *corev1.Pod) *corev1.ObjectReference {
	return &corev1.ObjectReference{
		APIVersion: "v1", Kind: "Pod", Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID, ResourceVersion: pod.ResourceVersion,
	}
}

func fieldPath(pod *corev1.Pod, name string) string {
	list := "containers"
	switch {
	case isInit(pod, name):
		list = "initContainers"
	case isEphemeral(pod, name):
		list = "ephemeralContainers"
	}
	return fmt.Sprintf("spec.%s{%s}", list, name)
}

// grace is how long the pod's containers get to end.
func (w *worker) grace() time.Duration {
	seconds := int64(corev1.DefaultTerminationGracePeriodSeconds)
	if s := w.pod.Spec.TerminationGracePeriodSeconds; s != nil {
		seconds = *s
	}
	if s := w.pod.DeletionGracePeriodSeconds; s != nil {
		seconds = *s
	}
	return time.Duration(seconds) * time.Second
}

// terminal reports whether the API says that the pod is over.
func terminal(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
}

func soonest(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// retry is a pause that doubles: what could not be done is tried again.
type retry struct {
	at    time.Time
	pause time.Duration
}

func (r *retry) failed(now time.Time, first, most time.Duration) {
	r.pause = min(max(first, 2*r.pause), most)
	r.at = now.Add(r.pause)
}

func encodePod(pod *corev1.Pod) string {
	kept := pod.DeepCopy()
	kept.ManagedFields = nil
	text, err := json.Marshal(kept)
	if err != nil {
		return "" // not possible for an API type; without it the pod is known again from the API
	}
	return string(text)
}

func decodePod(text string) (*corev1.Pod, error) {
	pod := &corev1.Pod{}
	if err := json.Unmarshal([]byte(text), pod); err != nil {
		return nil, err
	}
	return pod, nil
}

func joinAddrs(addrs []netip.Addr) string {
	var texts []string
	for _, a := range addrs {
		texts = append(texts, a.String())
	}
	return strings.Join(texts, ",")
}

func parseAddrs(text string) ([]netip.Addr, error) {
	var addrs []netip.Addr
	for part := range strings.SplitSeq(text, ",") {
		a, err := netip.ParseAddr(strings.TrimSpace(part))
		if err != nil {
			return nil, err
		}
		addrs = append(addrs, a)
	}
	return addrs, nil
}
