package endpoints

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/txtar"
	corev1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/kubernetes/scheme"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/record"
	"k8s.io/utils/ptr"

	"github.com/endpointd/endpointd/internal/controller/controllertest"
	"github.com/endpointd/endpointd/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// TestScripts runs every testdata/*.txtar. A script is steps in order:
//
//	apply   YAML of Services, Nodes, Endpoints, EndpointSlices to create or replace
//	pods    a line a pod: name address[,address] ready|unready|terminating|serving-terminating|failed [node=N] [hostname=H subdomain=S] [port=name:number] label=value…
//	delete  a line an object: kind name
//	want    the slices and Endpoints that must come of it, and the writes since the last want
func TestScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			t.Parallel()
			archive, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			w := newWorld(t)
			for i := range archive.Files {
				step := &archive.Files[i]
				switch step.Name {
				case "apply":
					w.applyYAML(step.Data)
				case "pods":
					w.applyPods(string(step.Data))
				case "delete":
					w.deleteAll(string(step.Data))
				case "want":
					w.settle()
					step.Data = []byte(w.render())
				default:
					t.Fatalf("%s: unknown step %q", file, step.Name)
				}
			}
			testkit.Golden(t, filepath.Base(file), txtar.Format(archive))
		})
	}
}

// world is an API with the controller at work on it.
type world struct {
	t      testing.TB
	api    *controllertest.API
	user   *fake.Clientset // of the test
	ours   *fake.Clientset // of the controller; counts its writes
	c      *Controller
	inf    informers.SharedInformerFactory
	events *record.FakeRecorder
	wrote  map[string]int // at the last want
	stop   func()         // ends the controller

	mu    sync.Mutex           // guards heard
	heard map[types.UID]string // object → resourceVersion that the controller's handler was told
}

// newWorld starts a controller on an empty API; reactors see its writes first.
func newWorld(t testing.TB, reactors ...clienttesting.ReactionFunc) *world {
	w := &world{t: t, api: controllertest.NewAPI(), wrote: map[string]int{}, events: record.NewFakeRecorder(1000)}
	w.user, w.ours = w.api.Client(), w.api.Client()
	for _, react := range reactors {
		for _, verb := range []string{"create", "update", "delete"} {
			w.ours.PrependReactor(verb, "*", react)
		}
	}
	w.start()
	return w
}

// restart puts a new controller in the place of the present one, as when another
// server becomes the leader.
func (w *world) restart() {
	w.stop()
	w.start()
}

func (w *world) start() {
	w.inf = informers.NewSharedInformerFactory(w.ours, 0)
	w.c = New(Options{Client: w.ours, Informers: w.inf, Recorder: w.events, Logger: slog.New(slog.DiscardHandler)})
	w.heard = map[types.UID]string{}
	w.c.heard = w.hear
	ctx, cancel := context.WithCancel(context.Background())
	w.inf.Start(ctx.Done())
	done := make(chan struct{})
	go func() { defer close(done); _ = w.c.Run(ctx) }()
	w.stop = sync.OnceFunc(func() {
		cancel()
		<-done
		w.inf.Shutdown()
	})
	w.t.Cleanup(w.stop)
}

// settle waits until the controller has seen everything and has nothing to do.
func (w *world) settle() {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := w.api.Eventually(ctx, w.settled); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) settled() error {
	if !w.c.idle() {
		return errors.New("the controller is at work")
	}
	stored := map[types.UID]string{}
	for _, o := range w.objects() {
		stored[o.GetUID()] = o.GetResourceVersion()
	}
	w.mu.Lock()
	same := maps.Equal(stored, w.heard)
	w.mu.Unlock()
	if !same {
		return errors.New("the controller has not heard of everything")
	}
	if !w.c.idle() { // what was heard between the first look and now is in an inbox
		return errors.New("the controller is at work")
	}
	return nil
}

// objects is everything in the API that the controller listens to.
func (w *world) objects() (out []metav1.Object) {
	ctx, all := context.Background(), metav1.ListOptions{}
	svcs, err1 := w.user.CoreV1().Services("").List(ctx, all)
	pods, err2 := w.user.CoreV1().Pods("").List(ctx, all)
	nodes, err3 := w.user.CoreV1().Nodes().List(ctx, all)
	eps, err4 := w.user.CoreV1().Endpoints("").List(ctx, all)
	sls, err5 := w.user.DiscoveryV1().EndpointSlices("").List(ctx, all)
	w.must(errors.Join(err1, err2, err3, err4, err5))
	for _, list := range []runtime.Object{svcs, pods, nodes, eps, sls} {
		w.must(meta.EachListItem(list, func(o runtime.Object) error {
			out = append(out, o.(metav1.Object))
			return nil
		}))
	}
	return out
}

