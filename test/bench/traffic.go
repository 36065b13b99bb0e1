package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// trafficOptions are the flags of the traffic parts.
type trafficOptions struct {
	kubeProxy   string
	sizes       []int // numbers of Services
	shapes      []shape
	traffic     time.Duration // one measurement of a rate
	connections int
	clientAt    string        // "pod" or "node"
	slowFlips   int           // changes 2 s apart, of each contender in a round
	fastFlips   int           // and 100 ms apart
	colds       int           // cold starts of each contender
	coldLimit   time.Duration // longest of them
	readies     int           // pods made in the part ready, at each size
}

// clients may be in a pod of the node, or be processes of the node itself.
const (
	clientInPod  = "pod"
	clientOnNode = "node"
)

func trafficParts() []string {
	return []string{partTraffic, partProgramming, partColdStart, partFootprint, partReady}
}

// The names of -run.
const (
	partTraffic     = "traffic"
	partProgramming = "programming"
	partColdStart   = "coldstart"
	partFootprint   = "footprint"
	partReady       = "ready"
)

// trafficFlags registers them; it returns the shapes as they will be given.
func (o *options) trafficFlags(flags *flag.FlagSet) *string {
	flags.StringVar(&o.kubeProxy, "kube-proxy", ".cache/bin/kube-proxy", "a stock kube-proxy, the `program` that the traffic parts compare with")
	flags.DurationVar(&o.traffic, "traffic", time.Second, "how long a rate is measured, in the part traffic; twelve times as long where TIME_WAIT is left")
	flags.IntVar(&o.connections, "connections", 32, "connections at once there")
	flags.StringVar(&o.clientAt, "client", clientInPod, "whether the client there is in a pod, or a process of the `node`")
	flags.IntVar(&o.slowFlips, "slow-flips", 5, "changes 2 s apart of each proxy in a round, in the part programming")
	flags.IntVar(&o.fastFlips, "fast-flips", 50, "and 100 ms apart")
	flags.IntVar(&o.colds, "colds", 1, "cold starts of each proxy and shape")
	flags.DurationVar(&o.coldLimit, "cold-limit", 3*time.Minute, "how long one may take")
	flags.IntVar(&o.readies, "readies", 20, "pods made at each size, in the part ready")
	return flags.String("shapes", "1000x2,500x50", "Services `x` endpoints each, in the part coldstart")
}

// checkTraffic takes the numbers of Services for the controllers' parts and for ours.
func (o *options) checkTraffic(services, sizes, shapes string, controllers bool) error {
	most := 5000 // with ten pods each
	if !controllers {
		most = 30_000
	}
	var err error
	if o.services, err = growing(cmp.Or(services, "100,1000"), most); err != nil {
		return fmt.Errorf("-services %s: %w", services, err)
	}
	if o.sizes, err = growing(cmp.Or(sizes, "1,1000"), 30_000); err != nil {
		return fmt.Errorf("-services %s: %w", sizes, err)
	}
	for text := range strings.SplitSeq(shapes, ",") {
		s, err := parseShape(text)
		if err != nil {
			return fmt.Errorf("-shapes %s: %w", shapes, err)
		}
		o.shapes = append(o.shapes, s)
	}
	switch {
	case o.clientAt != clientInPod && o.clientAt != clientOnNode:
		return fmt.Errorf("-client %s: want %s or %s", o.clientAt, clientInPod, clientOnNode)
	case o.traffic < 100*time.Millisecond || o.traffic > time.Minute:
		return errors.New("-traffic wants 100ms to 1m")
	case o.connections < 1 || o.connections > 1000:
		return errors.New("-connections wants 1 to 1000")
	case o.slowFlips < 1 || o.fastFlips < 1 || o.colds < 1 || o.readies < 1 || o.readies > 500:
		return errors.New("-slow-flips, -fast-flips and -colds want at least 1, -readies 1 to 500")
	case o.coldLimit < time.Second || o.coldLimit > 20*time.Minute:
		return errors.New("-cold-limit wants 1s to 20m")
	}
	return nil
}

