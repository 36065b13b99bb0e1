package mirror

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	corev1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"

	"github.com/endpointd/endpointd/internal/controller/controllertest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is a controller on a fake API, in a bubble where time is free: after
// settle, everything that follows from what was done has happened.
type world struct {
	t        *testing.T
	api      *controllertest.API
	user     *fake.Clientset // what tests do
	writer   *fake.Clientset // what the controller does
	ctl      *Controller
	factory  informers.SharedInformerFactory
	events   chan string
	warnings atomic.Int32                      // lines logged, but for debug
	mu       sync.Mutex                        // guards seen
	seen     map[runtime.Object]runtime.Object // object from an informer → a copy of when it came
	stop     context.CancelFunc
	finished chan error
	stopped  bool
}

// counter counts lines above debug.
type counter struct {
	slog.Handler
	lines *atomic.Int32
}

func (c counter) Enabled(_ context.Context, level slog.Level) bool { return level > slog.LevelDebug }

func (c counter) WithAttrs([]slog.Attr) slog.Handler { return c }

func (c counter) Handle(context.Context, slog.Record) error {
	c.lines.Add(1)
	return nil
}

// run gives f a world in a bubble of its own.
func run(t *testing.T, f func(t *testing.T, w *world), objs ...runtime.Object) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, api: controllertest.NewAPI(objs...), seen: map[runtime.Object]runtime.Object{}}
		w.user = w.api.Client()
		w.start(Options{})
		defer func() {
			w.halt()
			w.checkUnmodified()
		}()
		w.settle()
		f(t, w)
	})
}

func (w *world) build(o Options) {
	w.writer = w.api.Client()
	w.factory = informers.NewSharedInformerFactory(w.api.Client(), 0)
	recorder := record.NewFakeRecorder(1000)
	w.events = recorder.Events
	o.Client, o.Informers, o.Recorder, o.Logger = w.writer, w.factory, recorder, slog.New(counter{slog.DiscardHandler, &w.warnings})
	w.ctl = New(o)
	for _, inf := range []cache.SharedIndexInformer{
		w.factory.Core().V1().Services().Informer(), w.factory.Core().V1().Endpoints().Informer(),
		w.factory.Discovery().V1().EndpointSlices().Informer(),
	} {
		remember := func(obj any) {
			if o, ok := obj.(runtime.Object); ok {
				w.mu.Lock()
				w.seen[o] = o.DeepCopyObject()
				w.mu.Unlock()
			}
		}
		if _, err := inf.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: remember, UpdateFunc: func(_, now any) { remember(now) }}); err != nil {
			w.t.Fatal(err)
		}
	}
}

// start runs a new controller, with informers of its own.
func (w *world) start(o Options) {
	w.build(o)
	ctx, cancel := context.WithCancel(w.t.Context())
	w.stop, w.finished, w.stopped = cancel, make(chan error, 1), false
	w.factory.Start(ctx.Done())
	go func() { w.finished <- w.ctl.Run(ctx) }()
}

// halt stops the controller and waits until it has.
func (w *world) halt() {
	if w.stopped {
		return
	}
	w.stopped = true
	w.stop()
	if err := <-w.finished; !errors.Is(err, context.Canceled) {
		w.t.Errorf("Run: %v", err)
	}
	w.factory.Shutdown()
}

func (w *world) settle() { synctest.Wait() }

// pass lets time pass, and what it brings happen.
func (w *world) pass(d time.Duration) {
	<-time.After(d)
	w.settle()
}

func (w *world) checkUnmodified() {
	if len(w.seen) == 0 {
		w.t.Error("no object from an informer was looked at")
	}
	for obj, was := range w.seen {
		if !reflect.DeepEqual(obj, was) {
			w.t.Errorf("an informer's object was modified: %T %s", obj, obj.(metav1.Object).GetName())
		}
	}
}

// must gives the value of a call that may not fail.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func (w *world) put(obj runtime.Object) {
	w.t.Helper()
	ctx := w.t.Context()
	var err error
	switch o := obj.(type) {
	case *corev1.Service:
		if _, err = w.user.CoreV1().Services(o.Namespace).Update(ctx, o, metav1.UpdateOptions{}); err != nil {
			_, err = w.user.CoreV1().Services(o.Namespace).Create(ctx, o, metav1.CreateOptions{})
		}
	case *corev1.Endpoints:
		if _, err = w.user.CoreV1().Endpoints(o.Namespace).Update(ctx, o, metav1.UpdateOptions{}); err != nil {
			_, err = w.user.CoreV1().Endpoints(o.Namespace).Create(ctx, o, metav1.CreateOptions{})
		}
	case *discovery.EndpointSlice:
		if _, err = w.user.DiscoveryV1().EndpointSlices(o.Namespace).Update(ctx, o, metav1.UpdateOptions{}); err != nil {
			_, err = w.user.DiscoveryV1().EndpointSlices(o.Namespace).Create(ctx, o, metav1.CreateOptions{})
		}
	}
	if err != nil {
		w.t.Fatalf("put %T: %v", obj, err)
	}
}

