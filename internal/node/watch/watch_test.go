package watch_test

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/endpointd/endpointd/internal/controller/controllertest"
	"github.com/endpointd/endpointd/internal/node/apitest"
	"github.com/endpointd/endpointd/internal/node/watch"
	"github.com/endpointd/endpointd/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

func pod(name, node string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "default", Name: name,
			ManagedFields: []metav1.ManagedFieldsEntry{{Manager: "somebody"}},
		},
		Spec: corev1.PodSpec{NodeName: node},
	}
}

// world is a store of the pods of node n, behind a server in memory.
type world struct {
	t      *testing.T
	api    *controllertest.API
	server *apitest.Server
	store  *watch.Store[*corev1.Pod]
	user   interface { // writes past the server
		Create(context.Context, *corev1.Pod, metav1.CreateOptions) (*corev1.Pod, error)
		Update(context.Context, *corev1.Pod, metav1.UpdateOptions) (*corev1.Pod, error)
		Delete(context.Context, string, metav1.DeleteOptions) error
	}

	mu   sync.Mutex
	told []string
}

func newWorld(t *testing.T, pods ...*corev1.Pod) *world {
	t.Helper()
	return newWorldOf(t, func(*apitest.Server) {}, pods...)
}

// newWorldOf is newWorld with a server that is told how to behave before it is asked.
func newWorldOf(t *testing.T, set func(*apitest.Server), pods ...*corev1.Pod) *world {
	t.Helper()
	w := &world{t: t, api: controllertest.NewAPI()}
	w.user = w.api.Client().CoreV1().Pods("default")
	for _, p := range pods {
		w.create(p)
	}
	w.server = apitest.New(w.api)
	set(w.server)
	w.store = watch.New(watch.Options[*corev1.Pod]{
		Name: "pods", Source: watch.From(w.server.Client().CoreV1().Pods("")), Fields: "spec.nodeName=n",
		Transform: func(p *corev1.Pod) { p.Annotations = map[string]string{"seen": "yes"} },
		Changed: func(was, now *corev1.Pod) {
			w.mu.Lock()
			defer w.mu.Unlock()
			switch {
			case was == nil:
				w.told = append(w.told, "+"+now.Name)
			case now == nil:
				w.told = append(w.told, "-"+was.Name)
			default:
				w.told = append(w.told, "~"+now.Name)
			}
			if now != nil {
				if got, ok := w.store.Get("default", now.Name); !ok || got != now {
					t.Errorf("told of %s before it could be read", now.Name)
				}
			}
		},
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.store.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		w.server.Close()
	})
	return w
}

func (w *world) create(p *corev1.Pod) {
	w.t.Helper()
	if _, err := w.user.Create(w.t.Context(), p, metav1.CreateOptions{}); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) remove(name string) {
	w.t.Helper()
	if err := w.user.Delete(w.t.Context(), name, *metav1.NewDeleteOptions(0)); err != nil {
		w.t.Fatal(err)
	}
}

// wants waits until all that was told since the last call is want, and the store holds names.
func (w *world) wants(within time.Duration, want string, names string) {
	w.t.Helper()
	testkit.Await(w.t, within, func() error {
		w.mu.Lock()
		defer w.mu.Unlock()
		var held []string
		for _, p := range w.store.List() {
			held = append(held, p.Name)
		}
		if got := strings.Join(w.told, " "); got != want {
			return fmt.Errorf("told %q, want %q", got, want)
		}
		if got := strings.Join(held, " "); got != names {
			return fmt.Errorf("holds %q, want %q", got, names)
		}
		return nil
	})
	w.mu.Lock()
	w.told = nil
	w.mu.Unlock()
}

func TestChangesOfSelectedObjectsAreToldInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, pod("a", "n"), pod("elsewhere", "m"))
		<-w.store.Synced()
		w.wants(0, "+a", "a")
		w.create(pod("b", "n"))
		w.create(pod("c", "m"))
		p, _ := w.store.Get("default", "a")
		if p.ManagedFields != nil || p.Annotations["seen"] != "yes" {
			t.Errorf("stored %v, want it without managedFields and transformed", p.ObjectMeta)
		}
		p = p.DeepCopy()
		p.Status.Phase = corev1.PodRunning
		if _, err := w.user.Update(t.Context(), p, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		w.remove("b")
		w.wants(time.Second, "+b ~a -b", "a")
	})
}

func TestAPIAwayForAMinuteLosesNothingAndIsBackWithinASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, pod("a", "n"), pod("b", "n"), pod("c", "n"))
		<-w.store.Synced()
		w.wants(0, "+a +b +c", "a b c")

		w.server.Down()
		w.remove("b")
		w.remove("c")
		w.create(pod("c", "n")) // another one
		w.create(pod("d", "n"))
		<-time.After(time.Minute)
		w.wants(0, "", "a b c")
		if w.store.Lost().IsZero() {
			t.Error("does not say that the API is away")
		}

		w.api.Compact() // it has forgotten what happened meanwhile
		w.server.Up()
		w.wants(time.Second, "-b -c +c +d", "a c d")
		if !w.store.Lost().IsZero() {
			t.Error("does not say that the API is back")
		}
	})
}

