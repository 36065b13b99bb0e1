package archtest

import (
	"go/ast"
	"regexp"
	"slices"
	"strings"
)

const (
	// maxLines is where a file most likely holds a second concept that deserves its own name.
	maxLines = 500
	// mapPath is the page that lists every package.
	mapPath = "docs/architecture.md"
)

// packageComments wants exactly one package comment in each folder.
func packageComments(t *Tree) []Finding {
	var found []Finding
	for _, pkg := range t.Packages {
		var with []string // files that carry a comment
		for _, file := range pkg.Files {
			if file.AST.Doc != nil && strings.TrimSpace(file.AST.Doc.Text()) != "" {
				with = append(with, file.Path)
			}
		}
		switch {
		case len(with) == 0:
			found = append(found, findingf(pkg.Dir, "no package comment; say what it is, what flows in and out, "+
				"its invariants, what it refuses and how to test it"))
		case len(with) > 1:
			found = append(found, findingf(pkg.Dir, "package comments in %s; keep one, go doc joins them",
				strings.Join(with, " and ")))
		}
	}
	return sorted(found)
}

// packageNames refuses names that say nothing about what is inside.
func packageNames(t *Tree) []Finding {
	banned := []string{
		"util", "utils", "common", "helper", "helpers", "types", "base", "manager", "misc", "shared", "lib",
	}
	var found []Finding
	for _, pkg := range t.Packages {
		if slices.Contains(banned, pkg.Name) {
			found = append(found, findingf(pkg.Dir, "package name %s says nothing; name it for what it provides, "+
				"or put the code beside its caller", pkg.Name))
		}
	}
	return sorted(found)
}

// packageMap wants one row for each package in the table of docs/architecture.md, and no row for a package that is gone.
func packageMap(t *Tree) []Finding {
	row := regexp.MustCompile("(?m)^\\| `([a-z0-9/_.-]+)` \\|")
	i := slices.IndexFunc(t.Texts, func(f Text) bool { return f.Path == mapPath })
	if i < 0 {
		return []Finding{findingf(mapPath, "is missing; it lists every package with one line")}
	}
	var listed []string
	for _, match := range row.FindAllSubmatch(t.Texts[i].Content, -1) {
		listed = append(listed, string(match[1]))
	}
	var found []Finding
	for _, pkg := range t.Packages {
		if !slices.Contains(listed, pkg.Dir) {
			found = append(found, findingf(pkg.Dir, "is not in the table of %s; add a row that begins \"| `%s` |\" "+
				"and says in one line what it does", mapPath, pkg.Dir))
		}
	}
	for _, dir := range listed {
		if !slices.ContainsFunc(t.Packages, func(p *Package) bool { return p.Dir == dir }) {
			found = append(found, findingf(mapPath, "lists `%s`, where no package is; remove the row", dir))
		}
	}
	return sorted(found)
}

// fileSizes finds files that are too long, and exceptions in allowed (path → reason) that are not needed any more.
func fileSizes(t *Tree, allowed map[string]string) []Finding {
	var found []Finding
	long := map[string]bool{}
	for _, pkg := range t.Packages {
		for _, file := range pkg.Files {
			if file.Test || file.Generated || file.Lines <= maxLines {
				continue
			}
			long[file.Path] = true
			if allowed[file.Path] == "" {
				found = append(found, findingf(file.Path, "has %d lines, more than %d; give the second concept in it "+
					"its own file, or add the file with a reason to longFiles in internal/archtest", file.Lines, maxLines))
			}
		}
	}
	for path := range allowed {
		if !long[path] {
			found = append(found, findingf(path, "is in longFiles in internal/archtest, but is not long; remove the entry"))
		}
	}
	return sorted(found)
}

// testSleeps finds time.Sleep in tests.
func testSleeps(t *Tree) []Finding {
	var found []Finding
	for _, pkg := range t.Packages {
		for _, file := range pkg.Files {
			name := importName(file, "time")
			if !file.Test || name == "" {
				continue
			}
			ast.Inspect(file.AST, func(n ast.Node) bool {
				sel, ok := n.(*ast.SelectorExpr)
				if !ok || sel.Sel.Name != "Sleep" {
					return true
				}
				if x, ok := sel.X.(*ast.Ident); ok && x.Name == name {
					found = append(found, findingf(file.Path, "time.Sleep in a test is slow and still a race; "+
						"wait for the thing itself with testkit.Await, a watch or testing/synctest"))
				}
				return true
			})
		}
	}
	return sorted(found)
}

// inits refuses func init but in the places that need it before main, and says why they do.
func inits(t *Tree) []Finding {
	allowed := map[string]string{ // folder → reason
		"internal/reexec":               "a pod's process takes over before Kubernetes initialises",
		"internal/reexec/late":          "the echo server does so as soon as package net can",
		"internal/apiserver/etcd/quiet": "a logger of etcd is made while Kubernetes initialises",
	}
	var found []Finding
	for _, pkg := range t.Packages {
		if _, ok := allowed[pkg.Dir]; ok {
			continue
		}
		for _, file := range pkg.Files {
			if slices.ContainsFunc(file.AST.Decls, isInit) {
				found = append(found, findingf(file.Path, "func init runs in every process of endpointd, also in those that stand for "+
					"a pod, in an order that nobody reads; call it from where it is needed"))
			}
		}
	}
	return sorted(found)
}

func isInit(d ast.Decl) bool {
	f, ok := d.(*ast.FuncDecl)
	return ok && f.Recv == nil && f.Name.Name == "init"
}

// importName returns the name under which a file knows a standard package, or "".
func importName(f *File, path string) string {
	for _, spec := range f.AST.Imports {
		if spec.Path.Value != `"`+path+`"` {
			continue
		}
		if spec.Name != nil {
			return spec.Name.Name
		}
		return path
	}
	return ""
}
