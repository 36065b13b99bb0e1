package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime/pprof"
	"sync"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/record"
	"k8s.io/kubernetes/pkg/controller/endpoint"
	"k8s.io/kubernetes/pkg/controller/endpointslice"

	"github.com/endpointd/endpointd/internal/controller/endpoints"
	"github.com/endpointd/endpointd/internal/controller/mirror"
)

// childCommand is the hidden first argument that makes this program a contender.
const childCommand = "contender"

// What kube-controller-manager v1.37 starts these two controllers with.
const (
	upstreamWorkers     = 5
	upstreamSliceSize   = 100
	upstreamBatchPeriod = 0
	upstreamQPS         = 20
	upstreamBurst       = 30
)

// unlimited is client-go's value for no rate limit.
const unlimited = -1

// contenderMain runs one side's controllers until SIGTERM and prints a line when its caches are full. With -cpuprofile,
// SIGUSR1 begins the profile and SIGUSR2 writes it.
func contenderMain(args []string) error {
	flags := flag.NewFlagSet(childCommand, flag.ContinueOnError)
	kind := flags.String("kind", "ours", "ours or upstream")
	kubeconfig := flags.String("kubeconfig", "", "file")
	qps := flags.Float64("qps", unlimited, "requests a second of each controller")
	burst := flags.Int("burst", 0, "requests at once")
	profile := flags.String("cpuprofile", "", "file")
	if err := flags.Parse(args); err != nil {
		return err
	}
	config, err := clientConfig(*kubeconfig)
	if err != nil {
		return err
	}
	config.QPS, config.Burst = float32(*qps), *burst
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	var work sync.WaitGroup
	defer work.Wait()
	if *profile != "" {
		work.Go(func() { profileOnSignal(ctx, *profile) })
	}
	informing := rest.CopyConfig(config)
	informing.QPS = unlimited
	client, err := kubernetes.NewForConfig(informing)
	if err != nil {
		return err
	}
	factory := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithTransform(stripManagedFields))
	side := map[string]func(context.Context, *rest.Config, informers.SharedInformerFactory) (func(), error){
		"ours": ours, "upstream": upstream,
	}[*kind]
	if side == nil {
		return fmt.Errorf("contender -kind %q is not ours or upstream", *kind)
	}
	run, err := side(ctx, config, factory)
	if err != nil {
		return err
	}
	factory.StartWithContext(ctx)
	defer factory.Shutdown()
	work.Go(run)
	if result := factory.WaitForCacheSyncWithContext(ctx); result.Err != nil {
		return fmt.Errorf("fill caches: %w", result.Err)
	}
	fmt.Println("caches are full")
	<-ctx.Done()
	return nil
}

// ours is wired as in internal/app, with a client that goes over the network.
func ours(ctx context.Context, config *rest.Config, factory informers.SharedInformerFactory) (func(), error) {
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	events := record.NewBroadcaster(record.WithContext(ctx))
	events.StartRecordingToSink(&corev1client.EventSinkImpl{Interface: client.CoreV1().Events("")})
	recorder := events.NewRecorder(scheme.Scheme, corev1.EventSource{Component: "endpoints-controller"})
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	slices := endpoints.New(endpoints.Options{Client: client, Informers: factory, Recorder: recorder, Logger: log})
	mirrored := mirror.New(mirror.Options{Client: client, Informers: factory, Recorder: recorder, Logger: log})
	return func() {
		var running sync.WaitGroup
		for _, run := range []func(context.Context) error{slices.Run, mirrored.Run} {
			running.Go(func() {
				if err := run(ctx); err != nil && !errors.Is(err, context.Canceled) {
					log.Error("controller ended", "err", err)
				}
			})
		}
		running.Wait()
		events.Shutdown()
	}, nil
}

// upstream is wired as in kube-controller-manager: a client, and so a rate limit, for each controller.
func upstream(ctx context.Context, config *rest.Config, factory informers.SharedInformerFactory) (func(), error) {
	clients := make([]kubernetes.Interface, 2)
	for i := range clients {
		client, err := kubernetes.NewForConfig(rest.CopyConfig(config))
		if err != nil {
			return nil, err
		}
		clients[i] = client
	}
	core := factory.Core().V1()
	objects := endpoint.NewEndpointController(ctx, core.Pods(), core.Services(), core.Endpoints(), clients[0], upstreamBatchPeriod)
	slices := endpointslice.NewController(ctx, core.Pods(), core.Services(), core.Nodes(), factory.Discovery().V1().EndpointSlices(),
		upstreamSliceSize, clients[1], upstreamBatchPeriod)
	return func() {
		var running sync.WaitGroup
		running.Go(func() { objects.Run(ctx, upstreamWorkers) })
		running.Go(func() { slices.Run(ctx, upstreamWorkers) })
		running.Wait()
	}, nil
}

// clientConfig is the same for everybody: protobuf where the API speaks it.
func clientConfig(kubeconfig string) (*rest.Config, error) {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, err
	}
	config.ContentType = "application/vnd.kubernetes.protobuf"
	config.AcceptContentTypes = "application/vnd.kubernetes.protobuf,application/json"
	config.DisableCompression = true // as for any client beside its server; else watches are compressed, at a tenth of the CPU
	config.QPS = unlimited
	config.WarningHandler = rest.NoWarnings{} // Endpoints are deprecated: we know
	return config, nil
}

// stripManagedFields is what both sides do in production: kube-controller-manager's informers trim, and so do ours.
func stripManagedFields(obj any) (any, error) {
	if o, ok := obj.(metav1.ObjectMetaAccessor); ok {
		o.GetObjectMeta().SetManagedFields(nil)
	}
	return obj, nil
}

func profileOnSignal(ctx context.Context, path string) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGUSR1, syscall.SIGUSR2)
	defer signal.Stop(signals)
	var file *os.File
	finish := func() {
		if file == nil {
			return
		}
		pprof.StopCPUProfile()
		if err := file.Close(); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		file = nil
	}
	defer finish()
	for {
		select {
		case <-ctx.Done():
			return
		case s := <-signals:
			finish()
			if s == syscall.SIGUSR2 {
				continue
			}
			var err error
			if file, err = os.Create(fmt.Sprintf("%s.%d", path, time.Now().UnixNano())); err != nil {
				fmt.Fprintln(os.Stderr, err)
				continue
			}
			if err := pprof.StartCPUProfile(file); err != nil {
				fmt.Fprintln(os.Stderr, err)
			}
		}
	}
}