func (w *world) editService(edit func(*corev1.Service)) {
	w.t.Helper()
	svc := must(w.user.CoreV1().Services("default").Get(w.t.Context(), "web", metav1.GetOptions{}))
	edit(svc)
	w.put(svc)
}

func (w *world) editEndpoints(edit func(*corev1.Endpoints)) {
	w.t.Helper()
	ep := must(w.user.CoreV1().Endpoints("default").Get(w.t.Context(), "web", metav1.GetOptions{}))
	edit(ep)
	w.put(ep)
}

func (w *world) deleteService() {
	w.t.Helper()
	if err := w.user.CoreV1().Services("default").Delete(w.t.Context(), "web", metav1.DeleteOptions{}); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) deleteEndpoints() {
	w.t.Helper()
	if err := w.user.CoreV1().Endpoints("default").Delete(w.t.Context(), "web", metav1.DeleteOptions{}); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) deleteSlice(name string) {
	w.t.Helper()
	if err := w.user.DiscoveryV1().EndpointSlices("default").Delete(w.t.Context(), name, metav1.DeleteOptions{}); err != nil {
		w.t.Fatal(err)
	}
}

// all is every slice there is.
func (w *world) all() []discovery.EndpointSlice {
	return must(w.user.DiscoveryV1().EndpointSlices("").List(context.WithoutCancel(w.t.Context()), metav1.ListOptions{})).Items
}

// mirrored is our slices of the Service web.
func (w *world) mirrored() []discovery.EndpointSlice {
	return slices.DeleteFunc(w.all(), func(s discovery.EndpointSlice) bool {
		return managedBy(&s) != manager || s.Labels[discovery.LabelServiceName] != "web"
	})
}

func sliceText(s *discovery.EndpointSlice) string {
	var list []string
	for i := range s.Endpoints {
		list = append(list, endpointText(&s.Endpoints[i]))
	}
	slices.Sort(list)
	text := string(s.AddressType) + " " + portsText(s.Ports) + " | " + strings.Join(list, " ")
	if by := managedBy(s); by != manager {
		text = by + " " + text
	}
	return text
}

// want checks every slice there is.
func (w *world) want(lines ...string) {
	w.t.Helper()
	w.settle()
	var got []string
	for _, s := range w.all() {
		got = append(got, sliceText(&s))
	}
	slices.Sort(got)
	if !slices.Equal(got, lines) {
		w.t.Fatalf("slices are\n\t%s\nwant\n\t%s", strings.Join(got, "\n\t"), strings.Join(lines, "\n\t"))
	}
}

// writes checks what the controller has written since the last call.
func (w *world) writes(create, update, del int) {
	w.t.Helper()
	w.settle()
	want := map[string]int{}
	for verb, n := range map[string]int{"create": create, "update": update, "delete": del} {
		if n > 0 {
			want[verb+" endpointslices"] = n
		}
	}
	got := controllertest.Writes(w.writer)
	w.writer.ClearActions()
	if !maps.Equal(got, want) {
		w.t.Fatalf("the controller wrote %v, want %v", got, want)
	}
}

// told gives the events since the last call.
func (w *world) told() (out []string) {
	w.settle()
	for {
		select {
		case e := <-w.events:
			out = append(out, e)
		default:
			return out
		}
	}
}

// fail has requests of the controller fail as long as with gives an error.
func (w *world) fail(verb string, with func(clienttesting.Action) error) {
	w.writer.PrependReactor(verb, "endpointslices", func(a clienttesting.Action) (bool, runtime.Object, error) {
		err := with(a)
		return err != nil, nil, err
	})
}

// foreign is a slice of another manager.
func foreign(name, by string) *discovery.EndpointSlice {
	return &discovery.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, Labels: map[string]string{
			discovery.LabelServiceName: "web", discovery.LabelManagedBy: by,
		}},
		AddressType: discovery.AddressTypeIPv4,
		Ports:       []discovery.EndpointPort{{Name: new("a"), Port: new(int32(80)), Protocol: new(corev1.ProtocolTCP)}},
		Endpoints:   []discovery.Endpoint{{Addresses: []string{"10.9.9.9"}, Conditions: discovery.EndpointConditions{Ready: new(true)}}},
	}
}

func manyAddresses(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, " 10.0.%d.%d", i/250, i%250+1)
	}
	return b.String()
}
