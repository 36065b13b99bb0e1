package oracle

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"

	"k8s.io/apimachinery/pkg/labels"

	"github.com/endpointd/endpointd/internal/dataplane/dptest"
)

type object = map[string]any

// An api is as much of the Kubernetes API as kube-proxy asks for: lists and watches of a few kinds, with label selectors. It forgets nothing.
type api struct {
	mu      sync.Mutex    // guards all below
	changed chan struct{} // closed and replaced with each event
	version int
	objects map[string]map[string]object // resource → namespace/name → object
	log     []event                      // in the order of versions
}

// An event is a change of one object: was or now is nil if there was or is none.
type event struct {
	version  int
	resource string
	was, now object
}

func newAPI() *api {
	a := &api{changed: make(chan struct{}), objects: map[string]map[string]object{}}
	a.put("nodes", object{
		"apiVersion": "v1", "kind": "Node",
		"metadata": object{"name": dptest.NodeName, "labels": object{"topology.kubernetes.io/zone": dptest.NodeZone}},
		"spec":     object{"podCIDRs": []any{"10.244.1.0/24", "fd00:244:0:1::/64"}},
		"status":   object{"addresses": []any{object{"type": "InternalIP", "address": "10.200.0.10"}, object{"type": "InternalIP", "address": "fd00:200::10"}}},
	})
	a.put("servicecidrs", object{
		"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
		"metadata": object{"name": "kubernetes"}, "spec": object{"cidrs": []any{"10.96.0.0/16", "fd00:96::/108"}},
	})
	return a
}

// resources: kind → path element.
func resourceOf(kind string) string {
	return map[string]string{"Service": "services", "EndpointSlice": "endpointslices"}[kind]
}

// take is for [dptest.Options].
func (a *api) take(changed map[dptest.ObjectName][]byte) {
	for name, text := range changed {
		if text == nil {
			a.remove(resourceOf(name.Kind), name.Namespace+"/"+name.Name)
			continue
		}
		var o object
		if err := json.Unmarshal(text, &o); err != nil {
			panic(err) // the suite's own text
		}
		a.put(resourceOf(name.Kind), o)
	}
}

func nameOf(o object) string {
	metadata, _ := o["metadata"].(object)
	namespace, _ := metadata["namespace"].(string)
	name, _ := metadata["name"].(string)
	return strings.TrimPrefix(namespace+"/"+name, "/")
}

func (a *api) put(resource string, o object) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.objects[resource] == nil {
		a.objects[resource] = map[string]object{}
	}
	a.record(resource, a.objects[resource][nameOf(o)], o)
	a.objects[resource][nameOf(o)] = o
}

func (a *api) remove(resource, name string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if was := a.objects[resource][name]; was != nil {
		delete(a.objects[resource], name)
		a.record(resource, was, nil)
	}
}

// record is called with mu held.
func (a *api) record(resource string, was, now object) {
	a.version++
	if now != nil {
		now["metadata"].(object)["resourceVersion"] = strconv.Itoa(a.version)
	}
	a.log = append(a.log, event{a.version, resource, was, now})
	close(a.changed)
	a.changed = make(chan struct{})
}

// ServeHTTP answers a list, a watch, or the question for one node.
func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	query := r.URL.Query()
	switch {
	case r.Method == http.MethodPost: // an Event
		w.WriteHeader(http.StatusCreated)
		_, _ = fmt.Fprint(w, `{"apiVersion":"events.k8s.io/v1","kind":"Event"}`)
	case len(parts) > 1 && parts[len(parts)-2] == "nodes":
		a.mu.Lock()
		node := a.objects["nodes"][parts[len(parts)-1]]
		a.mu.Unlock()
		a.answer(w, node)
	case query.Get("watch") != "":
		a.watch(r.Context(), w, parts[len(parts)-1], query)
	default:
		a.list(w, parts[len(parts)-1], query)
	}
}

func (a *api) answer(w http.ResponseWriter, o any) {
	if err := json.NewEncoder(w).Encode(o); err != nil {
		panic(http.ErrAbortHandler) // the client has gone
	}
}

func (a *api) list(w http.ResponseWriter, resource string, query url.Values) {
	selector, err := labels.Parse(query.Get("labelSelector"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	a.mu.Lock()
	items := []any{}
	for _, name := range slices.Sorted(maps.Keys(a.objects[resource])) {
		if o := a.objects[resource][name]; matches(selector, o) {
			items = append(items, o)
		}
	}
	version := a.version
	a.mu.Unlock()
	a.answer(w, object{"apiVersion": "v1", "kind": "List", "metadata": object{"resourceVersion": strconv.Itoa(version)}, "items": items})
}

func matches(selector labels.Selector, o object) bool {
	if o == nil {
		return false
	}
	metadata, _ := o["metadata"].(object)
	set := labels.Set{}
	all, _ := metadata["labels"].(object)
	for key, value := range all {
		set[key], _ = value.(string)
	}
	return selector.Matches(set)
}

// watch sends what happened after a version, and on.
func (a *api) watch(ctx context.Context, w http.ResponseWriter, resource string, query url.Values) {
	selector, err := labels.Parse(query.Get("labelSelector"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	from, _ := strconv.Atoi(query.Get("resourceVersion")) // "" is from the beginning
	initial := query.Get("sendInitialEvents") == "true"
	if initial {
		from = 0 // the log is all there is
	}
	for {
		a.mu.Lock()
		events, changed, version := a.log[from:], a.changed, a.version
		a.mu.Unlock()
		for _, e := range events {
			if e.resource != resource {
				continue
			}
			was, now := matches(selector, e.was), matches(selector, e.now)
			switch {
			case was && now:
				a.answer(w, object{"type": "MODIFIED", "object": e.now})
			case now:
				a.answer(w, object{"type": "ADDED", "object": e.now})
			case was:
				a.answer(w, object{"type": "DELETED", "object": e.was})
			}
		}
		if initial {
			initial = false
			a.answer(w, object{"type": "BOOKMARK", "object": object{"apiVersion": apiVersion(resource), "kind": kindOf(resource), "metadata": object{
				"resourceVersion": strconv.Itoa(version), "annotations": object{"k8s.io/initial-events-end": "true"},
			}}})
		}
		from = version // versions count events
		if err := http.NewResponseController(w).Flush(); err != nil {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

func kindOf(resource string) string {
	return map[string]string{"services": "Service", "endpointslices": "EndpointSlice", "nodes": "Node", "servicecidrs": "ServiceCIDR"}[resource]
}

func apiVersion(resource string) string {
	return map[string]string{"services": "v1", "endpointslices": "discovery.k8s.io/v1", "nodes": "v1", "servicecidrs": "networking.k8s.io/v1"}[resource]
}
