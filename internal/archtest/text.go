package archtest

import (
	"bytes"
	"path"
	"regexp"
	"strings"
)

// lineLinks finds references to a line of a file in documents and comments. The next edit makes them wrong.
func lineLinks(t *Tree) []Finding {
	link := regexp.MustCompile(`\.(?:go|c|h|md|sh|ya?ml|txt|proto)(?::|#L)[0-9]+`)
	var found []Finding
	report := func(path string, text []byte) {
		for _, match := range link.FindAll(text, -1) {
			found = append(found, findingf(path, "…%s points at a line, which moves; "+
				"name the symbol or the section title", match))
		}
	}
	for _, text := range t.Texts {
		if path.Ext(text.Path) == ".md" && !inTestdata(text.Path) {
			report(text.Path, text.Content)
		}
	}
	for _, pkg := range t.Packages {
		for _, file := range pkg.Files {
			for _, group := range file.AST.Comments {
				report(file.Path, []byte(group.Text()))
			}
		}
	}
	return sorted(found)
}

// registryHosts finds the host of a package registry in any file. Where modules and packages come from is
// the business of the machine that builds, which may have a mirror or no network at all.
func registryHosts(t *Tree) []Finding {
	var found []Finding
	for _, text := range t.Texts {
		for _, host := range hosts() {
			if bytes.Contains(text.Content, []byte(host)) {
				found = append(found, findingf(text.Path, "names the package registry %s; leave that to the settings "+
					"of the machine (go env, apt sources, npm config)", host))
			}
		}
	}
	return sorted(found)
}

// hosts returns the registries' hosts, joined here so that this file keeps its own rule.
func hosts() []string {
	labels := [][]string{
		{"proxy", "golang", "org"},
		{"sum", "golang", "org"},
		{"goproxy", "io"},
		{"goproxy", "cn"},
		{"deb", "debian", "org"},
		{"archive", "ubuntu", "com"},
		{"registry", "npmjs", "org"},
		{"files", "pythonhosted", "org"},
		{"pypi", "org"},
		{"static", "crates", "io"},
		{"rubygems", "org"},
		{"repo", "maven", "apache", "org"},
	}
	hosts := make([]string, len(labels))
	for i, l := range labels {
		hosts[i] = strings.Join(l, ".")
	}
	return hosts
}

func inTestdata(p string) bool {
	return strings.HasPrefix(p, "testdata/") || strings.Contains(p, "/testdata/")
}
