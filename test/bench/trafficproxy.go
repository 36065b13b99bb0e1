package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const trafficNode = "bench-node"

// The contenders of the traffic parts.
const (
	directName    = "direct"
	ebpfName      = "ours eBPF"
	nftablesName  = "ours nftables"
	kubeProxyName = "kube-proxy"
	haproxyName   = "HAProxy"
)

// peerVersion is what kubeProxyName must be.
const peerVersion = "v1.37"

// site is a contender on a node of its own.
type site struct {
	b       *bench
	name    string
	number  int
	node    *place
	agents  *cgroup // its proxy
	clients *cgroup // those that use it
	client  *place
	server  *place
	serving *process
	proxy   *process // nil if it has none, or before it is started
	dir     string
}

// newSite makes the node and its pods; the proxy does not run yet.
func (b *bench) newSite(name string) (_ *site, err error) {
	b.sites++
	s := &site{b: b, name: name, number: b.sites, dir: filepath.Join(b.dir, "site-"+strconv.Itoa(b.sites))}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("%s: %w", name, err), s.close())
		}
	}()
	if err := os.Mkdir(s.dir, 0o700); err != nil {
		return nil, err
	}
	if s.node, err = newNode(b.lab, s.number); err != nil {
		return nil, err
	}
	if s.agents, err = newCgroup(b.group, "agents-"+strconv.Itoa(s.number)); err != nil {
		return nil, err
	}
	if s.clients, err = newCgroup(b.group, "clients-"+strconv.Itoa(s.number)); err != nil {
		return nil, err
	}
	return s, s.pods()
}

// pods makes client and server anew: nothing of an earlier run is left in them, nor in conntrack.
func (s *site) pods() error {
	if err := errors.Join(s.endServer(), s.client.close(), s.server.close()); err != nil {
		return err
	}
	var err error
	if s.client, err = newPod(s.node, "client", clientAddr); err != nil {
		return err
	}
	if s.server, err = newServerPod(s.node); err != nil {
		return err
	}
	if err := flushConntrack(s.node); err != nil {
		return fmt.Errorf("forget connections: %w", err)
	}
	s.serving, err = spot{place: s.server}.start(&process{name: "server", until: "serving"}, filepath.Join(s.dir, "server.log"), os.Environ(), s.b.self, serveCommand)
	if err != nil {
		return err
	}
	_, err = s.serving.ready(context.Background(), readyWait)
	return err
}

func (s *site) endServer() error {
	if s.serving == nil {
		return nil
	}
	p := s.serving
	s.serving = nil
	return p.kill()
}

// here is where clients are.
func (s *site) here() spot { return spot{place: s.client, group: s.clients} }

func (s *site) close() error {
	err := errors.Join(s.endProxy(), s.endServer(), s.client.close(), s.server.close(), s.node.close())
	if s.b.lab != nil && s.node != nil {
		err = errors.Join(err, dropLink(s.b.lab, "node-"+strconv.Itoa(s.number)))
	}
	return errors.Join(err, s.agents.remove(), s.clients.remove())
}

