package app

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
)

// A lost lease ends the term in time and is not the end: the server leads again. In the end the lease is given back,
// after the controllers have ended.
func TestLostLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := fake.NewClientset()
		var down atomic.Bool
		client.PrependReactor("*", "leases", func(clienttesting.Action) (bool, runtime.Object, error) {
			if down.Load() {
				return true, nil, errors.New("etcd is away")
			}
			return false, nil, nil
		})
		holder := func() string {
			lease, err := client.CoordinationV1().Leases(leaseNamespace).Get(context.Background(), leaseName, metav1.GetOptions{})
			check(t, err)
			return *lease.Spec.HolderIdentity
		}
		began, ended := make(chan struct{}), make(chan struct{})
		const cleanup = 700 * time.Millisecond // the controllers take their time
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() {
			done <- lead(ctx, client, slog.New(slog.DiscardHandler), func(ctx context.Context) error {
				began <- struct{}{}
				<-ctx.Done()
				<-time.After(cleanup)
				if !down.Load() && holder() == "" {
					t.Error("the lease was given back before the controllers had ended")
				}
				ended <- struct{}{}
				return nil
			})
		}()

		<-began
		down.Store(true)
		lost := time.Now()
		<-ended
		if took := time.Since(lost) - cleanup; took >= leaseDuration {
			t.Errorf("the term was ended %v after the last renewal, when another server may lead after %v", took, leaseDuration)
		}
		down.Store(false)
		<-began
		cancel()
		<-ended
		if err := <-done; err != nil {
			t.Error(err)
		}
		if got := holder(); got != "" {
			t.Errorf("the lease still belongs to %s", got)
		}
	})
}

// What a controller can not go on with ends the server.
func TestFailedTerm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broken := errors.New("broken")
		err := lead(t.Context(), fake.NewClientset(), slog.New(slog.DiscardHandler), func(context.Context) error { return broken })
		if !errors.Is(err, broken) {
			t.Errorf("got %v", err)
		}
	})
}

// A standby that is told to stop stops at once and takes nothing.
func TestStoppedStandby(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := fake.NewClientset()
		var terms atomic.Int32
		term := func(ctx context.Context) error { terms.Add(1); <-ctx.Done(); return nil }
		first, stopFirst := context.WithCancel(context.Background())
		second, stopSecond := context.WithCancel(context.Background())
		done := make(chan error, 2)
		go func() { done <- lead(first, client, slog.New(slog.DiscardHandler), term) }()
		synctest.Wait()
		go func() { done <- lead(second, client, slog.New(slog.DiscardHandler), term) }()
		synctest.Wait()
		<-time.After(10 * leaseDuration)
		begin := time.Now()
		stopSecond()
		if err := <-done; err != nil || time.Since(begin) > 0 {
			t.Errorf("standby: %v after %v", err, time.Since(begin))
		}
		if n := terms.Load(); n != 1 {
			t.Errorf("%d terms, want 1", n)
		}
		stopFirst()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