func TestAPIThatRemembersIsFollowedFromWhereItWas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, pod("a", "n"))
		<-w.store.Synced()
		w.server.Down()
		w.create(pod("b", "n"))
		w.remove("a")
		<-time.After(10 * time.Second)
		w.server.Up()
		testkit.Await(t, time.Second, func() error {
			if l := w.store.List(); len(l) != 1 || l[0].Name != "b" {
				return fmt.Errorf("holds %d", len(l))
			}
			return nil
		})
	})
}

func TestExpiredWatchIsListedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, pod("a", "n"), pod("b", "n"))
		<-w.store.Synced()
		w.wants(0, "+a +b", "a b")
		for range 5 {
			w.remove("b")
			w.api.Compact()
			w.wants(time.Second, "-b", "a")
			w.create(pod("b", "n"))
			w.api.Compact()
			w.wants(time.Second, "+b", "a b")
		}
	})
}

func TestSlowAPIIsFollowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorldOf(t, func(s *apitest.Server) { s.Delay(5 * time.Second) }, pod("a", "n"))
		<-w.store.Synced()
		w.create(pod("b", "n"))
		w.wants(20*time.Second, "+a +b", "a b")
	})
}

func TestListThatHangsIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorldOf(t, func(s *apitest.Server) {
			s.Hang(func(r *http.Request) bool { return !r.URL.Query().Has("watch") })
		})
		<-time.After(10 * time.Second)
		w.server.Hang(nil)
		w.create(pod("a", "n"))
		if w.store.HasSynced() {
			t.Fatal("synced without a list")
		}
		w.wants(time.Minute, "+a", "a")
	})
}

func TestRunEndsSoonWhileTheAPIIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := apitest.New(controllertest.NewAPI())
		defer server.Close()
		server.Down()
		store := watch.New(watch.Options[*corev1.Pod]{Name: "pods", Source: watch.From(server.Client().CoreV1().Pods(""))})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- store.Run(ctx) }()
		<-time.After(10*time.Second + 300*time.Millisecond)
		cancel()
		start := time.Now()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if took := time.Since(start); took > 0 {
			t.Errorf("Run took %v to end", took)
		}
	})
}

func TestListIsSortedAndACopy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, pod("b", "n"), pod("a", "n"))
		<-w.store.Synced()
		l := w.store.List()
		slices.Reverse(l)
		if got := w.store.List(); got[0].Name != "a" || got[1].Name != "b" {
			t.Errorf("List gave %s, %s", got[0].Name, got[1].Name)
		}
	})
}

// A thin store tells everything and keeps identities; Seen and Hold frame what it tells.
func TestThinStoreKeepsIdentitiesOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := controllertest.NewAPI()
		server := apitest.New(api)
		defer server.Close()
		user := api.Client().CoreV1().Pods("default")
		create := func(name string) *corev1.Pod {
			t.Helper()
			p, err := user.Create(t.Context(), pod(name, "n"), metav1.CreateOptions{})
			if err != nil {
				t.Fatal(err)
			}
			return p
		}
		a := create("a")
		var told []string
		store := watch.New(watch.Options[*corev1.Pod]{
			Name: "pods", Source: watch.From(server.Client().CoreV1().Pods("")), Thin: true, ListFirst: true,
			Changed: func(was, now *corev1.Pod) {
				switch {
				case now == nil:
					told = append(told, "-"+was.Name+"@"+was.ResourceVersion)
				case now.Spec.NodeName != "n":
					t.Errorf("told of %s without its spec", now.Name)
				default:
					told = append(told, "+"+now.Name)
				}
				if was != nil && was.Spec.NodeName != "" {
					t.Errorf("kept the spec of %s", was.Name)
				}
			},
			Seen: func(version string) { told = append(told, "seen "+version) },
			Hold: func() func() {
				told = append(told, "hold")
				return func() { told = append(told, "release") }
			},
		})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- store.Run(ctx) }()
		wants := func(want string) {
			t.Helper()
			synctest.Wait()
			if got := strings.Join(told, " "); got != want {
				t.Errorf("told %q, want %q", got, want)
			}
			told = nil
		}
		<-store.Synced()
		wants("hold +a seen " + a.ResourceVersion + " release")
		if got, ok := store.Get("default", "a"); !ok || got.UID != a.UID || got.ResourceVersion != a.ResourceVersion || got.Spec.NodeName != "" {
			t.Errorf("holds %v, want what identifies it", got)
		}
		b := create("b")
		wants("+b seen " + b.ResourceVersion)
		if err := user.Delete(t.Context(), "a", *metav1.NewDeleteOptions(0)); err != nil {
			t.Fatal(err)
		}
		gone := api.Revision()
		wants("-a@" + gone + " seen " + gone)

		server.Down()
		if err := user.Delete(t.Context(), "b", *metav1.NewDeleteOptions(0)); err != nil {
			t.Fatal(err)
		}
		create("c")
		api.Compact()
		server.Up()
		<-time.After(time.Second)
		wants("hold -b@" + api.Revision() + " +c seen " + api.Revision() + " release")
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
