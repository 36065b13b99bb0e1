package loop

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"

	"github.com/endpointd/endpointd/internal/controller/controllertest"
	"github.com/endpointd/endpointd/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

func key(name string) types.NamespacedName {
	return types.NamespacedName{Namespace: "default", Name: name}
}

func newLoop(workers int) *Loop {
	return New(Options{Workers: workers, FirstRetry: time.Second, LastRetry: 5 * time.Second, Logger: slog.New(slog.DiscardHandler)})
}

// pass lets fake time pass.
func pass(d time.Duration) { <-time.After(d) }

// start runs the loop; the result ends it and waits.
func start(t *testing.T, l *Loop, reconcile func(context.Context, types.NamespacedName) error) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx, reconcile) }()
	return func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run: %v", err)
		}
	}
}

func TestWhatComesDuringAReconcileIsTakenTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLoop(4)
		calls, go_ := 0, make(chan struct{})
		stop := start(t, l, func(context.Context, types.NamespacedName) error {
			calls++ // no lock: two workers with one key would be a data race
			<-go_
			return nil
		})
		l.Add(key("a"))
		synctest.Wait()
		for range 50 {
			l.Add(key("a"))
		}
		close(go_)
		synctest.Wait()
		if calls != 2 {
			t.Errorf("%d reconciles, want 2", calls)
		}
		stop()
	})
}

func TestErrorsComeBackLaterAndLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLoop(1)
		begin := time.Now()
		var at []time.Duration
		stop := start(t, l, func(context.Context, types.NamespacedName) error {
			if at = append(at, time.Since(begin)); len(at) < 6 {
				return errors.New("no")
			}
			return nil
		})
		l.Add(key("a"))
		pass(time.Hour)
		want := []time.Duration{0, 1 * time.Second, 3 * time.Second, 7 * time.Second, 12 * time.Second, 17 * time.Second}
		if !slices.Equal(at, want) {
			t.Errorf("tried at %v, want %v", at, want)
		}
		begin, at = time.Now(), at[:4] // success has cleared the delay
		l.Add(key("a"))
		pass(time.Hour)
		if got := at[4:]; len(got) != 2 || got[1] != time.Second {
			t.Errorf("after a success tried at %v", got)
		}
		stop()
	})
}

func TestRunEndsWithItsWorkers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLoop(1)
		ended := false
		stop := start(t, l, func(ctx context.Context, _ types.NamespacedName) error {
			<-ctx.Done()
			pass(time.Minute) // fake time: a request that takes its time to end
			ended = true
			return ctx.Err()
		})
		for i := range 100 {
			l.Add(key(fmt.Sprint(i)))
		}
		synctest.Wait()
		stop()
		if !ended {
			t.Error("Run returned before its worker")
		}
	})
}

func TestListen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := controllertest.NewAPI()
		client := api.Client()
		factory := informers.NewSharedInformerFactory(client, 0)
		l := newLoop(1)
		var mu sync.Mutex // guards events
		var events []string
		l.Listen(factory.Core().V1().ConfigMaps().Informer(), func(old, now any) {
			mu.Lock()
			defer mu.Unlock()
			events = append(events, fmt.Sprint(old != nil, now != nil))
		})
		ctx, cancel := context.WithCancel(t.Context())
		factory.Start(ctx.Done())
		stop := start(t, l, func(context.Context, types.NamespacedName) error { return nil })
		pass(time.Minute) // fake time: informers have their own pace
		maps := client.CoreV1().ConfigMaps("default")
		m, err := maps.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "m", Namespace: "default"}}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		m.Data = map[string]string{"a": "b"}
		if _, err := maps.Update(ctx, m, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		if err := maps.Delete(ctx, "m", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		pass(time.Minute)
		stop()
		if _, err := maps.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "late", Namespace: "default"}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		pass(time.Minute)
		mu.Lock()
		defer mu.Unlock()
		if want := []string{"false true", "true true", "true false"}; !slices.Equal(events, want) {
			t.Errorf("events %v, want %v: none after the end", events, want)
		}
		cancel()
		factory.Shutdown()
	})
}
