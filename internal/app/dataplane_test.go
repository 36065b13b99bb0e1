package app

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/endpointd/endpointd/internal/dataplane"
	"github.com/endpointd/endpointd/internal/dataplane/dptest"
	"github.com/endpointd/endpointd/internal/model"
	"github.com/endpointd/endpointd/internal/model/modeltest"
	"github.com/endpointd/endpointd/internal/node/process"
	"github.com/endpointd/endpointd/internal/testkit"
)

// packets runs the test in namespaces of its own, and says whether this is there.
func packets(t *testing.T) (inside bool) {
	t.Helper()
	if os.Getenv(childPackets) != "" {
		return true
	}
	testkit.Need(t, testkit.Net())
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/proc/self/exe", "-test.run", "^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), childPackets+"=1")
	if output, err := cmd.CombinedOutput(); err != nil || !bytes.Contains(output, []byte("--- PASS: "+t.Name())) {
		t.Errorf("%v\n%s", err, output)
	}
	return false
}

// livePlane is a plane in a node, until end.
type livePlane struct {
	*plane
	end func()
}

func runPlane(t *testing.T, node *dptest.Place, o planeOptions) *livePlane {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r := &livePlane{}
	err := node.Enter(func() (err error) {
		r.plane, err = newPlane(ctx, o)
		return err
	})
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	var work sync.WaitGroup
	work.Go(func() {
		if err := r.run(ctx); err != nil {
			t.Error(err)
		}
	})
	r.end = func() { cancel(); work.Wait() }
	t.Cleanup(r.end)
	return r
}

// udpService is a Service at a NodePort, answered by pod.
func udpService(t *testing.T, in model.Input, name string, nodePort int, pod *dptest.Place) model.Input {
	t.Helper()
	in, err := modeltest.Apply(in, fmt.Sprintf(`
kind: Service
metadata: {namespace: default, name: %[1]s, uid: "1"}
spec:
  type: NodePort
  clusterIP: 10.96.0.%[4]d
  clusterIPs: [10.96.0.%[4]d]
  ipFamilies: [IPv4]
  ports: [{protocol: UDP, port: 53, nodePort: %[2]d}]
---
kind: EndpointSlice
metadata: {namespace: default, name: %[1]s, labels: {kubernetes.io/service-name: %[1]s}}
addressType: IPv4
ports: [{name: "", protocol: UDP, port: 8080}]
endpoints: [{addresses: [%[3]s]}]
`, name, nodePort, pod.V4, nodePort-30000))
	if err != nil {
		t.Fatal(err)
	}
	return in
}

const packetPatience = 20 * time.Second

// TestFlowsOfServicesDeletedMeanwhile has Services be deleted while no agent runs: their flows to NodePorts end when one starts, and no others do.
func TestFlowsOfServicesDeletedMeanwhile(t *testing.T) {
	if !packets(t) {
		return
	}
	w := dptest.NewWorld(t)
	stop, err := w.Pods[0].Serve(8080)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
	}()
	o := planeOptions{kind: DataPlaneNFTables, pins: t.TempDir(), log: slog.New(slog.DiscardHandler)}
	in := model.Input{}.WithNetwork(dptest.Network())
	in = udpService(t, in, "stays", 30001, w.Pods[0])
	in = udpService(t, in, "goes", 30002, w.Pods[0])

	first := runPlane(t, w.Node, o)
	first.set(model.Build(in, nil))
	if err := first.inForce(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, port := range []uint16{30001, 30002} {
		if answer, err := w.Outside.Ask(model.UDP, netip.AddrPortFrom(w.Node.V4, port), packetPatience); err != nil || answer.Server != "a" {
			t.Fatalf("node port %d: %v, %v", port, answer, err)
		}
	}
	if ports := flowsTo(t, w.Node); ports != "30001 30002" {
		t.Fatalf("flows to node ports %q", ports)
	}
	first.end()

	second := runPlane(t, w.Node, o)
	second.set(model.Build(in.WithoutService(model.ServiceKey{Namespace: "default", Name: "goes"}), nil))
	if err := second.inForce(t.Context()); err != nil {
		t.Fatal(err)
	}
	testkit.Await(t, packetPatience, func() error {
		if ports := flowsTo(t, w.Node); ports != "30001" {
			return fmt.Errorf("flows to node ports %q, want 30001 alone", ports)
		}
		return nil
	})
}

// flowsTo are the node ports that conntrack knows UDP flows to.
func flowsTo(t *testing.T, node *dptest.Place) string {
	t.Helper()
	found := map[uint16]bool{}
	err := node.Do(func() error {
		flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, netlink.InetFamily(netlink.FAMILY_V4))
		for _, f := range flows {
			found[f.Forward.DstPort] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	var ports []string
	for _, port := range []uint16{30001, 30002} {
		if found[port] {
			ports = append(ports, fmt.Sprint(port))
		}
	}
	return strings.Join(ports, " ")
}

// TestKernelWithoutBPF is in a user namespace, where BPF is refused: auto forwards with nftables and says why in one line, ebpf is refused.
func TestKernelWithoutBPF(t *testing.T) {
	if !packets(t) {
		return
	}
	w := dptest.NewWorld(t)
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		t.Fatal(err)
	}
	linux := "this is Linux " + strings.TrimSpace(string(release))
	mount, _ := process.FindCgroup2()
	o := planeOptions{kind: DataPlaneEBPF, cgroup: mount, pins: t.TempDir(), log: slog.New(slog.DiscardHandler)}
	err = w.Node.Enter(func() error {
		p, err := newPlane(t.Context(), o)
		if err == nil {
			p.close()
		}
		return err
	})
	if !errors.Is(err, dataplane.ErrNotSupported) || strings.Contains(err.Error(), "\n") ||
		!strings.Contains(err.Error(), "--data-plane ebpf: eBPF in a user namespace") || !strings.Contains(err.Error(), linux) {
		t.Errorf("--data-plane ebpf: %v", err)
	}

	var said bytes.Buffer
	o.kind, o.log = DataPlaneAuto, slog.New(slog.NewTextHandler(&said, nil))
	stop, err := w.Pods[0].Serve(8080)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
	}()
	p := runPlane(t, w.Node, o)
	p.set(model.Build(udpService(t, model.Input{}.WithNetwork(dptest.Network()), "dns", 30001, w.Pods[0]), nil))
	if err := p.inForce(t.Context()); err != nil {
		t.Fatal(err)
	}
	if answer, err := w.Pods[1].Ask(model.UDP, netip.MustParseAddrPort("10.96.0.1:53"), packetPatience); err != nil || answer.Server != "a" {
		t.Errorf("%v, %v", answer, err)
	}
	p.end()
	if n := strings.Count(said.String(), "no eBPF: eBPF in a user namespace"); n != 1 || !strings.Contains(said.String(), "data_plane=nftables") || !strings.Contains(said.String(), linux) {
		t.Errorf("%d lines say why there is no eBPF:\n%s", n, &said)
	}
}