// start starts the proxy, and returns when that was.
func (s *site) start() (began time.Duration, err error) {
	var program string
	var args []string
	switch s.name {
	case directName:
		return monotonic(), nil
	case ebpfName, nftablesName:
		program, args = s.b.binary, s.ours()
	case kubeProxyName:
		program = s.b.kubeProxy
		args, err = s.kubeProxy()
	case haproxyName:
		program = "haproxy"
		args, err = s.haproxy()
	default:
		err = errors.New("nobody knows this contender")
	}
	if err != nil {
		return 0, fmt.Errorf("%s: %w", s.name, err)
	}
	env := append(s.b.server.environment(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	began = monotonic()
	s.proxy, err = spot{place: s.node, group: s.agents, mounts: true}.start(&process{name: s.name, until: "endpointd node"},
		filepath.Join(s.dir, "proxy.log"), env, program, args...)
	return began, err
}

func (s *site) endProxy() error {
	if s.proxy == nil {
		return nil
	}
	p := s.proxy
	s.proxy = nil
	_ = p.cmd.Process.Signal(unix.SIGCONT) // it may be asleep
	if s.name == ebpfName || s.name == nftablesName {
		return p.stop()
	}
	return p.kill()
}

// sleep has a proxy wait while others are measured: the kernel forwards on.
func (s *site) sleep(yes bool) error {
	if s.proxy == nil {
		return nil
	}
	signal := syscall.SIGCONT
	if yes {
		signal = syscall.SIGSTOP
	}
	return s.proxy.cmd.Process.Signal(signal)
}

func (s *site) ours() []string {
	plane := "nftables"
	if s.name == ebpfName {
		plane = "ebpf"
	}
	return []string{"node", "--proxy-only", "--kubeconfig", s.b.server.kubeconfig(), "--name", trafficNode, "--data-dir", filepath.Join(s.dir, "data"),
		"--node-ip", nodeAddr.String(), "--data-plane", plane, "--cgroup", s.clients.path, "--log-level", "info"}
}

// kubeProxyConfig is all that differs from the defaults: where it is, and that it leaves limits alone that are the whole machine's.
const kubeProxyConfig = `apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
clientConnection:
  kubeconfig: %s
clusterCIDR: %s
hostnameOverride: %s
conntrack:
  maxPerCore: 0
  min: 0
  tcpEstablishedTimeout: 0s
  tcpCloseWaitTimeout: 0s
metricsBindAddress: 127.0.0.1:10249
healthzBindAddress: 127.0.0.1:10256
`

func (s *site) kubeProxy() ([]string, error) {
	path := filepath.Join(s.dir, "kube-proxy.yaml")
	text := fmt.Sprintf(kubeProxyConfig, s.b.server.kubeconfig(), "10.244.0.0/16", trafficNode)
	return []string{"--config", path}, os.WriteFile(path, []byte(text), 0o600)
}

// haproxy listens at the Services' own addresses, which are made the node's.
func (s *site) haproxy() ([]string, error) {
	err := s.node.do(func() error { return route(serviceRange, "lo", netip.Addr{}, unix.RTN_LOCAL) })
	if err != nil {
		return nil, err
	}
	var text bytes.Buffer
	fmt.Fprint(&text, "global\n  maxconn 1000\n  log stderr format raw local0 err\ndefaults\n  mode tcp\n  timeout connect 5s\n  timeout client 1m\n  timeout server 1m\n")
	listen := func(at netip.AddrPort, endpoints ...netip.Addr) {
		fmt.Fprintf(&text, "listen s%s\n  bind %s\n", strings.ReplaceAll(at.Addr().String(), ".", "-"), at)
		for i, e := range endpoints {
			fmt.Fprintf(&text, "  server e%d %s:%d\n", i, e, httpPort)
		}
	}
	listen(targetService(), targetEndpoint().Addr())
	services, err := haproxyServices(s.b.fill.made.services)
	if err != nil {
		return nil, err
	}
	if services < s.b.fill.made.services {
		s.b.once("HAProxy has %d of the %d Services only: no more files may be open here", services, s.b.fill.made.services)
	}
	for i := range services {
		listen(fillerService(i), fillerEndpoint(i, 0, fillerEndpoints), fillerEndpoint(i, 1, fillerEndpoints))
	}
	path := filepath.Join(s.dir, "haproxy.cfg")
	return []string{"-db", "-f", path}, os.WriteFile(path, text.Bytes(), 0o600)
}

// idle waits until the proxy and its children have nothing more to do, at most for longest.
func (s *site) idle(ctx context.Context, longest time.Duration) error {
	const window, quiet = 100 * time.Millisecond, 3 * time.Millisecond
	last, err := s.cpu()
	if err != nil {
		return err
	}
	for until := time.Now().Add(longest); ; {
		if err := pause(ctx, window); err != nil {
			return err
		}
		now, err := s.cpu()
		if err != nil || now-last < quiet {
			return err
		}
		if time.Now().After(until) {
			return fmt.Errorf("%s: still busy after %v%s", s.name, longest, s.proxy.tail())
		}
		last = now
	}
}

// haproxyServices is how many of so many Services it can have: each is a descriptor, as is each side of its connections.
func haproxyServices(services int) (int, error) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return 0, err
	}
	return min(services, int(limit.Max)-3000), nil //nolint:gosec // at most a million
}