// hear keeps what the controller's handlers were told last of each object.
func (w *world) hear(old, now any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if old != nil {
		delete(w.heard, old.(metav1.Object).GetUID())
	}
	if now != nil {
		w.heard[now.(metav1.Object).GetUID()] = now.(metav1.Object).GetResourceVersion()
	}
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) applyYAML(data []byte) {
	w.t.Helper()
	dec := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(data)))
	for {
		doc, err := dec.Read()
		if errors.Is(err, io.EOF) {
			return
		}
		w.must(err)
		obj, _, err := scheme.Codecs.UniversalDeserializer().Decode(doc, nil, nil)
		if err != nil {
			w.t.Fatalf("%v in\n%s", err, doc)
		}
		w.apply(obj)
	}
}

// apply creates or replaces an object, and waits for what comes of it, so that
// the number of writes is always the same.
func (w *world) apply(obj runtime.Object) {
	w.t.Helper()
	w.put(obj)
	w.settle()
}

// put creates or replaces an object.
func (w *world) put(obj runtime.Object) {
	w.t.Helper()
	ctx := context.Background()
	const ns = "default"
	obj = obj.DeepCopyObject()
	var err error
	switch o := obj.(type) {
	case *corev1.Service:
		defaultService(o)
		if old, e := w.user.CoreV1().Services(ns).Get(ctx, o.Name, metav1.GetOptions{}); e == nil {
			o.ResourceVersion, o.UID, o.CreationTimestamp = old.ResourceVersion, old.UID, old.CreationTimestamp
			_, err = w.user.CoreV1().Services(ns).Update(ctx, o, metav1.UpdateOptions{})
		} else {
			o.CreationTimestamp = metav1.NewTime(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC))
			_, err = w.user.CoreV1().Services(ns).Create(ctx, o, metav1.CreateOptions{})
		}
	case *corev1.Pod:
		if old, e := w.user.CoreV1().Pods(ns).Get(ctx, o.Name, metav1.GetOptions{}); e == nil {
			o.ResourceVersion, o.UID = old.ResourceVersion, old.UID
			_, err = w.user.CoreV1().Pods(ns).Update(ctx, o, metav1.UpdateOptions{})
		} else {
			_, err = w.user.CoreV1().Pods(ns).Create(ctx, o, metav1.CreateOptions{})
		}
	case *corev1.Node:
		if old, e := w.user.CoreV1().Nodes().Get(ctx, o.Name, metav1.GetOptions{}); e == nil {
			o.ResourceVersion, o.UID = old.ResourceVersion, old.UID
			_, err = w.user.CoreV1().Nodes().Update(ctx, o, metav1.UpdateOptions{})
		} else {
			_, err = w.user.CoreV1().Nodes().Create(ctx, o, metav1.CreateOptions{})
		}
	case *corev1.Endpoints:
		if old, e := w.user.CoreV1().Endpoints(ns).Get(ctx, o.Name, metav1.GetOptions{}); e == nil {
			o.ResourceVersion, o.UID = old.ResourceVersion, old.UID
			_, err = w.user.CoreV1().Endpoints(ns).Update(ctx, o, metav1.UpdateOptions{})
		} else {
			_, err = w.user.CoreV1().Endpoints(ns).Create(ctx, o, metav1.CreateOptions{})
		}
	case *discovery.EndpointSlice:
		_, err = w.user.DiscoveryV1().EndpointSlices(ns).Create(ctx, o, metav1.CreateOptions{})
	default:
		w.t.Fatalf("a script cannot apply %T", obj)
	}
	w.must(err)
}

// defaultService does what the API server would (spec §3.3 "defaults").
func defaultService(svc *corev1.Service) {
	if svc.Spec.Type == "" {
		svc.Spec.Type = corev1.ServiceTypeClusterIP
	}
	if svc.Spec.Type == corev1.ServiceTypeExternalName {
		return
	}
	if svc.Spec.IPFamilies == nil {
		svc.Spec.IPFamilies = []corev1.IPFamily{corev1.IPv4Protocol}
	}
	if svc.Spec.ClusterIP == "" {
		svc.Spec.ClusterIP = "10.96.0.10"
	}
	for i := range svc.Spec.Ports {
		p := &svc.Spec.Ports[i]
		if p.Protocol == "" {
			p.Protocol = corev1.ProtocolTCP
		}
		if p.TargetPort.IntVal == 0 && p.TargetPort.StrVal == "" {
			p.TargetPort.IntVal = p.Port
		}
	}
}

