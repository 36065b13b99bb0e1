package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	utilnet "k8s.io/apimachinery/pkg/util/net"

	"github.com/endpointd/endpointd/internal/apiserver"
	"github.com/endpointd/endpointd/internal/apiserver/etcd"
	_ "github.com/endpointd/endpointd/internal/apiserver/etcd/quiet" // before the API server's packages are initialized
	"github.com/endpointd/endpointd/internal/apiserver/pki"
)

// ServerOptions are those of `endpointd server`.
type ServerOptions struct {
	DataDir string
	// Listen is the TCP address of the API, host:port.
	Listen string
	// Inherited are more listeners, which outlive the server: whoever started it made them. The first is what
	// admin.kubeconfig names.
	Inherited []net.Listener
	// Etcd without Servers means the embedded one.
	Etcd         etcd.External
	ServiceCIDRs []netip.Prefix
	PodCIDRs     []netip.Prefix // what nodes get their ranges from; none: they bring their own
	NodePorts    utilnet.PortRange
	// Disable names controllers that somebody else runs; see ControllerNames.
	Disable []string
	Logger  *slog.Logger
	// Ready is called once, when the API answers.
	Ready func(url, kubeconfig string)
}

// renewPeriod is how often a running server looks whether its certificates end soon; they are re-issued 30 days before.
const renewPeriod = 24 * time.Hour

// RunServer runs until ctx ends, and then stops everything in order. When etcd can not go on it returns at once, because
// nothing that is left to do could be stored: the process must end then.
func RunServer(ctx context.Context, o ServerOptions) (err error) {
	apiserver.RouteKlog(o.Logger)
	start := newStopwatch()
	dir, err := openFolder(o.DataDir)
	if err != nil {
		return err
	}
	defer dir.Close()
	own, err := listen(o.Listen)
	if err != nil {
		return err
	}
	listener := joinListeners(own, o.Inherited)
	defer func() {
		// After a failure of the storage the API server still listens, and panics when somebody else closes its listener.
		if !isStorage(err) {
			_ = listener.Close() // mostly the API server has closed it
		}
	}()
	client := boundAddress(own) // what clients on this machine use
	addresses := []netip.Addr{client.Addr()}
	for _, l := range slices.Backward(o.Inherited) {
		client = boundAddress(l)
		addresses = append(addresses, client.Addr())
	}
	names, err := certNames(addresses, o.ServiceCIDRs)
	if err != nil {
		return err
	}
	start.lap("folder")

	store, files, err := openStorage(ctx, o, dir, names)
	if err != nil {
		return err
	}
	defer store.close()
	kubeconfig := func(f *pki.Files) error { return pki.WriteKubeconfig(dir.kubeconfig(), clientURL(client), f) }
	if err := kubeconfig(files); err != nil {
		return err
	}
	start.lap("storage")

	s := &server{options: o, store: store, files: files}
	defer s.work.Wait()
	s.ctx, s.fail = context.WithCancelCause(ctx)
	defer s.fail(nil)
	s.work.Go(s.watchStorage)
	if err := s.startAPI(listener); err != nil {
		return s.stopped(err)
	}
	start.lap("api")
	if err := s.startControllers(); err != nil {
		return s.stopped(err)
	}
	start.lap("controllers")
	s.work.Go(func() { s.renew(dir, names, kubeconfig) })
	s.work.Go(func() { trimMemory(s.ctx) })
	o.Logger.Info("ready", start.args()...)
	o.Ready(clientURL(client), dir.kubeconfig())

	<-s.ctx.Done()
	s.stopping.Store(true)
	o.Logger.Info("stopping")
	return s.stopped(nil)
}

// server is what runs. Its parts end in the order controllers, API, store.
type server struct {
	options ServerOptions
	store   *storage
	files   *pki.Files

	ctx  context.Context         // ends when the caller wants it, or with the first failure as its cause
	fail context.CancelCauseFunc // ends ctx
	work sync.WaitGroup          // goroutines that end with ctx

	stopping atomic.Bool // set before the first part is stopped

	api         *apiserver.Server
	stopAPI     func() error // nil until the API was started
	controllers func()       // stops them; nil until they were started
}

// errFailed ends s.ctx with a reason of ours. The caller's end has a cause, too: the signal.
type errFailed struct{ error }

func (e errFailed) Unwrap() error { return e.error }

