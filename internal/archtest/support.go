package archtest

import (
	"path"
	"strings"
)

// testSupport keeps test helpers out of the program: only tests, the tree below test/ and packages that are
// test support themselves import them. By Go's own custom (httptest, iotest), such a package ends in "test".
func testSupport(t *Tree) []Finding {
	var found []Finding
	for _, pkg := range t.Packages {
		if isSupport(pkg.Dir) || under(pkg.Dir, []string{"test"}) {
			continue
		}
		for _, file := range pkg.Files {
			if file.Test {
				continue
			}
			for _, imported := range file.Imports() {
				if imported == "testing" || imported == "go.uber.org/goleak" || isSupport(imported) {
					found = append(found, findingf(file.Path, "must not import %s: the program would carry test helpers; "+
						"move the code to a _test.go file, or to a package whose name ends in test", imported))
				}
			}
		}
	}
	return sorted(found)
}

// isSupport says whether a folder or an import path is a package of helpers for tests.
func isSupport(p string) bool {
	name := path.Base(p)
	return name == "testkit" || strings.HasSuffix(name, "test")
}
