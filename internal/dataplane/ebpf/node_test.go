package ebpf

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/endpointd/endpointd/internal/dataplane/dptest"
	"github.com/endpointd/endpointd/internal/model"
	"github.com/endpointd/endpointd/internal/testkit"
)

// A testNode is a Proxier and what it is to do. Its clients are in cgroup.
type testNode struct {
	*Proxier
	t       testing.TB
	options Options
	in      model.Input
	snap    *model.Snapshot
}

// newNode starts one for the processes of this test. It has done no Sync.
func newNode(t testing.TB, change ...func(*Options)) *testNode {
	t.Helper()
	dptest.NeedBPF(t)
	own, _, err := OwnCgroup()
	if err != nil {
		t.Fatal(err)
	}
	o := Options{Cgroups: []string{own}, Pins: filepath.Join(t.TempDir(), "pins"), Logger: slog.New(slog.NewTextHandler(t.Output(), nil))}
	for _, f := range change {
		f(&o)
	}
	if err := MountPins(o.Pins); err != nil {
		t.Fatal(err)
	}
	n := &testNode{t: t, options: o}
	n.in = n.in.WithNetwork(model.Network{Node: "here", NodePortAddrs: []netip.Addr{nodeAddr(false), nodeAddr(true), netip.MustParseAddr("127.0.0.1")}})
	n.open()
	t.Cleanup(func() {
		if err := errors.Join(n.Remove(t.Context()), n.Close()); err != nil {
			t.Errorf("remove: %v", err)
		}
		if left, err := pinned(o.Pins); err != nil || len(left) > 0 {
			t.Errorf("left in the folder for pins: %v, %v", left, err)
		}
		if err := unix.Unmount(o.Pins, 0); err != nil {
			t.Error(err)
		}
	})
	return n
}

func (n *testNode) open() {
	n.t.Helper()
	p, err := New(n.options)
	if err != nil {
		n.t.Fatal(err)
	}
	n.Proxier = p
}

// restart is an agent that ends and another one that starts.
func (n *testNode) restart() {
	n.t.Helper()
	if err := n.Close(); err != nil {
		n.t.Fatal(err)
	}
	n.open()
}

// sync brings the node to what was set.
func (n *testNode) sync() {
	n.t.Helper()
	n.snap = model.Build(n.in, n.snap)
	if err := n.Sync(n.t.Context(), n.snap); err != nil {
		n.t.Fatal(err)
	}
}

// settle waits until no look for sockets is due. On a busy machine a look takes long, and the rest after it nine times that.
func (n *testNode) settle() {
	n.t.Helper()
	testkit.Await(n.t, 6*deadline, func() error {
		n.closer.mu.Lock()
		defer n.closer.mu.Unlock()
		if n.closer.busy {
			return errors.New("sockets are still being looked for")
		}
		return nil
	})
}

// spec of a Service, which has port 80 of TCP and UDP.
type spec struct {
	n         int   // its number, 1 to 60,000
	endpoints []int // their numbers, 1 to 60,000
	notReady  []int
	affinity  int // seconds
	ranges    []string
}

func nodeAddr(v6 bool) netip.Addr { return numbered(v6, "10.2.", "fd00:2::", 1) }

func clusterIP(v6 bool, n int) netip.Addr { return numbered(v6, "10.96.", "fd00:96::", n) }

func externalIP(v6 bool, n int) netip.Addr { return numbered(v6, "203.0.", "fd00:e::", n) }

func balancerIP(v6 bool, n int) netip.Addr { return numbered(v6, "198.51.", "fd00:b::", n) }

func endpointIP(v6 bool, n int) netip.Addr { return numbered(v6, "10.1.", "fd00:1::", n) }

func numbered(v6 bool, v4Prefix, v6Prefix string, n int) netip.Addr {
	if v6 {
		return netip.MustParseAddr(v6Prefix + strconv.FormatInt(int64(n), 16))
	}
	return netip.MustParseAddr(fmt.Sprintf("%s%d.%d", v4Prefix, n>>8, n&255))
}

const (
	servicePort = 80
	targetPort  = 8080
)

func nodePort(n int) uint16 { return uint16(30000 + n) }

func at(addr netip.Addr) netip.AddrPort { return netip.AddrPortFrom(addr, servicePort) }

type object = map[string]any