// growing reads numbers of 1 to most, each larger than the one before.
func growing(texts string, most int) ([]int, error) {
	var numbers []int
	for text := range strings.SplitSeq(texts, ",") {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > most || len(numbers) > 0 && n <= numbers[len(numbers)-1] {
			return nil, fmt.Errorf("want numbers of 1 to %d that grow", most)
		}
		numbers = append(numbers, n)
	}
	return numbers, nil
}

// parseShape reads such as 5000x50.
func parseShape(text string) (s shape, err error) {
	services, endpoints, ok := strings.Cut(text, "x")
	if s.services, err = strconv.Atoi(services); err == nil {
		s.endpoints, err = strconv.Atoi(endpoints)
	}
	if !ok || err != nil || s.services < 1 || s.services > 30_000 || s.endpoints < 1 || s.endpoints > 100 || s.services*s.endpoints > 500_000 {
		return s, fmt.Errorf("%q is not SERVICESxENDPOINTS, like 5000x50, of at most 30000, 100 and half a million together", text)
	}
	return s, nil
}

// trafficAll runs the traffic parts, growing one load through all the sizes.
func (b *bench) trafficAll(ctx context.Context) error {
	if !slices.ContainsFunc(trafficParts(), b.wants) {
		return nil
	}
	if why := b.cannotTraffic(); why != "" {
		b.note("the traffic parts are left out: %s", why)
		return nil
	}
	b.notes()
	if err := moreFiles(); err != nil { // children have the same limit: HAProxy needs a descriptor for each Service
		return err
	}
	if slices.ContainsFunc(trafficParts()[:4], b.wants) {
		if err := b.onLab(ctx, fillerEndpoints, b.grown); err != nil {
			return err
		}
		for _, s := range b.shapes {
			if s.endpoints == fillerEndpoints || !b.wants(partColdStart) {
				continue
			}
			err := b.onLab(ctx, s.endpoints, func(ctx context.Context) error {
				if err := b.filled(ctx, s.services); err != nil {
					return err
				}
				return b.coldStart(ctx, s)
			})
			if err != nil {
				return err
			}
		}
	}
	if b.wants(partReady) {
		return b.readyPart(ctx)
	}
	return nil
}

// cannotTraffic says why the traffic parts cannot be on this machine, "" if they can.
func (b *bench) cannotTraffic() string {
	if os.Geteuid() != 0 {
		return "network namespaces with eBPF need root"
	}
	if _, err := cgroupOf("self"); err != nil {
		return err.Error()
	}
	return ""
}

// notes says what is missing, and what bounds the figures.
func (b *bench) notes() {
	if b.kubeProxy != "" {
		if _, err := os.Stat(b.kubeProxy); err != nil {
			b.note("without kube-proxy: %v; name one with -kube-proxy", err)
			b.kubeProxy = ""
		} else if out, err := exec.Command(b.kubeProxy, "--version").Output(); err != nil || !strings.Contains(string(out), peerVersion) && !strings.Contains(string(out), "v0.0.0") { //nolint:gosec // the program that is measured
			b.note("%s says that it is %q (%v), not %s", b.kubeProxy, out, err, peerVersion)
		}
		if _, err := exec.LookPath("nft"); err != nil && b.kubeProxy != "" {
			b.note("without kube-proxy: it needs nft: %v", err)
			b.kubeProxy = ""
		}
	}
	if _, err := exec.LookPath("haproxy"); err != nil {
		b.note("without HAProxy: %v", err)
	}
}

// note puts a line below the tables.
func (b *bench) note(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	b.say("%s", text)
	b.report.Notes = append(b.report.Notes, text)
}

// once is a note that is made once.
func (b *bench) once(format string, args ...any) {
	if text := fmt.Sprintf(format, args...); !slices.Contains(b.report.Notes, text) {
		b.note("%s", text)
	}
}