func (w *world) applyPods(lines string) {
	w.t.Helper()
	for line := range strings.Lines(lines) {
		if f := strings.Fields(line); len(f) > 0 {
			w.apply(parsePod(w.t, f))
		}
	}
}

func parsePod(t testing.TB, f []string) *corev1.Pod {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: f[0], Namespace: "default", Labels: map[string]string{}}}
	if f[1] != "-" {
		for ip := range strings.SplitSeq(f[1], ",") {
			pod.Status.PodIPs = append(pod.Status.PodIPs, corev1.PodIP{IP: ip})
		}
	}
	pod.Status.Phase = corev1.PodRunning
	ready := corev1.ConditionFalse
	switch f[2] {
	case "ready":
		ready = corev1.ConditionTrue
	case "unready":
	case "serving-terminating":
		ready = corev1.ConditionTrue
		fallthrough
	case "terminating":
		pod.DeletionTimestamp = &metav1.Time{Time: time.Date(2026, 1, 1, 1, 0, 0, 0, time.UTC)}
		pod.DeletionGracePeriodSeconds = ptr.To[int64](30)
		pod.Finalizers = []string{"test/wait"}
	case "failed":
		pod.Status.Phase = corev1.PodFailed
	default:
		t.Fatalf("pod %s: unknown state %q", f[0], f[2])
	}
	pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: ready}}
	pod.Spec.NodeName = "n1"
	for _, kv := range f[3:] {
		k, v, _ := strings.Cut(kv, "=")
		switch k {
		case "node":
			pod.Spec.NodeName = v
		case "hostname":
			pod.Spec.Hostname = v
		case "subdomain":
			pod.Spec.Subdomain = v
		case "since":
			at, err := time.Parse(time.RFC3339, v)
			if err != nil {
				t.Fatal(err)
			}
			pod.Status.Conditions[0].LastTransitionTime = metav1.NewTime(at)
		case "port":
			name, number, _ := strings.Cut(v, ":")
			var n int32
			if _, err := fmt.Sscan(number, &n); err != nil {
				t.Fatalf("pod %s: port %q: %v", f[0], v, err)
			}
			pod.Spec.Containers = append(pod.Spec.Containers, corev1.Container{Name: fmt.Sprint("c", n),
				Ports: []corev1.ContainerPort{{Name: name, ContainerPort: n, Protocol: corev1.ProtocolTCP}}})
		default:
			pod.Labels[k] = v
		}
	}
	return pod
}

func (w *world) deleteAll(lines string) {
	w.t.Helper()
	ctx := context.Background()
	now := metav1.DeleteOptions{GracePeriodSeconds: ptr.To[int64](0)}
	for line := range strings.Lines(lines) {
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		var err error
		switch kind, name := f[0], f[1]; kind {
		case "pod":
			pod, e := w.user.CoreV1().Pods("default").Get(ctx, name, metav1.GetOptions{})
			w.must(e)
			if len(pod.Finalizers) > 0 {
				pod.Finalizers = nil
				_, err = w.user.CoreV1().Pods("default").Update(ctx, pod, metav1.UpdateOptions{})
				w.must(err)
			}
			if err = w.user.CoreV1().Pods("default").Delete(ctx, name, now); apierrors.IsNotFound(err) {
				err = nil
			}
		case "service":
			err = w.user.CoreV1().Services("default").Delete(ctx, name, now)
		case "endpoints":
			err = w.user.CoreV1().Endpoints("default").Delete(ctx, name, now)
		case "node":
			err = w.user.CoreV1().Nodes().Delete(ctx, name, now)
		case "slices": // of a Service, all of them
			err = w.user.DiscoveryV1().EndpointSlices("default").DeleteCollection(ctx, now, metav1.ListOptions{LabelSelector: discovery.LabelServiceName + "=" + name})
		case "slice":
			err = w.user.DiscoveryV1().EndpointSlices("default").Delete(ctx, name, now)
		default:
			w.t.Fatalf("a script cannot delete a %s", kind)
		}
		w.must(err)
		w.settle()
	}
}

