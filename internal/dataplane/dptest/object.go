package dptest

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"sigs.k8s.io/yaml"

	"github.com/endpointd/endpointd/internal/model"
)

// A Numbered Service has addresses and ports of its own, all made of one number, which is between 1 and 250.
type Numbered int

// Port is that of the Service, for TCP and UDP.
const Port = 80

// ClusterIP is the Service's of one family.
func (n Numbered) ClusterIP(v6 bool) netip.Addr {
	return pick(v6, fmt.Sprintf("10.96.1.%d", n), fmt.Sprintf("fd00:96::1:%x", int(n)))
}

// ExternalIP is the Service's of one family.
func (n Numbered) ExternalIP(v6 bool) netip.Addr {
	return pick(v6, fmt.Sprintf("203.0.113.%d", n), fmt.Sprintf("2001:db8:e::%x", int(n)))
}

// LoadBalancerIP is the Service's of one family.
func (n Numbered) LoadBalancerIP(v6 bool) netip.Addr {
	return pick(v6, fmt.Sprintf("198.51.100.%d", n), fmt.Sprintf("2001:db8:b::%x", int(n)))
}

// free is an address in the range of ClusterIPs that no Service has.
func free(v6 bool) netip.Addr { return pick(v6, "10.96.200.1", "fd00:96::2:1") }

// NodePort is the Service's, for TCP and UDP.
func (n Numbered) NodePort() uint16 { return 30000 + uint16(n) }

// Target is the port of its endpoints.
func (n Numbered) Target() uint16 { return 5000 + uint16(n) }

func (n Numbered) targetText() string { return strconv.Itoa(int(n.Target())) }

// Key is the Service's name.
func (n Numbered) Key() model.ServiceKey {
	return model.ServiceKey{Namespace: fmt.Sprintf("case-%d", n), Name: "web"}
}

// object is an API object, or a part of one, as YAML has it.
type object = map[string]any

// Service is the object: of type LoadBalancer with all kinds of frontends, two families and two protocols, merged with patch. It is
// JSON, which is YAML. See [patched].
func (n Numbered) Service(patch string) ([]byte, error) {
	pair := func(of func(bool) netip.Addr) []any { return []any{of(false).String(), of(true).String()} }
	port := func(name string) object {
		return object{"name": name, "protocol": strings.ToUpper(name), "port": Port, "targetPort": n.Target(), "nodePort": n.NodePort()}
	}
	balancer := pair(n.LoadBalancerIP)
	service := object{
		"apiVersion": "v1", "kind": "Service",
		"metadata": object{"namespace": n.Key().Namespace, "name": n.Key().Name, "uid": n.Key().Namespace},
		"spec": object{
			"type": "LoadBalancer", "clusterIP": n.ClusterIP(false).String(), "clusterIPs": pair(n.ClusterIP),
			"ipFamilies": []any{"IPv4", "IPv6"}, "ipFamilyPolicy": "RequireDualStack", "externalIPs": pair(n.ExternalIP),
			"ports":                 []any{port("tcp"), port("udp")},
			"internalTrafficPolicy": "Cluster", "externalTrafficPolicy": "Cluster", "sessionAffinity": "None",
		},
		"status": object{"loadBalancer": object{"ingress": []any{object{"ip": balancer[0]}, object{"ip": balancer[1]}}}},
	}
	return patched(service, patch)
}

// patched is an object, as JSON, merged with a patch, which is YAML (RFC 7386: a null deletes).
func patched(o object, patch string) ([]byte, error) {
	var changes object
	if err := yaml.Unmarshal([]byte(patch), &changes); err != nil {
		return nil, fmt.Errorf("patch %q: %w", patch, err)
	}
	return json.Marshal(merge(o, changes))
}

func merge(into, changes object) object {
	for key, change := range changes {
		below, isObject := change.(object)
		was, wasObject := into[key].(object)
		switch {
		case change == nil:
			delete(into, key)
		case isObject && wasObject:
			into[key] = merge(was, below)
		default:
			into[key] = change
		}
	}
	return into
}

// Slices are EndpointSlices of the Service, one a family, as JSON. Endpoints are places' names, each with what else there is to say:
//
//	a x:notready y:terminating z:gone b:zones=zone-1+zone-2,nodes=node-1 c:node=node-3,zone=zone-3
//
// They are merged with patch, and named for name and their family. gone is terminating and not serving; zones and nodes are hints; node and zone are where it says it is.
func (n Numbered) Slices(w *World, name, endpoints, patch string) ([][]byte, error) {
	var slices [][]byte
	for _, v6 := range []bool{false, true} {
		list := []any{}
		for word := range strings.FieldsSeq(endpoints) {
			endpoint, err := n.endpoint(w, word, v6)
			if err != nil {
				return nil, err
			}
			list = append(list, endpoint)
		}
		kind, port := "IPv4", func(name string) object {
			return object{"name": name, "protocol": strings.ToUpper(name), "port": n.Target()}
		}
		if v6 {
			kind = "IPv6"
		}
		text, err := patched(object{
			"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
			"metadata": object{
				"namespace": n.Key().Namespace, "name": sliceName(name, v6),
				"labels": object{"kubernetes.io/service-name": n.Key().Name, "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io"},
			},
			"addressType": kind, "ports": []any{port("tcp"), port("udp")}, "endpoints": list,
		}, patch)
		if err != nil {
			return nil, err
		}
		slices = append(slices, text)
	}
	return slices, nil
}

func sliceName(name string, v6 bool) string {
	if v6 {
		return name + "-ipv6"
	}
	return name + "-ipv4"
}

func (n Numbered) endpoint(w *World, word string, v6 bool) (object, error) {
	name, rest, _ := strings.Cut(word, ":")
	place := w.Place(name)
	if place == nil {
		return nil, fmt.Errorf("endpoint %q: no place of that name", word)
	}
	node, zone := PeerName, PeerZone
	if place == w.Node || w.Here(place) {
		node, zone = NodeName, NodeZone
	}
	ready, serving, terminating := true, true, false
	hints := object{}
	for word := range strings.SplitSeq(rest, ",") {
		key, value, _ := strings.Cut(word, "=")
		var names []any
		for name := range strings.SplitSeq(value, "+") {
			names = append(names, object{"name": name})
		}
		switch key {
		case "":
		case "notready":
			ready, serving = false, false
		case "terminating":
			ready, terminating = false, true
		case "gone":
			ready, serving, terminating = false, false, true
		case "node":
			node = value
		case "zone":
			zone = value
		case "zones":
			hints["forZones"] = names
		case "nodes":
			hints["forNodes"] = names
		default:
			return nil, fmt.Errorf("endpoint %q: %q is nothing that can be said", word, key)
		}
	}
	endpoint := object{
		"addresses":  []any{place.Addr(v6).String()},
		"conditions": object{"ready": ready, "serving": serving, "terminating": terminating},
		"nodeName":   node, "zone": zone,
		"targetRef": object{"kind": "Pod", "namespace": n.Key().Namespace, "name": name, "uid": n.podUID(name)},
	}
	if len(hints) > 0 {
		endpoint["hints"] = hints
	}
	return endpoint, nil
}

func (n Numbered) podUID(name string) string { return n.Key().Namespace + "-" + name }

// podNames of an endpoints text.
func podNames(endpoints string) []string {
	names := map[string]bool{}
	for word := range strings.FieldsSeq(endpoints) {
		name, _, _ := strings.Cut(word, ":")
		names[name] = true
	}
	return slices.Sorted(maps.Keys(names))
}
