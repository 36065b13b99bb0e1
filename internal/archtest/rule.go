package archtest

import (
	"cmp"
	"fmt"
	"slices"
)

// A Rule is one law of the repository.
type Rule struct {
	Name  string // also the name of its fixture folder under testdata
	Check func(*Tree) []Finding
}

// A Finding is one place that breaks a rule.
type Finding struct {
	Path string // the file or folder
	Text string // what is wrong, why it matters and what to do instead
}

func (f Finding) String() string { return f.Path + ": " + f.Text }

// Rules returns all of them, in the order in which they are reported.
func Rules() []Rule {
	rules := []Rule{
		{"package-comment", packageComments},
		{"package-name", packageNames},
		{"package-map", packageMap},
		{"file-size", func(t *Tree) []Finding { return fileSizes(t, longFiles()) }},
		{"line-links", lineLinks},
		{"test-sleep", testSleeps},
		{"init", inits},
		{"registry-host", registryHosts},
		{"import-testkit", testSupport},
	}
	for _, law := range importLaws() {
		rules = append(rules, Rule{law.name, law.check})
	}
	return rules
}

// longFiles returns path → reason for the files that may be longer than maxLines. A table is a good reason.
func longFiles() map[string]string {
	return map[string]string{}
}

// sorted puts findings into a stable order, so that two runs print the same.
func sorted(found []Finding) []Finding {
	slices.SortFunc(found, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(a.Path, b.Path), cmp.Compare(a.Text, b.Text))
	})
	return found
}

func findingf(path, format string, args ...any) Finding {
	return Finding{Path: path, Text: fmt.Sprintf(format, args...)}
}
