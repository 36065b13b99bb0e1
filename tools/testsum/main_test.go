package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestCounter(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name   string
		events []string
		want   counts
		prints []string // in the output
		hides  []string // not in the output
	}{
		{
			name: "pass, skip and a package line",
			events: []string{
				`{"Action":"run","Package":"p","Test":"A"}`,
				`{"Action":"output","Package":"p","Test":"A","Output":"secret\n"}`,
				`{"Action":"pass","Package":"p","Test":"A"}`,
				`{"Action":"run","Package":"p","Test":"B"}`,
				`{"Action":"skip","Package":"p","Test":"B"}`,
				`{"Action":"output","Package":"p","Output":"PASS\n"}`,
				`{"Action":"output","Package":"p","Output":"ok  \tp\t0.1s\n"}`,
				`{"Action":"pass","Package":"p"}`,
			},
			want:   counts{passed: 1, skipped: 1},
			prints: []string{"ok  \tp\t0.1s\n"},
			hides:  []string{"secret", "PASS"},
		},
		{
			name: "a parent counts as its subtests",
			events: []string{
				`{"Action":"run","Package":"p","Test":"A"}`,
				`{"Action":"run","Package":"p","Test":"A/x"}`,
				`{"Action":"run","Package":"p","Test":"A/y"}`,
				`{"Action":"output","Package":"p","Test":"A/y","Output":"why\n"}`,
				`{"Action":"pass","Package":"p","Test":"A/x"}`,
				`{"Action":"fail","Package":"p","Test":"A/y"}`,
				`{"Action":"fail","Package":"p","Test":"A"}`,
				`{"Action":"fail","Package":"p"}`,
			},
			want:   counts{passed: 1, failed: 1},
			prints: []string{"why\n"},
		},
		{
			name: "a parent that fails by itself",
			events: []string{
				`{"Action":"run","Package":"p","Test":"A"}`,
				`{"Action":"run","Package":"p","Test":"A/x"}`,
				`{"Action":"pass","Package":"p","Test":"A/x"}`,
				`{"Action":"fail","Package":"p","Test":"A"}`,
				`{"Action":"fail","Package":"p"}`,
			},
			want: counts{passed: 1, failed: 1},
		},
		{
			name: "a package that does not compile",
			events: []string{
				`{"ImportPath":"p [p.test]","Action":"build-output","Output":"undefined: x\n"}`,
				`{"ImportPath":"p [p.test]","Action":"build-fail"}`,
				`{"Action":"output","Package":"p","Output":"FAIL\tp [build failed]\n"}`,
				`{"Action":"fail","Package":"p","FailedBuild":"p [p.test]"}`,
			},
			want:   counts{failed: 1},
			prints: []string{"undefined: x\n", "[build failed]"},
		},
		{
			name: "a package whose tests pass and whose TestMain fails",
			events: []string{
				`{"Action":"run","Package":"p","Test":"A"}`,
				`{"Action":"pass","Package":"p","Test":"A"}`,
				`{"Action":"output","Package":"p","Output":"goroutines outlive the tests\n"}`,
				`{"Action":"fail","Package":"p"}`,
			},
			want:   counts{passed: 1, failed: 1},
			prints: []string{"goroutines outlive"},
		},
		{
			name:   "words that are no event",
			events: []string{`go: cannot find main module`},
			prints: []string{"cannot find main module"},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			var out bytes.Buffer
			c := counter{out: &out}
			if err := c.read(strings.NewReader(strings.Join(test.events, "\n"))); err != nil {
				t.Fatal(err)
			}
			if c.counts != test.want {
				t.Errorf("counted %+v, want %+v", c.counts, test.want)
			}
			for _, text := range test.prints {
				if !strings.Contains(out.String(), text) {
					t.Errorf("output %q lacks %q", out.String(), text)
				}
			}
			for _, text := range test.hides {
				if strings.Contains(out.String(), text) {
					t.Errorf("output %q has %q", out.String(), text)
				}
			}
		})
	}
}

func TestSumOfRuns(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "counts")
	if total, err := readCounts(path); err != nil || total.String() != "0 passed, 0 failed" {
		t.Errorf("no file: %v, %v", total, err)
	}
	if err := os.WriteFile(path, []byte("3 0 1\n4 2 0\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if total, err := readCounts(path); err != nil || total.String() != "7 passed, 2 failed, 1 skipped" {
		t.Errorf("two runs: %v, %v", total, err)
	}
	if err := os.WriteFile(path, []byte("3 0 1\nx\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := readCounts(path); err == nil {
		t.Error("a broken file gives no error")
	}
}