// set has a Service and its endpoints.
func (n *testNode) set(s spec) {
	n.t.Helper()
	meta := object{"namespace": "default", "name": "s-" + strconv.Itoa(s.n), "uid": "1"}
	pair := func(of func(bool, int) netip.Addr) []any {
		return []any{of(false, s.n).String(), of(true, s.n).String()}
	}
	balancer := pair(balancerIP)
	service := object{
		"type": "LoadBalancer", "clusterIP": clusterIP(false, s.n).String(), "clusterIPs": pair(clusterIP), "externalIPs": pair(externalIP),
		"ipFamilies": []any{"IPv4", "IPv6"}, "internalTrafficPolicy": "Cluster", "externalTrafficPolicy": "Cluster",
		"loadBalancerSourceRanges": s.ranges,
	}
	if s.affinity > 0 {
		service["sessionAffinity"] = "ClientIP"
		service["sessionAffinityConfig"] = object{"clientIP": object{"timeoutSeconds": s.affinity}}
	}
	var ports, slicePorts []any
	for _, name := range []string{"tcp", "udp", "sctp"} {
		protocol := strings.ToUpper(name)
		port := object{"name": name, "protocol": protocol, "port": servicePort}
		if s.n < 2700 {
			port["nodePort"] = nodePort(s.n)
		}
		ports = append(ports, port)
		slicePorts = append(slicePorts, object{"name": name, "protocol": protocol, "port": targetPort})
	}
	service["ports"] = ports
	n.in = with(n.t, n.in, model.Input.WithService, object{"metadata": meta, "spec": service, "status": object{
		"loadBalancer": object{"ingress": []any{object{"ip": balancer[0]}, object{"ip": balancer[1]}}},
	}})
	for _, v6 := range []bool{false, true} {
		list := []any{}
		for i, numbers := range [][]int{s.endpoints, s.notReady} {
			for _, number := range numbers {
				list = append(list, object{"addresses": []any{endpointIP(v6, number).String()}, "conditions": object{"ready": i == 0, "serving": i == 0}})
			}
		}
		n.in = with(n.t, n.in, model.Input.WithSlice, object{
			"metadata": object{
				"namespace": "default", "name": sliceName(s.n, v6),
				"labels": object{"kubernetes.io/service-name": meta["name"]},
			},
			"addressType": map[bool]string{false: "IPv4", true: "IPv6"}[v6], "ports": slicePorts, "endpoints": list,
		})
	}
}

func sliceName(n int, v6 bool) string { return fmt.Sprintf("s-%d-%t", n, v6) }

func (n *testNode) unset(number int) {
	n.in = n.in.WithoutService(model.ServiceKey{Namespace: "default", Name: "s-" + strconv.Itoa(number)})
	for _, v6 := range []bool{false, true} {
		n.in = n.in.WithoutSlice("default", sliceName(number, v6))
	}
}

// with hands an API object to a method of [model.Input]; its type comes from the method.
func with[T any](t testing.TB, in model.Input, method func(model.Input, *T) model.Input, o object) model.Input {
	t.Helper()
	text, err := json.Marshal(o)
	result := new(T)
	if err == nil {
		strict := json.NewDecoder(bytes.NewReader(text))
		strict.DisallowUnknownFields()
		err = strict.Decode(result)
	}
	if err != nil {
		t.Fatal(err)
	}
	return method(in, result)
}

// lean has a Service of IPv4 and TCP that has nothing but a ClusterIP.
func (n *testNode) lean(number int, endpoints ...int) {
	n.t.Helper()
	name := "s-" + strconv.Itoa(number)
	ip := clusterIP(false, number).String()
	n.in = with(n.t, n.in, model.Input.WithService, object{"metadata": object{"namespace": "default", "name": name}, "spec": object{
		"clusterIP": ip, "clusterIPs": []any{ip}, "ipFamilies": []any{"IPv4"},
		"ports": []any{object{"protocol": "TCP", "port": servicePort}},
	}})
	var list []any
	for _, e := range endpoints {
		list = append(list, object{"addresses": []any{endpointIP(false, e).String()}})
	}
	n.in = with(n.t, n.in, model.Input.WithSlice, object{
		"metadata":    object{"namespace": "default", "name": sliceName(number, false), "labels": object{"kubernetes.io/service-name": name}},
		"addressType": "IPv4", "endpoints": list,
		"ports": []any{object{"name": "", "protocol": "TCP", "port": targetPort}},
	})
}

// newCgroup makes a cgroup below that of this process.
func newCgroup(t testing.TB) string {
	t.Helper()
	dptest.NeedBPF(t)
	own, _, err := OwnCgroup()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(own, "clients-"+strconv.FormatInt(time.Now().UnixNano(), 36))
	if err := os.Mkdir(path, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
	})
	return path
}

// inCgroup runs f while this process is in another cgroup. A socket stays in the cgroup in which it was made.
func inCgroup(t testing.TB, path string, f func()) {
	t.Helper()
	own, _, err := OwnCgroup()
	if err != nil {
		t.Fatal(err)
	}
	enter := func(path string) {
		if err := os.WriteFile(filepath.Join(path, "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())), 0); err != nil {
			t.Fatal(err)
		}
	}
	enter(path)
	defer enter(own)
	f()
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }
