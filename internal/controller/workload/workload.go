// Package workload runs the controllers that are not endpointd's subject but that its API needs to be whole: the
// upstream ones, as libraries.
//
// In: a privileged client configuration and the shared informers. Out: writes through the API. What each controller
// does is upstream's documentation; table in table.go lists them.
//
// Invariants: New asks for every shared informer, so a standby's caches are warm; Run may be called again after it
// returned, with no handler or worker of the earlier run left.
//
// It refuses kinds that the API does not serve: StatefulSets work without volumeClaimTemplates.
//
// To test it: go test ./internal/controller/workload starts an API server on an embedded etcd. The first build takes
// minutes, because this package links k8s.io/kubernetes.
package workload

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/util/keyutil"
	"k8s.io/kubernetes/pkg/serviceaccount"
)

// Options are all required.
type Options struct {
	// Config has all rights and, for garbage collection of many objects, no rate limit.
	Config *rest.Config
	// Informers are shared with other controllers. The owner starts them after New and strips managedFields.
	Informers informers.SharedInformerFactory
	// CAFile verifies the API server; it is published in each namespace. ServiceAccountKeyFile signs the tokens of
	// token Secrets.
	CAFile, ServiceAccountKeyFile string
	Logger                        *slog.Logger
}

// Controllers are ready to Run.
type Controllers struct {
	client    kubernetes.Interface
	discovery discovery.DiscoveryInterface
	metadata  metadata.Interface
	mapper    *restmapper.DeferredDiscoveryRESTMapper
	informers informers.SharedInformerFactory
	ca        []byte
	signer    serviceaccount.TokenGenerator
	log       *slog.Logger
}

// New reads the files, and requests the informers.
func New(o Options) (*Controllers, error) {
	ca, err := os.ReadFile(o.CAFile)
	if err != nil {
		return nil, err
	}
	key, err := keyutil.PrivateKeyFromFile(o.ServiceAccountKeyFile)
	if err != nil {
		return nil, fmt.Errorf("ServiceAccount key %s: %w", o.ServiceAccountKeyFile, err)
	}
	signer, err := serviceaccount.JWTTokenGenerator(serviceaccount.LegacyIssuer, key)
	if err != nil {
		return nil, fmt.Errorf("ServiceAccount key %s: %w", o.ServiceAccountKeyFile, err)
	}
	httpClient, err := rest.HTTPClientFor(o.Config)
	if err != nil {
		return nil, err
	}
	client, err := kubernetes.NewForConfigAndClient(o.Config, httpClient)
	if err != nil {
		return nil, err
	}
	metadataClient, err := metadata.NewForConfigAndClient(o.Config, httpClient)
	if err != nil {
		return nil, err
	}
	// The garbage collector compares fresh discovery with what the mapper knows, so the mapper caches on its own.
	mapperDiscovery, err := discovery.NewDiscoveryClientForConfigAndClient(o.Config, httpClient)
	if err != nil {
		return nil, err
	}
	c := &Controllers{
		client:    client,
		discovery: client.Discovery(),
		metadata:  metadataClient,
		mapper:    restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(mapperDiscovery)),
		informers: o.Informers,
		ca:        ca,
		signer:    signer,
		log:       o.Logger,
	}
	// A term that is never run asks for all shared informers.
	c.newTerm()
	return c, nil
}

// Run builds the controllers, runs them until ctx ends, and returns when all have ended. The shared informers must be
// running, and keep running.
func (c *Controllers) Run(ctx context.Context) error {
	t := c.newTerm()
	defer t.end()
	var running sync.WaitGroup
	defer running.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	t.start(ctx)
	var errs []error
	for _, controller := range c.table() {
		run, err := controller.build(ctx, t)
		if err != nil {
			errs = append(errs, fmt.Errorf("controller %s: %w", controller.name, err))
			continue
		}
		running.Go(func() { run(ctx) })
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	close(t.built)
	c.log.Debug("controllers started", "component", "workload", "count", len(c.table()))
	<-ctx.Done()
	return nil
}

// StripManagedFields is a transform for informers: no controller reads managedFields, and they are often half of an
// object.
func StripManagedFields(obj any) (any, error) {
	if o, ok := obj.(metav1.ObjectMetaAccessor); ok {
		o.GetObjectMeta().SetManagedFields(nil)
	}
	return obj, nil
}

const (
	// discoveryPeriod is how often the garbage collector looks for new kinds (upstream: 30 s). One aggregated discovery
	// request costs about a millisecond.
	discoveryPeriod = 10 * time.Second
	// garbageSyncTimeout is upstream's: after it, the collector goes on without the kinds that can't be listed.
	garbageSyncTimeout = 30 * time.Second
	// namespaceResync is upstream's. A deletion that hangs is retried by its own queue long before.
	namespaceResync = 5 * time.Minute
)