// errStorage is a failure after which waiting for anything is in vain.
type errStorage struct{ error }

func (e errStorage) Unwrap() error { return e.error }

func (s *server) watchStorage() {
	select {
	case err := <-s.store.failed():
		s.fail(errFailed{errStorage{err}})
	case <-s.ctx.Done():
	}
}

// startAPI returns when the API answers.
func (s *server) startAPI(listener net.Listener) error {
	o := s.options
	type result struct {
		api *apiserver.Server
		err error
	}
	built := make(chan result, 1)
	go func() {
		api, err := apiserver.New(s.ctx, apiserver.Options{
			Listener: listener,
			Etcd:     apiserver.EtcdOptions{Servers: s.store.Servers, CAFile: s.store.CAFile, CertFile: s.store.CertFile, KeyFile: s.store.KeyFile},
			Certs: apiserver.Certs{
				CAFile: s.files.CACert, ServerCertFile: s.files.ServerCert, ServerKeyFile: s.files.ServerKey, ServiceAccountKeyFile: s.files.ServiceAccountKey,
				NodeClientCertFile: s.files.NodeClientCert, NodeClientKeyFile: s.files.NodeClientKey,
			},
			ServiceCIDRs: o.ServiceCIDRs, NodePorts: o.NodePorts,
			Logger: slog.New(hush{o.Logger.Handler(), &s.stopping}),
		})
		built <- result{api, err}
	}()
	select {
	case r := <-built:
		if r.err != nil {
			return r.err
		}
		s.api = r.api
	case <-s.ctx.Done():
		// Building is quick, or stuck on a store that died.
		if isStorage(context.Cause(s.ctx)) {
			return context.Cause(s.ctx)
		}
		r := <-built
		if r.err != nil {
			return r.err
		}
		s.api = r.api
	}

	// Its own context: it outlives s.ctx by the time that the controllers take to stop.
	ctx, cancel := context.WithCancel(context.WithoutCancel(s.ctx))
	done := make(chan struct{})
	var ended error
	go func() {
		defer close(done)
		ended = s.api.Run(ctx)
		if ctx.Err() == nil {
			s.fail(errFailed{fmt.Errorf("the API server ended by itself: %w", ended)})
		}
	}()
	s.stopAPI = func() error {
		cancel()
		<-done
		return ended
	}
	return s.awaitAPI(done)
}

// startGrace is for the API server to get ready when it was told to stop before.
const startGrace = 10 * time.Second

// awaitAPI returns when the API answers. It also does so after s.ctx ended, for a short time: upstream's start hooks exit the
// process when they are interrupted.
func (s *server) awaitAPI(done <-chan struct{}) error {
	select {
	case <-s.api.Ready():
		return nil
	case <-s.ctx.Done():
	}
	if isStorage(context.Cause(s.ctx)) {
		return context.Cause(s.ctx)
	}
	grace := time.NewTimer(startGrace)
	defer grace.Stop()
	select {
	case <-s.api.Ready():
	case <-done:
	case <-grace.C:
	}
	return context.Cause(s.ctx)
}

// renew keeps the certificates of a long-running server valid; the API server reads them again by itself.
func (s *server) renew(dir *folder, names pki.Options, kubeconfig func(*pki.Files) error) {
	tick := time.NewTicker(renewPeriod)
	defer tick.Stop()
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-tick.C:
		}
		f, err := pki.Ensure(dir.pki(), names)
		if err == nil {
			err = kubeconfig(f)
		}
		if err != nil {
			s.options.Logger.Error("renew certificates", "err", err)
		}
	}
}

// stopped stops what was started, in reverse, and returns why: err, or what ended s.ctx, or nil if it was the caller.
func (s *server) stopped(err error) error {
	var failed errFailed
	if errors.As(context.Cause(s.ctx), &failed) && !errors.As(err, new(errStorage)) {
		err = failed.error
	} else if s.ctx.Err() != nil {
		err = nil // whatever it is, it comes from being told to stop
	}
	s.stopping.Store(true)
	s.fail(nil)
	if isStorage(err) {
		return err
	}
	if s.controllers != nil {
		s.controllers()
		s.options.Logger.Debug("stopped", "part", "controllers")
	}
	if s.stopAPI != nil {
		if stopErr := s.stopAPI(); err == nil {
			err = stopErr
		}
		s.options.Logger.Debug("stopped", "part", "api")
	}
	return err
}
