// Package api is as much of the Kubernetes API as upstream's kube-proxy and CoreDNS ask for, for tests that compare us with them.
//
// What it is: an [API] that answers lists and watches of a few kinds, with label selectors, over HTTP. In: objects, as JSON has them. Out: what
// clients see. Invariants: it forgets nothing, and versions count changes. It refuses to check, to default and to take writes of clients. How to
// test: by its users, go test ./test/oracle/...
package api

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
)

// An Object is one of the API's, as JSON has it.
type Object = map[string]any

// An API serves objects. It is safe for concurrent use.
type API struct {
	mu      sync.Mutex    // guards all below
	changed chan struct{} // closed and replaced with each event
	version int
	objects map[string]map[string]Object // resource → namespace/name → object
	log     []event                      // in the order of versions
}

// An event is a change of one object: was or now is nil if there was or is none.
type event struct {
	version  int
	resource string
	was, now Object
}

// New returns one without objects.
func New() *API { return &API{changed: make(chan struct{}), objects: map[string]map[string]Object{}} }

func nameOf(o Object) string {
	metadata, _ := o["metadata"].(Object)
	namespace, _ := metadata["namespace"].(string)
	name, _ := metadata["name"].(string)
	return strings.TrimPrefix(namespace+"/"+name, "/")
}

// Put creates or replaces an object of a resource, such as "services". The object is the API's from then on.
func (a *API) Put(resource string, o Object) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.objects[resource] == nil {
		a.objects[resource] = map[string]Object{}
	}
	a.record(resource, a.objects[resource][nameOf(o)], o)
	a.objects[resource][nameOf(o)] = o
}

// Remove deletes one, if it is there; name is namespace/name.
func (a *API) Remove(resource, name string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if was := a.objects[resource][name]; was != nil {
		delete(a.objects[resource], name)
		a.record(resource, was, nil)
	}
}

// record is called with mu held.
func (a *API) record(resource string, was, now Object) {
	a.version++
	if now != nil {
		now["metadata"].(Object)["resourceVersion"] = strconv.Itoa(a.version)
	}
	a.log = append(a.log, event{a.version, resource, was, now})
	close(a.changed)
	a.changed = make(chan struct{})
}

// ServeHTTP answers a list, a watch, or the question for one node.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) {
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

func (a *API) answer(w http.ResponseWriter, o any) {
	if err := json.NewEncoder(w).Encode(o); err != nil {
		panic(http.ErrAbortHandler) // the client has gone
	}
}

func (a *API) list(w http.ResponseWriter, resource string, query url.Values) {
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
	a.answer(w, Object{"apiVersion": "v1", "kind": "List", "metadata": Object{"resourceVersion": strconv.Itoa(version)}, "items": items})
}

func matches(selector labels.Selector, o Object) bool {
	if o == nil {
		return false
	}
	metadata, _ := o["metadata"].(Object)
	set := labels.Set{}
	all, _ := metadata["labels"].(Object)
	for key, value := range all {
		set[key], _ = value.(string)
	}
	return selector.Matches(set)
}

// watch sends what happened after a version, and on.
func (a *API) watch(ctx context.Context, w http.ResponseWriter, resource string, query url.Values) {
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
				a.answer(w, Object{"type": "MODIFIED", "object": e.now})
			case now:
				a.answer(w, Object{"type": "ADDED", "object": e.now})
			case was:
				a.answer(w, Object{"type": "DELETED", "object": e.was})
			}
		}
		if initial {
			initial = false
			a.answer(w, Object{"type": "BOOKMARK", "object": Object{"apiVersion": apiVersion(resource), "kind": kindOf(resource), "metadata": Object{
				"resourceVersion": strconv.Itoa(version), "annotations": Object{"k8s.io/initial-events-end": "true"},
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

// kinds: resource → apiVersion and kind.
func kinds() map[string][2]string {
	return map[string][2]string{
		"services": {"v1", "Service"}, "nodes": {"v1", "Node"}, "pods": {"v1", "Pod"}, "namespaces": {"v1", "Namespace"},
		"endpointslices": {"discovery.k8s.io/v1", "EndpointSlice"}, "servicecidrs": {"networking.k8s.io/v1", "ServiceCIDR"},
	}
}

func kindOf(resource string) string { return kinds()[resource][1] }

func apiVersion(resource string) string { return kinds()[resource][0] }
