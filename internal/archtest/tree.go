package archtest

import (
	"bytes"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// maxText is the size in bytes above which a file is taken for data, not for something that people write.
const maxText = 1 << 20

// A Tree is a source tree as the rules see it.
type Tree struct {
	Module   string     // path from the go.mod at its root
	Packages []*Package // sorted by Dir
	Texts    []Text     // every file of text, Go or not, sorted by Path
	Fset     *token.FileSet
}

// A Package is one folder with Go files. The folder is the unit: the external test package belongs to it.
type Package struct {
	Dir   string // slash-separated, from the root of the tree; "." is the root itself
	Name  string
	Files []*File // sorted by Path
}

// A File is one parsed Go file.
type File struct {
	Path      string
	Test      bool // name ends in _test.go
	Generated bool // carries the standard "Code generated … DO NOT EDIT." line
	AST       *ast.File
	Lines     int
}

// A Text is any file that is valid UTF-8 and at most a megabyte.
type Text struct {
	Path    string
	Content []byte
}

// Imports returns the import paths of a file in source order.
func (f *File) Imports() []string {
	paths := make([]string, 0, len(f.AST.Imports))
	for _, spec := range f.AST.Imports {
		if p, err := strconv.Unquote(spec.Path.Value); err == nil {
			paths = append(paths, p)
		}
	}
	return paths
}

// Load reads the tree at the root of fsys, which must hold a go.mod. Build constraints are ignored: a rule
// holds on every platform. Folders named testdata or vendor hold texts, not packages; so does a folder
// with a go.mod of its own (tools).
func Load(fsys fs.FS) (*Tree, error) {
	t := &Tree{Fset: token.NewFileSet()}
	mod, err := fs.ReadFile(fsys, "go.mod")
	if err != nil {
		return nil, fmt.Errorf("load tree: %w", err)
	}
	if t.Module = moduleOf(mod); t.Module == "" {
		return nil, errors.New("load tree: go.mod has no module line")
	}
	packages := map[string]*Package{} // Dir → package
	var foreign []string              // folders whose Go files are not packages of this module
	err = fs.WalkDir(fsys, ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if skipped(p) {
				return fs.SkipDir
			}
			if isForeign(fsys, p) {
				foreign = append(foreign, p+"/")
			}
			return nil
		}
		if !d.Type().IsRegular() {
			return nil
		}
		return t.add(fsys, p, packages, foreign)
	})
	if err != nil {
		return nil, fmt.Errorf("load tree: %w", err)
	}
	for _, p := range packages {
		t.Packages = append(t.Packages, p)
	}
	slices.SortFunc(t.Packages, func(a, b *Package) int { return strings.Compare(a.Dir, b.Dir) })
	return t, nil
}

// add takes one file into the tree.
func (t *Tree) add(fsys fs.FS, p string, packages map[string]*Package, foreign []string) error {
	content, err := fs.ReadFile(fsys, p)
	if err != nil {
		return err
	}
	if len(content) > maxText || !utf8.Valid(content) {
		return nil
	}
	t.Texts = append(t.Texts, Text{Path: p, Content: content})
	inForeign := slices.ContainsFunc(foreign, func(dir string) bool { return strings.HasPrefix(p, dir) })
	if path.Ext(p) != ".go" || inForeign {
		return nil
	}
	file, err := parser.ParseFile(t.Fset, p, content, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return err
	}
	dir := path.Dir(p)
	pkg := packages[dir]
	if pkg == nil {
		pkg = &Package{Dir: dir}
		packages[dir] = pkg
	}
	if pkg.Name == "" || !strings.HasSuffix(p, "_test.go") {
		pkg.Name = strings.TrimSuffix(file.Name.Name, "_test")
	}
	pkg.Files = append(pkg.Files, &File{
		Path:      p,
		Test:      strings.HasSuffix(p, "_test.go"),
		Generated: ast.IsGenerated(file),
		AST:       file,
		Lines:     bytes.Count(content, []byte("\n")),
	})
	return nil
}

// skipped says which folders hold nothing that people write: version control, and what make puts there.
func skipped(dir string) bool {
	switch path.Base(dir) {
	case ".git", ".cache", "bin", "node_modules":
		return true
	}
	return false
}

// isForeign says whether the Go files below dir are no packages of this module.
func isForeign(fsys fs.FS, dir string) bool {
	switch path.Base(dir) {
	case "testdata", "vendor":
		return true
	}
	if dir == "." {
		return false
	}
	_, err := fs.Stat(fsys, path.Join(dir, "go.mod"))
	return err == nil
}

// moduleOf returns the module path of a go.mod, or "".
func moduleOf(mod []byte) string {
	for line := range strings.Lines(string(mod)) {
		if rest, ok := strings.CutPrefix(strings.TrimSpace(line), "module "); ok {
			return strings.TrimSpace(rest)
		}
	}
	return ""
}