// onLab has a new API server run in a lab for as long as do does.
func (b *bench) onLab(ctx context.Context, endpoints int, do func(context.Context) error) (err error) {
	b.labs++
	if b.lab, err = newLab(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.lab.close()) }()
	if b.group, err = newCgroup(nil, fmt.Sprintf("bench-%d-%d", os.Getpid(), b.labs)); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.group.remove()) }()
	dir := filepath.Join(b.dir, "lab-"+strconv.Itoa(b.labs))
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	b.server = &server{binary: b.binary, dir: dir, listen: net.JoinHostPort(apiAddr.String(), "6443"), at: spot{place: b.lab}}
	if _, err := b.server.start(ctx, true); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.server.stop()) }()
	if b.fill, err = prepareTraffic(ctx, b.server.writes, endpoints); err != nil {
		return err
	}
	return do(ctx)
}

func (b *bench) filled(ctx context.Context, services int) error {
	began := time.Now()
	if err := b.fill.grow(ctx, services); err != nil {
		return err
	}
	b.say("load: %s Services × endpoints in %s s", b.fill.made, number(time.Since(began).Seconds()))
	return nil
}

// grown measures at each size, on one load that grows.
func (b *bench) grown(ctx context.Context) error {
	if b.wants(partFootprint) {
		if err := b.footprint(ctx); err != nil { // with none
			return err
		}
	}
	cold := func(n int) bool {
		return b.wants(partColdStart) && slices.Contains(b.shapes, shape{n, fillerEndpoints})
	}
	sizes := slices.Clone(b.sizes)
	for _, s := range b.shapes {
		if cold(s.services) {
			sizes = append(sizes, s.services)
		}
	}
	slices.Sort(sizes)
	for _, n := range slices.Compact(sizes) {
		wanted := slices.Contains(b.sizes, n) && slices.ContainsFunc([]string{partTraffic, partProgramming, partFootprint}, b.wants)
		if !wanted && !cold(n) {
			continue
		}
		if err := b.filled(ctx, n); err != nil {
			return err
		}
		if cold(n) {
			if err := b.coldStart(ctx, shape{n, fillerEndpoints}); err != nil {
				return err
			}
		}
		if !wanted {
			continue
		}
		if err := b.atSize(ctx); err != nil {
			return fmt.Errorf("%d Services: %w", n, err)
		}
	}
	return nil
}

// atSize measures with the load as it is.
func (b *bench) atSize(ctx context.Context) error {
	if b.wants(partFootprint) {
		if err := b.footprint(ctx); err != nil {
			return err
		}
	}
	if b.wants(partTraffic) {
		if err := b.rates(ctx); err != nil {
			return err
		}
	}
	if b.wants(partProgramming) {
		return b.programming(ctx)
	}
	return nil
}

// proxies are the contenders that watch the API, ours first.
func (b *bench) proxies() []string {
	return slices.DeleteFunc([]string{ebpfName, nftablesName, kubeProxyName}, func(name string) bool {
		return !b.has(name)
	})
}

// has says whether a contender takes part.
func (b *bench) has(name string) bool {
	if len(b.only) > 0 && !slices.Contains(b.only, name) && name != directName {
		return false
	}
	switch name {
	case kubeProxyName:
		return b.kubeProxy != ""
	case haproxyName:
		_, err := exec.LookPath("haproxy")
		return err == nil
	}
	return true
}

// siteWait is how long a contender may take to be ready for what is not about that.
const siteWait = 15 * time.Minute

// withSites makes the contenders, waits until each works, has them sleep, and calls do.
func (b *bench) withSites(ctx context.Context, names []string, do func([]*site) error) (err error) {
	var sites []*site
	defer func() {
		for _, s := range sites {
			err = errors.Join(err, s.close())
		}
	}()
	for _, name := range names {
		s, err := b.newSite(name)
		if err != nil {
			return err
		}
		sites = append(sites, s)
		if _, err := s.start(); err != nil {
			return err
		}
		if name != directName {
			if _, err := s.works(ctx, siteWait); err != nil {
				return err
			}
		}
		if s.proxy != nil {
			if err := s.idle(ctx, settleWait); err != nil {
				b.note("%v, with %s Services × endpoints", err, b.fill.made)
			}
		}
		if err := s.sleep(true); err != nil {
			return err
		}
	}
	return do(sites)
}
