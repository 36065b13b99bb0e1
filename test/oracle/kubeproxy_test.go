package oracle

import (
	"bytes"
	"context"
	"encoding/json"
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
	"github.com/endpointd/endpointd/test/oracle/api"
	"github.com/endpointd/endpointd/test/oracle/program"
)

// programEnv is the path of kube-proxy, or of nothing, and why.
const programEnv, problemEnv = "ORACLE_KUBEPROXY", "ORACLE_PROBLEM"

// TestMain builds kube-proxy where there may be a network, and then runs the tests where there is none.
func TestMain(m *testing.M) {
	if os.Getenv(programEnv) == "" && nft().Probe(context.Background()) == nil {
		path, err := program.Build("kubeproxy", "kube-proxy")
		if err != nil {
			path = "none"
			_ = os.Setenv(problemEnv, err.Error())
		}
		_ = os.Setenv(programEnv, path)
	}
	dptest.Main(m, false)
}

func nft() testkit.Feature { return testkit.Program("nft") }

// kubeProxyPath is kube-proxy, which needs nft.
func kubeProxyPath(t testing.TB) string {
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

// marker is the Service whose port says what kube-proxy has seen.
const marker = dptest.Numbered(250)

// A kubeProxy is a process in a World, as a [dataplane.Proxier]: it hears of objects through the API, and Sync waits until it has done what they say.
type kubeProxy struct {
	world *dptest.World
	api   *api.API
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
func start(t testing.TB, w *dptest.World, a *api.API) (*kubeProxy, error) {
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
	k.cmd = exec.Command(kubeProxyPath(t), "--config", config)
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
	take := taker(k.api)
	take(map[dptest.ObjectName][]byte{{Kind: "Service", Namespace: marker.Key().Namespace, Name: "web"}: service})
	for i, name := range []string{"web-ipv4", "web-ipv6"} {
		take(map[dptest.ObjectName][]byte{{Kind: "EndpointSlice", Namespace: marker.Key().Namespace, Name: name}: slices[i]})
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

// newAPI is what kube-proxy sees of [dptest.World]'s node.
func newAPI() *api.API {
	a := api.New()
	a.Put("nodes", api.Object{
		"apiVersion": "v1", "kind": "Node",
		"metadata": api.Object{"name": dptest.NodeName, "labels": api.Object{"topology.kubernetes.io/zone": dptest.NodeZone}},
		"spec":     api.Object{"podCIDRs": []any{"10.244.1.0/24", "fd00:244:0:1::/64"}},
		"status":   api.Object{"addresses": []any{api.Object{"type": "InternalIP", "address": "10.200.0.10"}, api.Object{"type": "InternalIP", "address": "fd00:200::10"}}},
	})
	a.Put("servicecidrs", api.Object{
		"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
		"metadata": api.Object{"name": "kubernetes"}, "spec": api.Object{"cidrs": []any{"10.96.0.0/16", "fd00:96::/108"}},
	})
	return a
}

// taker is for [dptest.Options].
func taker(a *api.API) func(map[dptest.ObjectName][]byte) {
	return func(changed map[dptest.ObjectName][]byte) {
		for name, text := range changed {
			resource := map[string]string{"Service": "services", "EndpointSlice": "endpointslices"}[name.Kind]
			if text == nil {
				a.Remove(resource, name.Namespace+"/"+name.Name)
				continue
			}
			var o api.Object
			if err := json.Unmarshal(text, &o); err != nil {
				panic(err) // the suite's own text
			}
			a.Put(resource, o)
		}
	}
}

// options are those of a suite with kube-proxy.
func options(t testing.TB) dptest.Options {
	a := newAPI()
	return dptest.Options{
		Objects: taker(a), AnySource: true,
		New: func(w *dptest.World) ([]dataplane.Proxier, error) {
			k, err := start(t, w, a)
			if err != nil {
				return nil, err
			}
			return []dataplane.Proxier{k}, nil
		},
	}
}
