package archtest

import (
	"slices"
	"strings"
)

// An importLaw says which packages may import what. Folders match with everything below them.
//
// A law is one of two kinds. With only, no folder outside only may import a banned path; without it, the
// law binds the folders in from. Allowed paths are exceptions to banned ones.
type importLaw struct {
	name     string
	from     []string // folders that the law binds; nil with only
	only     []string // the only folders that may import what is banned
	banned   []string // import paths, with everything below them; "./x" is folder x of this module
	allowed  []string // exceptions to banned
	reaching bool     // also through other packages of this module
	untested bool     // imports of _test.go files are free
	why      string   // one clause: the reason
	instead  string   // one clause: the way out
}

// importLaws are laws 1 and 2 of docs/architecture.md and what keeps the fast half of the tree fast.
func importLaws() []importLaw {
	return []importLaw{
		{
			name:   "import-kubernetes",
			only:   []string{"internal/apiserver", "internal/controller/workload", "test/bench"},
			banned: []string{"k8s.io/kubernetes"},
			why:    "it takes minutes to compile and drags the whole of Kubernetes in",
			instead: "use k8s.io/api, apimachinery and client-go, or move the code to internal/apiserver " +
				"or internal/controller/workload",
		},
		{
			name: "reach-kubernetes",
			only: []string{
				"internal/apiserver", "internal/controller/workload", "test",
				"internal/app", "internal/cli", "cmd",
			},
			banned:   []string{"k8s.io/kubernetes", "k8s.io/apiserver"},
			reaching: true,
			why:      "packages that reach it are not in `make quick`, so their tests become slow",
			instead:  "talk to the API through client-go, or take a small interface that internal/app fills in",
		},
		{
			name: "import-etcd",
			only: []string{"internal/apiserver", "test"}, banned: []string{"go.etcd.io"},
			why:     "law 1: state is written through the API only",
			instead: "use a client of the API",
		},
		{
			name: "import-client",
			only: []string{
				"internal/apiserver", "internal/controller", "internal/node", "internal/app", "internal/cli",
				"internal/testkit", "test",
			},
			banned:   []string{"k8s.io/client-go"},
			untested: true,
			why:      "law 1: only controllers, the node agent and API clients write",
			instead:  "read the model.Snapshot, and leave writing to a controller",
		},
		{
			name:    "import-model",
			from:    []string{"internal/model"},
			banned:  []string{"k8s.io"},
			allowed: []string{"k8s.io/api", "k8s.io/apimachinery"},
			why:     "law 2: model translates API types into plain values, purely",
			instead: "pass objects in; watching and writing belong to internal/app and the controllers",
		},
		{
			name:     "import-dataplane",
			from:     []string{"internal/dataplane", "internal/dns"},
			banned:   []string{"k8s.io"},
			untested: true, // they make Snapshots of API objects
			why:      "law 2: policy is resolved once, in model, so that no proxier or DNS answer holds any",
			instead:  "read the model.Snapshot; if it lacks something, add it to model",
		},
		{
			name: "import-controller", from: []string{"internal/controller"},
			banned:   []string{"./internal/apiserver", "./internal/dataplane", "./internal/dns", "./internal/node"},
			untested: true,
			why:      "law 1: controllers know the API and nothing behind or beyond it",
			instead:  "use client-go; internal/app wires the parts together",
		},
		{
			name:    "import-app",
			only:    []string{"internal/app", "internal/cli", "cmd", "test"},
			banned:  []string{"./internal/app", "./internal/cli"},
			why:     "app and cli are the top of the tree: they import the parts, not the other way round",
			instead: "take what you need as an argument",
		},
	}
}

// check applies the law to every file of the tree.
func (l importLaw) check(t *Tree) []Finding {
	graph := map[string][]string{} // folder → what its non-test files import
	if l.reaching {
		graph = t.graph()
	}
	var found []Finding
	for _, pkg := range t.Packages {
		if !l.binds(pkg.Dir) {
			continue
		}
		for _, file := range pkg.Files {
			if file.Test && l.untested {
				continue
			}
			for _, imported := range file.Imports() {
				chain := l.offence(t, graph, imported, map[string]bool{})
				if chain == nil {
					continue
				}
				found = append(found, findingf(file.Path, "must not import %s: %s; %s",
					strings.Join(chain, " → "), l.why, l.instead))
			}
		}
	}
	return sorted(found)
}

func (l importLaw) binds(dir string) bool {
	if l.only != nil {
		return !under(dir, l.only)
	}
	return under(dir, l.from)
}

// offence returns the chain of imports that leads to a banned path, or nil.
func (l importLaw) offence(t *Tree, graph map[string][]string, imported string, seen map[string]bool) []string {
	name := imported
	dir, own := strings.CutPrefix(imported, t.Module+"/")
	if own {
		name = "./" + dir
	}
	if under(name, l.banned) && !under(name, l.allowed) {
		return []string{strings.TrimPrefix(name, "./")}
	}
	if !own || !l.reaching || seen[dir] {
		return nil
	}
	seen[dir] = true
	for _, next := range graph[dir] {
		if chain := l.offence(t, graph, next, seen); chain != nil {
			return append([]string{dir}, chain...)
		}
	}
	return nil
}

// graph returns folder → the import paths of its non-test files.
func (t *Tree) graph() map[string][]string {
	graph := map[string][]string{}
	for _, pkg := range t.Packages {
		for _, file := range pkg.Files {
			if !file.Test {
				graph[pkg.Dir] = append(graph[pkg.Dir], file.Imports()...)
			}
		}
	}
	return graph
}

// under says whether p is one of the roots or lies below one.
func under(p string, roots []string) bool {
	return slices.ContainsFunc(roots, func(root string) bool {
		return p == root || strings.HasPrefix(p, root+"/")
	})
}
