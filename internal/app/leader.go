package app

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

// A standby sees the last renewal up to 2.2 × retryPeriod late (client-go jitters it), waits leaseDuration, and tries again
// within 2.2 × retryPeriod: a killed leader is replaced in at most 4.4 s. A leader that can not renew stops its
// controllers after renewDeadline, a second before anybody else may begin.
const (
	leaseDuration = 3 * time.Second
	renewDeadline = 2 * time.Second
	retryPeriod   = 300 * time.Millisecond

	leaseNamespace = metav1.NamespaceSystem
	leaseName      = "endpointd-controllers"
)

// lead runs term whenever this server holds the Lease, until ctx ends. A lost Lease ends the term and begins the
// wait for the next one: the API of this server goes on, and an etcd that was away for some seconds costs no restart.
// The Lease is given back only after the controllers have ended, so two never run at once.
func lead(ctx context.Context, client kubernetes.Interface, log *slog.Logger, term func(context.Context) error) error {
	host, err := os.Hostname()
	if err != nil {
		return fmt.Errorf("host name, for the lease %s/%s: %w", leaseNamespace, leaseName, err)
	}
	e := election{client: client, log: log, identity: fmt.Sprintf("%s_%d_%s", host, os.Getpid(), uuid.NewString()[:8]), term: term}
	for ctx.Err() == nil {
		if err := e.once(ctx); err != nil {
			return err
		}
	}
	return nil
}

type election struct {
	client   kubernetes.Interface
	log      *slog.Logger
	identity string
	term     func(context.Context) error
}

// once waits for the Lease and keeps it for one term.
func (e election) once(ctx context.Context) error {
	// The Lease outlives ctx until the controllers have ended.
	holding, release := context.WithCancel(context.WithoutCancel(ctx))
	defer release()
	ended := make(chan error, 1)
	lock := &noticingLock{Interface: &resourcelock.LeaseLock{
		LeaseMeta:  metav1.ObjectMeta{Namespace: leaseNamespace, Name: leaseName},
		Client:     e.client.CoordinationV1(),
		LockConfig: resourcelock.ResourceLockConfig{Identity: e.identity},
	}}
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock:          lock,
		LeaseDuration: leaseDuration, RenewDeadline: renewDeadline, RetryPeriod: retryPeriod,
		ReleaseOnCancel: true,
		Name:            leaseName,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(leading context.Context) {
				e.log.Info("leading: controllers start", "lease", leaseNamespace+"/"+leaseName)
				ended <- e.lead(ctx, leading)
				release()
			},
			OnStoppedLeading: func() {},
			OnNewLeader: func(id string) {
				if id != e.identity {
					e.log.Info("standby: controllers run elsewhere", "leader", id)
				}
			},
		},
	})
	if err != nil {
		return err
	}
	// Without a term there is nothing to wait for.
	defer context.AfterFunc(ctx, func() {
		if !lock.held.Load() {
			release()
		}
	})()
	elector.Run(holding)
	if !lock.held.Load() {
		return nil
	}
	return <-ended
}

// noticingLock knows at once that it was taken. The elector tells only by a callback in a new goroutine, which may not have
// begun when Run returns.
type noticingLock struct {
	resourcelock.Interface
	held atomic.Bool // was held at any time
}

func (l *noticingLock) Create(ctx context.Context, r resourcelock.LeaderElectionRecord) error {
	return l.notice(r, l.Interface.Create(ctx, r))
}

func (l *noticingLock) Update(ctx context.Context, r resourcelock.LeaderElectionRecord) error {
	return l.notice(r, l.Interface.Update(ctx, r))
}

func (l *noticingLock) notice(r resourcelock.LeaderElectionRecord, err error) error {
	if err == nil && r.HolderIdentity == l.Identity() {
		l.held.Store(true)
	}
	return err
}

// lead runs a term that ends with the Lease or with ctx.
func (e election) lead(ctx, leading context.Context) error {
	running, cancel := context.WithCancel(leading)
	defer cancel()
	defer context.AfterFunc(ctx, cancel)()
	err := e.term(running)
	if ctx.Err() == nil && leading.Err() != nil {
		e.log.Warn("lost the lease: controllers stopped, waiting to lead again", "lease", leaseNamespace+"/"+leaseName)
	}
	return err
}
