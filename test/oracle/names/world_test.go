package names

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/endpointd/endpointd/internal/model"
	"github.com/endpointd/endpointd/internal/model/modeltest"
	"github.com/endpointd/endpointd/test/oracle/api"
)

// A world is random objects, and the names and addresses in them.
type world struct {
	t        *testing.T
	random   *rand.Rand
	api      *api.API
	in       model.Input
	versions int
	names    []string     // of Services, and what is below them
	addrs    []netip.Addr // of Services and endpoints
}

func newWorld(t *testing.T, seed uint64) *world {
	w := &world{t: t, random: rand.New(rand.NewPCG(seed, 0)), api: api.New()}
	w.in = w.in.WithNetwork(model.Network{
		Node: "n1", ServiceCIDRs: prefixes("10.96.0.0/16", "fd00:96::/108"), ClusterCIDRs: prefixes("10.244.0.0/16", "fd00:244::/56"),
	})
	for _, namespace := range append(namespaces(), "kube-system", "bare") {
		w.api.Put("namespaces", api.Object{"apiVersion": "v1", "kind": "Namespace", "metadata": api.Object{"name": namespace}})
	}
	for i := range 60 {
		w.service(i)
	}
	w.put("services", w.object("v1", "Service", "a", last, api.Object{
		"type": "ClusterIP", "clusterIP": "10.96.255.1", "clusterIPs": []any{"10.96.255.1"}, "ipFamilies": []any{"IPv4"},
		"ports": []any{api.Object{"port": 80, "protocol": "TCP"}},
	}))
	return w
}

// last is the Service that is made last.
const last = "last"

func namespaces() []string { return []string{"a", "b", "c"} }

func prefixes(texts ...string) []netip.Prefix {
	var all []netip.Prefix
	for _, text := range texts {
		all = append(all, netip.MustParsePrefix(text))
	}
	return all
}

func (w *world) chance(percent int) bool { return w.random.IntN(100) < percent }

func pick[T any](w *world, all ...T) T { return all[w.random.IntN(len(all))] }

func (w *world) object(apiVersion, kind, namespace, name string, spec api.Object) api.Object {
	w.versions++
	return api.Object{
		"apiVersion": apiVersion, "kind": kind,
		"metadata": api.Object{"namespace": namespace, "name": name, "uid": fmt.Sprint("uid-", w.versions), "creationTimestamp": "2026-01-01T00:00:00Z"},
		"spec":     spec,
	}
}

// put gives an object to both.
func (w *world) put(resource string, o api.Object) {
	text, err := json.Marshal(o)
	if err == nil && (resource == "services" || resource == "endpointslices") {
		w.in, err = modeltest.Apply(w.in, string(text))
	}
	if err != nil {
		w.t.Fatal(err)
	}
	w.api.Put(resource, o)
}

// ports are those of a Service, and their names with protocols.
func (w *world) ports() (list []any, named [][2]string) {
	n := w.random.IntN(4)
	for i := range n {
		p := api.Object{"port": 80 + i, "protocol": pick(w, "TCP", "UDP")}
		if n > 1 || w.chance(50) {
			name := pick(w, "http", "dns", "sql", "x") + fmt.Sprint(i)
			p["name"] = name
			named = append(named, [2]string{name, strings.ToLower(p["protocol"].(string))})
		}
		list = append(list, p)
	}
	return list, named
}

