package testkit

import (
	"errors"
	"flag"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// update is the one flag of all golden files; the flag package needs it before main, and only [Golden] reads it.
var update = flag.Bool("update", false, "write what the tests got into their golden files")

// Golden compares got with the file testdata/<name>. With `go test -update` it writes the file instead, so
// that the change shows up in review.
func Golden(t testing.TB, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", filepath.FromSlash(name))
	if *update {
		if err := writeGolden(path, got); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff, err := compareGolden(path, got); err != nil {
		t.Fatal(err)
	} else if diff != "" {
		t.Errorf("%s differs (-want +got); if the new text is right, run the test with -update:\n%s", path, diff)
	}
}

func compareGolden(path string, got []byte) (diff string, err error) {
	want, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", errors.New(path + " does not exist; run the test with -update to write it")
	}
	if err != nil {
		return "", err
	}
	// Lines, because a diff of two long strings cannot be read.
	return cmp.Diff(strings.Split(string(want), "\n"), strings.Split(string(got), "\n")), nil
}

func writeGolden(path string, got []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, got, 0o644)
}
