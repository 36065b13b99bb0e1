package oracle

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/endpointd/endpointd/internal/dataplane"
	"github.com/endpointd/endpointd/internal/dataplane/dptest"
	"github.com/endpointd/endpointd/internal/model"
	"github.com/endpointd/endpointd/internal/testkit"
)

// programEnv is the path of kube-proxy, or of nothing, and why.
const programEnv, problemEnv = "ORACLE_KUBEPROXY", "ORACLE_PROBLEM"

// buildLimit bounds a build with nothing in Go's cache. After that of endpointd it takes 20 seconds on two cores.
const buildLimit = 15 * time.Minute

// TestMain builds kube-proxy where there may be a network, and then runs the tests where there is none.
func TestMain(m *testing.M) {
	if os.Getenv(programEnv) == "" && nft().Probe(context.Background()) == nil {
		program, err := build()
		if err != nil {
			program = "none"
			_ = os.Setenv(problemEnv, err.Error())
		}
		_ = os.Setenv(programEnv, program)
	}
	dptest.Main(m, false)
}

func nft() testkit.Feature { return testkit.Program("nft") }

// program is kube-proxy, which needs nft.
func program(t testing.TB) string {
	t.Helper()
	testkit.Need(t, nft())
	testkit.Need(t, testkit.Feature{Name: "kube-proxy", Probe: func(context.Context) error {
		if problem := os.Getenv(problemEnv); problem != "" {
			return errors.New(problem)
		}
		return nil
	}})
	return os.Getenv(programEnv)
}

// build makes .cache/bin/kube-proxy, one process at a time; with nothing changed it is a look into Go's cache.
func build() (path string, err error) {
	root, err := testkit.Root()
	if err != nil {
		return "", err
	}
	path = filepath.Join(root, ".cache", "bin", "kube-proxy")
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return "", err
	}
	lock, err := os.OpenFile(path+".lock", os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, lock.Close()) }() // closing unlocks
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return "", fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), buildLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, "go", "build", "-buildvcs=false", "-o", path, ".")
	cmd.Dir = filepath.Join(root, "test", "oracle", "kubeproxy")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0") // as endpointd, with which it shares what is compiled
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build kube-proxy: %w\n%s", err, out)
	}
	return path, nil
}

// marker is the Service whose port says what kube-proxy has seen.
const marker = dptest.Numbered(250)

// A kubeProxy is a process in a World, as a [dataplane.Proxier]: it hears of objects through the API, and Sync waits until it has done what they say.
type kubeProxy struct {
	world *dptest.World
	api   *api
	http  *http.Server
	done  sync.WaitGroup
	cmd   *exec.Cmd
	ended chan struct{} // closed when the process is gone
	log   bytes.Buffer  // of the process; to be read when it has ended
	round uint16
	stop  func() error // the marker's server
}

const configText = `
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
hostnameOverride: ` + dptest.NodeName + `
clientConnection: {kubeconfig: %s, contentType: application/json, qps: 1000, burst: 1000}
detectLocalMode: NodeCIDR
nodePortAddresses: [10.200.0.10/32, "fd00:200::10/128"]
nftables: {minSyncPeriod: 1ms, syncPeriod: 1h}
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
`

const kubeconfigText = `
apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "http://%s"}}]
contexts: [{name: c, context: {cluster: c, user: u}}]
users: [{name: u, user: {}}]
current-context: c
`

// start runs kube-proxy on w.Node.
func start(t testing.TB, w *dptest.World, a *api) (*kubeProxy, error) {
	k := &kubeProxy{world: w, api: a, http: &http.Server{Handler: a, ReadHeaderTimeout: 10 * time.Second}}
	dir := t.TempDir()
	var listener net.Listener
	err := w.Node.Do(func() (err error) {
		listener, err = (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
		return err
	})
	if err != nil {
		return nil, err
	}
	k.done.Go(func() { _ = k.http.Serve(listener) }) // until Close
	kubeconfig, config := filepath.Join(dir, "kubeconfig"), filepath.Join(dir, "config")
	err = errors.Join(
		os.WriteFile(kubeconfig, fmt.Appendf(nil, kubeconfigText, listener.Addr()), 0o600),
		os.WriteFile(config, fmt.Appendf(nil, configText, kubeconfig), 0o600))
	if err != nil {
		return k, err
	}
	k.cmd = exec.Command(program(t), "--config", config)
	k.cmd.Stdout, k.cmd.Stderr = &k.log, &k.log
	k.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // of w.Node's thread, which ends with the World
	if err := w.Node.Do(k.cmd.Start); err != nil {
		return k, err
	}
	k.ended = make(chan struct{})
	k.done.Go(func() {
		defer close(k.ended)
		_ = k.cmd.Wait() // it ends when it is killed; whoever needs it before sees that it is gone
	})
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("kube-proxy's log:\n%s", k.log.String())
		}
	})
	return k, nil
}

// Sync waits until a Service that changed last is led where its endpoints, which changed last, are.
func (k *kubeProxy) Sync(ctx context.Context, _ *model.Snapshot) error {
	k.round++
	port := 20000 + k.round%10000
	stop, err := k.world.Peer.Serve(port)
	if err != nil {
		return err
	}
	if k.stop != nil {
		err = k.stop()
	}
	k.stop = stop
	service, serviceErr := marker.Service(fmt.Sprintf("spec: {ports: [{name: tcp, protocol: TCP, port: %d}]}", port))
	slices, slicesErr := marker.Slices(k.world, "web", "peer", fmt.Sprintf("ports: [{name: tcp, protocol: TCP, port: %d}]", port))
	if err := errors.Join(err, serviceErr, slicesErr); err != nil {
		return err
	}
	k.api.take(map[dptest.ObjectName][]byte{{Kind: "Service", Namespace: marker.Key().Namespace, Name: "web"}: service})
	for i, name := range []string{"web-ipv4", "web-ipv6"} {
		k.api.take(map[dptest.ObjectName][]byte{{Kind: "EndpointSlice", Namespace: marker.Key().Namespace, Name: name}: slices[i]})
	}
	limit := time.Now().Add(time.Minute)
	for _, v6 := range []bool{false, true} {
		to := netip.AddrPortFrom(marker.ClusterIP(v6), port)
		for {
			_, err := k.world.Outside.Ask(model.TCP, to, 200*time.Millisecond)
			if err == nil {
				break
			}
			select {
			case <-k.ended:
				return errors.New("kube-proxy has ended")
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(time.Millisecond):
			}
			if time.Now().After(limit) {
				return fmt.Errorf("kube-proxy has not done round %d: %w", k.round, err)
			}
		}
	}
	return nil
}

// Verify has nothing to do: kube-proxy does it by itself.
func (k *kubeProxy) Verify(context.Context) (bool, error) { return false, nil }

// Remove ends the process; the namespace goes with the World.
func (k *kubeProxy) Remove(context.Context) error {
	if err := k.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-k.ended
	return nil
}

// Close ends the API.
func (k *kubeProxy) Close() error {
	err := k.http.Close()
	k.done.Wait()
	if k.stop != nil {
		err = errors.Join(err, k.stop())
	}
	return err
}

// options are those of a suite with kube-proxy.
func options(t testing.TB) dptest.Options {
	a := newAPI()
	return dptest.Options{
		Objects: a.take, AnySource: true,
		New: func(w *dptest.World) ([]dataplane.Proxier, error) {
			k, err := start(t, w, a)
			if err != nil {
				return nil, err
			}
			return []dataplane.Proxier{k}, nil
		},
	}
}
