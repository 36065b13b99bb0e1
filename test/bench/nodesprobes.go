package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/endpointd/endpointd/internal/prober"
)

// targetCommand is the hidden first argument that makes this program what is probed, so that its work is not counted as the prober's.
const targetCommand = "target"

// targetMain serves HTTP until SIGTERM; its first line is where.
func targetMain() error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	if err := os.WriteFile(os.Args[2], []byte(listener.Addr().String()), 0o600); err != nil {
		return err
	}
	fmt.Println("ready")
	server := &http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}), ReadHeaderTimeout: time.Second}
	context.AfterFunc(ctx, func() { _ = server.Close() })
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// probes measures what probing costs this process, which does nothing else meanwhile: with our HTTP probe and with one made as the
// kubelet makes it, by the same prober.
func (b *bench) probes(ctx context.Context) (err error) {
	file := filepath.Join(b.dir, "target")
	target, err := start("target", file+".log", nil, b.self, targetCommand, file)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, target.stop()) }()
	if _, err := target.ready(ctx, readyWait); err != nil {
		return err
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	address, err := netip.ParseAddrPort(strings.TrimSpace(string(text)))
	if err != nil {
		return err
	}
	ours, err := prober.HTTP(prober.HTTPOptions{Host: address.Addr().String(), Port: address.Port(), Path: "/"})
	if err != nil {
		return err
	}
	row := Row{Name: fmt.Sprintf("CPU of %d HTTP probes a second", b.probed), Unit: "cores", Values: map[string]Value{}}
	runs := map[string][]float64{}
	made := 0
	for range b.rounds {
		for name, probe := range map[string]prober.Probe{oursName: ours, peerName: stockProbe(address)} {
			cores, n, err := b.probing(ctx, probe)
			if err != nil {
				return err
			}
			made += n
			runs[name] = append(runs[name], cores)
		}
	}
	for name, cores := range runs {
		row.Values[name] = median(cores, made/len(runs))
	}
	row.compare()
	row.atMost(0.3 * float64(b.probed) / 1000)
	b.say("probes: %s cores, as the kubelet does it %s", number(row.Values[oursName].Value), number(row.Values[peerName].Value))
	b.report.Sections = append(b.report.Sections, Section{
		Title:   "probing (upstream: the kubelet's way to make a probe, a new net/http Transport's connection each time, by our prober)",
		Columns: []string{oursName, peerName}, Rows: []Row{row},
	})
	return nil
}

// stockProbe is net/http with a connection of its own for each request.
func stockProbe(address netip.AddrPort) prober.Probe {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DisableCompression: true}}
	return func(ctx context.Context) error {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address.String()+"/", nil)
		if err != nil {
			return err
		}
		response, err := client.Do(request)
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, response.Body)
		return errors.Join(err, response.Body.Close())
	}
}

// probing returns how many cores it took, and how many probes were made in the time.
func (b *bench) probing(ctx context.Context, probe prober.Probe) (cores float64, made int, err error) {
	var count, failed atomic.Int64
	p := prober.New()
	for i := range b.probed {
		err := p.Add(prober.Key{UID: "uid", Container: strconv.Itoa(i), Kind: prober.Readiness}, prober.Spec{
			Probe:   func(ctx context.Context) error { count.Add(1); return probe(ctx) },
			Started: time.Now().Add(-time.Hour), Period: time.Second, Timeout: time.Second, SuccessThreshold: 1, FailureThreshold: 3,
			OnFailure: func(string, int) { failed.Add(1) },
		})
		if err != nil {
			return 0, 0, err
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	defer func() { cancel(); err = errors.Join(err, <-done) }()
	if err := pause(ctx, time.Second); err != nil { // the first period is the one in which they spread
		return 0, 0, err
	}
	before, began := cpuOf(os.Getpid()), time.Now()
	count.Store(0)
	if err := pause(ctx, min(b.settle, 5*time.Second)); err != nil {
		return 0, 0, err
	}
	used, took, probes := cpuOf(os.Getpid())-before, time.Since(began), count.Load()
	if n := failed.Load(); n > 0 || float64(probes) < 0.9*float64(b.probed)*took.Seconds() {
		return 0, 0, fmt.Errorf("%d probes in %v, %d of them failed: want %d a second", probes, took, n, b.probed)
	}
	return used.Seconds() / took.Seconds(), int(probes), nil
}
