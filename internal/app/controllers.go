package app

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"

	"github.com/endpointd/endpointd/internal/controller/binder"
	"github.com/endpointd/endpointd/internal/controller/endpoints"
	"github.com/endpointd/endpointd/internal/controller/mirror"
	"github.com/endpointd/endpointd/internal/controller/nodedns"
	"github.com/endpointd/endpointd/internal/controller/nodelife"
	"github.com/endpointd/endpointd/internal/controller/workload"
	"github.com/endpointd/endpointd/internal/sandbox"
)

// Names for ServerOptions.Disable.
const (
	endpointsName = "endpoints"
	mirrorName    = "mirror"
	workloadName  = "workload"
	binderName    = "binder"
	nodesName     = "nodes"
	dnsName       = "dns"
)

// ControllerNames are what --disable-controllers takes.
func ControllerNames() []string {
	return []string{endpointsName, mirrorName, workloadName, binderName, nodesName, dnsName}
}

// runner is a controller. Run returns when ctx ended and its workers have.
type runner interface{ Run(context.Context) error }

// controllers are built anew for each term of leadership; informers outlive the terms, so a standby's are warm.
type controllers struct {
	client    kubernetes.Interface
	informers informers.SharedInformerFactory
	others    []cache.SharedIndexInformer // that the factory can not make; run like its own
	builds    []build
	events    record.EventBroadcaster
	stop      <-chan struct{} // ends the informers
}

type build struct {
	name string
	new  func() (runner, error)
}

// startControllers starts the informers and, when this server leads, the controllers.
func (s *server) startControllers() error {
	config := s.api.LoopbackConfig()
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(s.ctx))
	events := record.NewBroadcaster(record.WithContext(ctx))
	events.StartRecordingToSink(&corev1client.EventSinkImpl{Interface: client.CoreV1().Events("")})
	c := &controllers{client: client, events: events, stop: ctx.Done(),
		informers: informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithTransform(workload.StripManagedFields))}
	if err := s.addWorkload(c); err != nil {
		cancel()
		return err
	}
	s.addEndpoints(c)
	s.addNodes(c)
	s.addDNS(c)
	c.informers.Start(c.stop)
	var informing sync.WaitGroup
	for _, informer := range c.others {
		informing.Go(func() { informer.RunWithContext(ctx) })
	}

	terms, endTerms := context.WithCancel(ctx)
	var running sync.WaitGroup
	running.Go(func() {
		run := c.term
		if s.store.embedded == nil {
			// The folder's lock already makes the server of an embedded etcd the only one.
			run = func(ctx context.Context) error { return lead(ctx, client, s.options.Logger, c.term) }
		}
		if err := run(terms); err != nil {
			s.fail(errFailed{err})
		}
	})
	s.controllers = func() {
		endTerms()
		running.Wait()
		events.Shutdown()
		cancel()
		c.informers.Shutdown()
		informing.Wait()
	}
	return nil
}

func (s *server) disabled(name string) bool { return slices.Contains(s.options.Disable, name) }

func (s *server) addWorkload(c *controllers) error {
	if s.disabled(workloadName) {
		return nil
	}
	w, err := workload.New(workload.Options{
		Config: s.api.LoopbackConfig(), Informers: c.informers,
		CAFile: s.files.CACert, ServiceAccountKeyFile: s.files.ServiceAccountKey, Logger: s.options.Logger,
	})
	if err != nil {
		return err
	}
	c.builds = append(c.builds, build{workloadName, func() (runner, error) { return w, nil }})
	return nil
}

// recorder is for events of one component.
func (c *controllers) recorder(component string) record.EventRecorder {
	return c.events.NewRecorder(scheme.Scheme, corev1.EventSource{Component: component})
}

// addEndpoints adds our own controllers. They are built in each term, and listen only during it.
func (s *server) addEndpoints(c *controllers) {
	if !s.disabled(endpointsName) {
		c.warm(c.informers.Core().V1().Nodes().Informer(), c.informers.Core().V1().Pods().Informer())
		c.builds = append(c.builds, build{endpointsName, func() (runner, error) {
			return endpoints.New(endpoints.Options{
				Client: c.client, Informers: c.informers, Recorder: c.recorder("endpoints-controller"), Logger: s.options.Logger,
			}), nil
		}})
	}
	if !s.disabled(mirrorName) {
		c.builds = append(c.builds, build{mirrorName, func() (runner, error) {
			return mirror.New(mirror.Options{
				Client: c.client, Informers: c.informers, Recorder: c.recorder("endpointslice-mirroring-controller"), Logger: s.options.Logger,
			}), nil
		}})
	}
	if !s.disabled(endpointsName) || !s.disabled(mirrorName) {
		core := c.informers.Core().V1()
		c.warm(core.Services().Informer(), core.Endpoints().Informer(), c.informers.Discovery().V1().EndpointSlices().Informer())
	}
}

// addNodes adds what binds pods to nodes, and what looks after nodes.
func (s *server) addNodes(c *controllers) {
	core := c.informers.Core().V1()
	if !s.disabled(binderName) {
		c.warm(core.Nodes().Informer(), core.Pods().Informer())
		c.builds = append(c.builds, build{binderName, func() (runner, error) {
			return binder.New(binder.Options{
				Client: c.client, Informers: c.informers, Recorder: c.recorder(corev1.DefaultSchedulerName), Logger: s.options.Logger,
			}), nil
		}})
	}
	if !s.disabled(nodesName) {
		leases := nodelife.NewLeases(c.client)
		c.others = append(c.others, leases)
		c.warm(core.Nodes().Informer(), core.Pods().Informer())
		c.builds = append(c.builds, build{nodesName, func() (runner, error) {
			return nodelife.New(nodelife.Options{
				Client: c.client, Informers: c.informers, Leases: leases, Recorder: c.recorder("node-controller"), Logger: s.options.Logger,
				PodCIDRs: s.options.PodCIDRs,
			}), nil
		}})
	}
}

// addDNS adds what has the nodes' DNS servers found.
func (s *server) addDNS(c *controllers) {
	if s.disabled(dnsName) {
		return
	}
	core := c.informers.Core().V1()
	c.warm(core.Nodes().Informer(), core.Services().Informer(), c.informers.Discovery().V1().EndpointSlices().Informer())
	var addrs []netip.Addr
	for _, r := range s.options.ServiceCIDRs {
		addrs = append(addrs, sandbox.DNS(r))
	}
	c.builds = append(c.builds, build{dnsName, func() (runner, error) {
		return nodedns.New(nodedns.Options{Client: c.client, Informers: c.informers, Addrs: addrs, Logger: s.options.Logger}), nil
	}})
}

// warm names informers that are to run from the start: a standby's caches are full when its term begins. (Asking the factory
// for an informer is what makes it start.)
func (*controllers) warm(...cache.SharedIndexInformer) {}

// term builds and runs all controllers until ctx ends, and returns when all have ended.
func (c *controllers) term(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var runners []runner
	for _, b := range c.builds {
		r, err := b.new()
		if err != nil {
			return fmt.Errorf("controller %s: %w", b.name, err)
		}
		runners = append(runners, r)
	}
	c.informers.Start(c.stop) // what building asked for
	errs := make([]error, len(runners))
	var running sync.WaitGroup
	for i, r := range runners {
		running.Go(func() {
			defer cancel() // one ends, all end
			if err := r.Run(ctx); err != nil && ctx.Err() == nil {
				errs[i] = fmt.Errorf("controller %s: %w", c.builds[i].name, err)
			}
		})
	}
	running.Wait()
	return errors.Join(errs...)
}
