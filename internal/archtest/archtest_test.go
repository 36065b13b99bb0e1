package archtest

import (
	"bytes"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
)

// TestRepository applies every rule to this repository.
func TestRepository(t *testing.T) {
	t.Parallel()
	tree, err := Load(os.DirFS(filepath.Join("..", "..")))
	if err != nil {
		t.Fatal(err)
	}
	// A walk that went wrong must not pass for a clean tree.
	if !slices.ContainsFunc(tree.Packages, func(p *Package) bool { return p.Dir == "internal/archtest" }) {
		t.Fatalf("read %d packages, but not this one", len(tree.Packages))
	}
	for _, rule := range Rules() {
		t.Run(rule.Name, func(t *testing.T) {
			for _, finding := range rule.Check(tree) {
				t.Error(finding)
			}
		})
	}
}

// TestRulesCanFail runs each rule on its fixture, a tree that breaks it and keeps it in the places right
// beside. In testdata/<rule>, each file F.txt is the file F, and want.txt holds the paths of the findings.
func TestRulesCanFail(t *testing.T) {
	t.Parallel()
	for _, rule := range Rules() {
		t.Run(rule.Name, func(t *testing.T) {
			fixture, want := readFixture(t, filepath.Join("testdata", rule.Name))
			if len(want) == 0 {
				t.Fatal("want.txt names no finding; a rule needs a fixture that breaks it")
			}
			tree, err := Load(fixture)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, finding := range rule.Check(tree) {
				got = append(got, finding.Path)
				t.Log(finding)
			}
			if !slices.Equal(got, want) {
				t.Errorf("findings in %q, want %q", got, want)
			}
		})
	}
}

// TestEveryFixtureHasARule keeps testdata from outliving its rules.
func TestEveryFixtureHasARule(t *testing.T) {
	t.Parallel()
	dirs, err := os.ReadDir("testdata")
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range dirs {
		if !slices.ContainsFunc(Rules(), func(r Rule) bool { return r.Name == dir.Name() }) {
			t.Errorf("testdata/%s belongs to no rule", dir.Name())
		}
	}
}

func TestFileSizeExceptions(t *testing.T) {
	t.Parallel()
	fixture, _ := readFixture(t, filepath.Join("testdata", "file-size"))
	tree, err := Load(fixture)
	if err != nil {
		t.Fatal(err)
	}
	got := fileSizes(tree, map[string]string{
		"internal/long/long.go":  "a table",
		"internal/long/short.go": "was long once",
	})
	if len(got) != 1 || got[0].Path != "internal/long/short.go" {
		t.Errorf("findings %v, want one for the exception that is not needed", got)
	}
}

// readFixture returns the tree of a fixture and the paths in its want.txt. The two words that no file of
// this repository may hold, a registry's host and a file of 501 lines, are filled in here.
func readFixture(t *testing.T, dir string) (fstest.MapFS, []string) {
	t.Helper()
	tree := fstest.MapFS{"go.mod": {Data: []byte("module example.test/m\n")}}
	var want []string
	root := os.DirFS(dir)
	err := fs.WalkDir(root, ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		content, err := fs.ReadFile(root, p)
		if err != nil {
			return err
		}
		if p == "want.txt" {
			want = strings.Fields(string(content))
			return nil
		}
		content = bytes.ReplaceAll(content, []byte("REGISTRY-HOST"), []byte(hosts()[0]))
		content = bytes.ReplaceAll(content, []byte("// 500 LINES\n"), bytes.Repeat([]byte("// line\n"), 500))
		tree[strings.TrimSuffix(p, path.Ext(p))] = &fstest.MapFile{Data: content}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return tree, want
}