// works waits until the Services used and some of the others lead to an endpoint, the first and the last among them, and says when they did.
func (s *site) works(ctx context.Context, longest time.Duration) (time.Duration, error) {
	p, err := s.watchStart(ctx, longest)
	if err != nil {
		return 0, err
	}
	return s.started(ctx, p, longest)
}

// sampled is how many of the other Services are dialled before all are taken to work.
const sampled = 64

// watchStart begins to dial.
func (s *site) watchStart(ctx context.Context, longest time.Duration) (*lookout, error) {
	targets := []netip.AddrPort{targetService()}
	n := s.b.fill.made.services
	if s.name == haproxyName {
		var err error
		if n, err = haproxyServices(n); err != nil {
			return nil, err
		}
	}
	for i := range min(n, sampled) {
		targets = append(targets, fillerService(i*(n-1)/max(min(n, sampled)-1, 1)))
	}
	return s.b.probe(ctx, s.here(), probeSpec{Targets: targets, All: true, Every: 2 * time.Millisecond, Timeout: 50 * time.Millisecond, Longest: longest})
}

// errLate says that a proxy was not ready in the time that it has.
var errLate = errors.New("does not work yet")

func (s *site) started(ctx context.Context, p *lookout, longest time.Duration) (time.Duration, error) {
	defer p.close() //nolint:errcheck // it ends by itself
	died := make(chan struct{})
	if s.proxy != nil {
		died = s.proxy.done
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		select {
		case <-died:
			cancel(fmt.Errorf("%s has ended: %v%s", s.name, s.proxy.cmd.ProcessState, s.proxy.tail()))
		case <-stop:
		}
	}()
	seen, err := p.until(ctx, longest+time.Second, 0, func(sight) bool { return true })
	switch {
	case err == nil:
		return seen.done, nil
	case context.Cause(ctx) != nil:
		return 0, context.Cause(ctx)
	}
	return 0, fmt.Errorf("%s: %w after %v%s", s.name, errLate, longest, s.proxy.tail())
}

// metric reads the sum of a counter of kube-proxy's.
func (s *site) metric(ctx context.Context, name string) (sum float64, err error) {
	transport := &http.Transport{DialContext: s.node.dialer().dial}
	defer transport.CloseIdleConnections()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://127.0.0.1:10249/metrics", nil)
	if err != nil {
		return 0, err
	}
	response, err := (&http.Client{Transport: transport}).Do(request)
	if err != nil {
		return 0, err
	}
	defer response.Body.Close() //nolint:errcheck // read only
	var text bytes.Buffer
	if _, err := text.ReadFrom(response.Body); err != nil {
		return 0, err
	}
	for line := range strings.Lines(text.String()) {
		series, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if key, _, _ := strings.Cut(series, "{"); key == name {
			v, err := strconv.ParseFloat(value, 64)
			if err != nil {
				return 0, fmt.Errorf("metric %s: %w", name, err)
			}
			sum += v
		}
	}
	return sum, nil
}

// dialer dials from a place; the connection stays there.
type dialer struct{ place *place }

func (p *place) dialer() dialer { return dialer{p} }

func (d dialer) dial(ctx context.Context, network, address string) (c net.Conn, err error) {
	if d.place == nil {
		return (&net.Dialer{Timeout: 10 * time.Second}).DialContext(ctx, network, address)
	}
	err = d.place.do(func() error {
		c, err = (&net.Dialer{Timeout: 10 * time.Second}).DialContext(ctx, network, address)
		return err
	})
	return c, err
}