// service makes the i-th Service, with endpoints, and what may be asked of it.
func (w *world) service(i int) {
	namespace, name := pick(w, namespaces()...), fmt.Sprint("svc-", i)
	if w.chance(10) {
		name = fmt.Sprint(i, "-digit") // KEP-5311
	}
	full := name + "." + namespace + ".svc.cluster.local"
	ports, named := w.ports()
	spec := api.Object{"ports": ports}
	switch kind := pick(w, "ip", "ip", "headless", "headless", "headless", "external"); {
	case kind == "external":
		target := pick(w, "example.com", "www.Example.net", last+".a.svc.cluster.local", "svc-999.a.svc.cluster.local")
		spec["type"], spec["externalName"] = "ExternalName", target
		named = nil
	case kind == "ip" && len(ports) > 0:
		v4, v6 := netip.AddrFrom4([4]byte{10, 96, 1, byte(i)}), netip.MustParseAddr(fmt.Sprintf("fd00:96::1:%x", i))
		addrs := pick(w, []netip.Addr{v4}, []netip.Addr{v6}, []netip.Addr{v4, v6})
		var texts, families []any
		for _, a := range addrs {
			texts, families = append(texts, a.String()), append(families, map[bool]any{true: "IPv4", false: "IPv6"}[a.Is4()])
		}
		spec["type"], spec["clusterIP"], spec["clusterIPs"], spec["ipFamilies"] = "ClusterIP", texts[0], texts, families
		w.addrs = append(w.addrs, addrs...)
		w.slices(i, namespace, name, full, ports, false)
	default:
		spec["type"], spec["clusterIP"], spec["clusterIPs"] = "ClusterIP", "None", []any{"None"}
		if w.chance(10) {
			spec["publishNotReadyAddresses"] = true
		}
		w.slices(i, namespace, name, full, ports, spec["publishNotReadyAddresses"] == true)
	}
	w.names = append(w.names, full, "nobody."+full, "_tcp."+full, "_http0._tcp."+full, "x._http0._tcp."+full)
	for _, p := range named {
		w.names = append(w.names, fmt.Sprintf("_%s._%s.%s", p[0], p[1], full))
	}
	w.put("services", w.object("v1", "Service", namespace, name, spec))
}

// withoutNumbers are the ports of a slice, of which so many per cent have no number.
func (w *world) withoutNumbers(ports []any, percent int) []any {
	list := slices.Clone(ports)
	for i, p := range list {
		if w.chance(percent) {
			anyPort := maps.Clone(p.(api.Object))
			delete(anyPort, "port")
			list[i] = anyPort
		}
	}
	return list
}

// slices makes up to two of each family.
func (w *world) slices(i int, namespace, service, full string, ports []any, publish bool) {
	without := pick(w, 10, 10, 10, 90) // per cent of the ports
	for s := range w.random.IntN(4) {
		v6 := w.chance(30)
		family := map[bool]string{false: "IPv4", true: "IPv6"}[v6]
		o := w.object("discovery.k8s.io/v1", "EndpointSlice", namespace, fmt.Sprintf("%s-%d", service, s), nil)
		delete(o, "spec")
		o["metadata"].(api.Object)["labels"] = api.Object{"kubernetes.io/service-name": service}
		o["addressType"], o["ports"] = family, w.withoutNumbers(ports, without)
		var endpoints []any
		for e := range w.random.IntN(5) {
			addr := netip.AddrFrom4([4]byte{10, 244, byte(i), byte(10*s + e)})
			if v6 {
				addr = netip.MustParseAddr(fmt.Sprintf("fd00:244:0:%x::%x:%x", i, s, e+1))
			}
			ready := w.chance(75)
			endpoint := api.Object{"addresses": []any{addr.String()}, "conditions": api.Object{"ready": ready || publish}}
			if w.chance(40) {
				hostname := pick(w, "host-0", "host-1", "host-2")
				endpoint["hostname"] = hostname
				w.names = append(w.names, hostname+"."+full)
			}
			w.names = append(w.names, strings.NewReplacer(".", "-", ":", "-").Replace(addr.String())+"."+full)
			if pod := fmt.Sprintf("pod-%d-%d-%d", i, s, e); w.chance(60) {
				endpoint["targetRef"] = api.Object{"kind": "Pod", "namespace": namespace, "name": pod, "uid": "uid-" + pod}
				p := w.object("v1", "Pod", namespace, pod, api.Object{"containers": []any{}})
				p["status"] = api.Object{"phase": "Running", "podIP": addr.String(), "podIPs": []any{api.Object{"ip": addr.String()}}}
				w.put("pods", p)
			}
			w.names = append(w.names, strings.NewReplacer(".", "-", ":", "-").Replace(addr.String())+"."+namespace+".pod.cluster.local")
			w.addrs = append(w.addrs, addr)
			endpoints = append(endpoints, endpoint)
		}
		o["endpoints"] = endpoints
		w.put("endpointslices", o)
	}
}