// render is what there is, as text: every slice and Endpoints object, and what
// it took since the last call.
func (w *world) render() string {
	ctx := context.Background()
	sls, err := w.user.DiscoveryV1().EndpointSlices("").List(ctx, metav1.ListOptions{})
	w.must(err)
	eps, err := w.user.CoreV1().Endpoints("").List(ctx, metav1.ListOptions{})
	w.must(err)
	var blocks []string
	for i := range sls.Items {
		blocks = append(blocks, renderSlice(&sls.Items[i]))
	}
	for i := range eps.Items {
		blocks = append(blocks, renderEndpoints(&eps.Items[i]))
	}
	slices.Sort(blocks)
	var b strings.Builder
	for _, s := range blocks {
		b.WriteString(s)
	}
	now := controllertest.Writes(w.ours)
	for _, k := range slices.Sorted(maps.Keys(now)) {
		if n := now[k] - w.wrote[k]; n > 0 {
			fmt.Fprintf(&b, "writes: %s %d\n", k, n)
		}
	}
	w.wrote = now
	for {
		select {
		case e := <-w.events.Events:
			fmt.Fprintf(&b, "event: %s\n", e)
			continue
		default:
		}
		return b.String()
	}
}

func renderSlice(s *discovery.EndpointSlice) string {
	var b strings.Builder
	labels := maps.Clone(s.Labels)
	by := map[string]string{sliceManager: "", mirrorManager: " mirrored"}[labels[discovery.LabelManagedBy]]
	if _, known := map[string]bool{sliceManager: true, mirrorManager: true}[labels[discovery.LabelManagedBy]]; !known {
		by = " by-hand"
	}
	fmt.Fprintf(&b, "slice of %s%s %s", labels[discovery.LabelServiceName], by, s.AddressType)
	for _, p := range s.Ports {
		fmt.Fprintf(&b, " %s:%d/%s", ptr.Deref(p.Name, "<nil>"), *p.Port, *p.Protocol)
	}
	delete(labels, discovery.LabelManagedBy)
	delete(labels, discovery.LabelServiceName)
	renderMeta(&b, labels, s.Annotations)
	var lines []string
	for _, e := range s.Endpoints {
		line := "  " + strings.Join(e.Addresses, ",") + " " + state(e.Conditions)
		for _, kv := range []struct {
			k string
			v *string
		}{{"node", e.NodeName}, {"zone", e.Zone}, {"hostname", e.Hostname}} {
			if kv.v != nil {
				line += " " + kv.k + "=" + *kv.v
			}
		}
		if e.TargetRef != nil {
			line += " " + strings.ToLower(e.TargetRef.Kind) + "=" + e.TargetRef.Name
		}
		if e.Hints != nil {
			for _, z := range e.Hints.ForZones {
				line += " for-zone=" + z.Name
			}
			for _, n := range e.Hints.ForNodes {
				line += " for-node=" + n.Name
			}
		}
		lines = append(lines, line+"\n")
	}
	slices.Sort(lines)
	return b.String() + strings.Join(lines, "")
}

func state(c discovery.EndpointConditions) string {
	var on []string
	for _, v := range []struct {
		name string
		is   *bool
	}{{"ready", c.Ready}, {"serving", c.Serving}, {"terminating", c.Terminating}} {
		if ptr.Deref(v.is, false) {
			on = append(on, v.name)
		}
	}
	if on == nil {
		return "unready"
	}
	return strings.Join(on, "+")
}

func renderMeta(b *strings.Builder, labels, annotations map[string]string) {
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		fmt.Fprintf(b, " %s=%q", k, labels[k])
	}
	for _, k := range slices.Sorted(maps.Keys(annotations)) {
		fmt.Fprintf(b, " @%s=%q", strings.TrimPrefix(k, "endpoints.kubernetes.io/"), annotations[k])
	}
	b.WriteByte('\n')
}

func renderEndpoints(ep *corev1.Endpoints) string {
	var b strings.Builder
	fmt.Fprintf(&b, "endpoints %s", ep.Name)
	labels := maps.Clone(ep.Labels)
	if labels[managedByLabel] == managedByValue {
		delete(labels, managedByLabel)
	} else {
		b.WriteString(" by-hand")
	}
	renderMeta(&b, labels, ep.Annotations)
	for _, s := range ep.Subsets {
		var ports []string
		for _, p := range s.Ports {
			ports = append(ports, fmt.Sprintf("%s:%d/%s", p.Name, p.Port, p.Protocol))
		}
		fmt.Fprintf(&b, "  ports %s\n", strings.Join(ports, " "))
		for _, list := range []struct {
			name string
			of   []corev1.EndpointAddress
		}{{"ready", s.Addresses}, {"unready", s.NotReadyAddresses}} {
			for _, a := range list.of {
				fmt.Fprintf(&b, "    %s %s", a.IP, list.name)
				if a.Hostname != "" {
					fmt.Fprintf(&b, " hostname=%s", a.Hostname)
				}
				if a.TargetRef != nil {
					fmt.Fprintf(&b, " pod=%s", a.TargetRef.Name)
				}
				b.WriteByte('\n')
			}
		}
	}
	return b.String()
}
