// Command testsum stands behind `go test -json`: it prints what go test prints without -json, and counts.
//
// In comes the stream of test events, out go the package lines and the output of failed tests; the counts
// are added to a file, so that several runs of go test end in one sum. A test with subtests counts as its
// subtests; a package that fails without a failed test (it does not compile, or leaks) counts as one failure.
// Its exit code is 1 if anything failed. How to test: go test -C tools ./testsum.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
)

func main() {
	add := flag.String("add", "", "read events from standard input and add the counts to this `file`")
	sum := flag.String("sum", "", "print the sum of the counts in this `file`")
	verbose := flag.Bool("v", false, "print the output of passed tests too")
	flag.Parse()
	if err := run(*add, *sum, *verbose); err != nil {
		fmt.Fprintln(os.Stderr, "testsum:", err)
		os.Exit(1)
	}
}

func run(add, sum string, verbose bool) error {
	if sum != "" {
		total, err := readCounts(sum)
		if err != nil {
			return err
		}
		fmt.Println(total)
		return nil
	}
	if add == "" {
		return errors.New("one of -add and -sum is needed")
	}
	c := counter{out: os.Stdout, verbose: verbose}
	if err := c.read(os.Stdin); err != nil {
		return err
	}
	file, err := os.OpenFile(add, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(file, c.passed, c.failed, c.skipped)
	if err := errors.Join(err, file.Close()); err != nil {
		return err
	}
	if c.failed > 0 {
		return fmt.Errorf("%d failed", c.failed)
	}
	return nil
}

// counts are numbers of tests.
type counts struct{ passed, failed, skipped int }

func (c counts) String() string {
	line := fmt.Sprintf("%d passed, %d failed", c.passed, c.failed)
	if c.skipped > 0 {
		line += fmt.Sprintf(", %d skipped", c.skipped)
	}
	return line
}

func readCounts(path string) (counts, error) {
	file, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return counts{}, nil // nothing ran
	}
	if err != nil {
		return counts{}, err
	}
	defer func() { _ = file.Close() }() // only read
	var total, one counts
	for {
		_, err := fmt.Fscanln(file, &one.passed, &one.failed, &one.skipped)
		if errors.Is(err, io.EOF) {
			return total, nil
		}
		if err != nil {
			return counts{}, fmt.Errorf("%s: %w", path, err)
		}
		total.passed += one.passed
		total.failed += one.failed
		total.skipped += one.skipped
	}
}

// event is one line of `go test -json` (go doc test2json).
type event struct {
	Action, Package, ImportPath, Test, Output string
}

type key struct{ pkg, test string }

type counter struct {
	counts
	out     io.Writer
	verbose bool
	output  map[key]*strings.Builder // test → what it printed, until it ends
	parents map[key]int              // test with subtests → how many of them failed
	broken  map[string]bool          // packages with a failed test
}

func (c *counter) read(in io.Reader) error {
	c.output, c.parents, c.broken = map[key]*strings.Builder{}, map[key]int{}, map[string]bool{}
	lines := bufio.NewReader(in) // no Scanner: a line of output may be long
	for {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			var e event
			if json.Unmarshal(line, &e) != nil {
				fmt.Fprint(c.out, string(line)) // not an event: go test's own words
			} else {
				c.take(e)
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (c *counter) take(e event) {
	k := key{e.Package, e.Test}
	switch e.Action {
	case "run":
		c.output[k] = &strings.Builder{}
		if i := strings.LastIndexByte(e.Test, '/'); i >= 0 {
			c.parents[key{e.Package, e.Test[:i]}] += 0
		}
	case "build-output":
		fmt.Fprint(c.out, e.Output)
	case "output":
		if b := c.output[k]; b != nil && !c.verbose {
			b.WriteString(e.Output)
		} else if e.Output != "PASS\n" {
			fmt.Fprint(c.out, e.Output)
		}
	case "pass", "fail", "skip":
		c.end(e.Action, k)
	}
}

// end counts a test, or a package if it has no test's name.
func (c *counter) end(action string, k key) {
	if k.test == "" {
		if action == "fail" && !c.broken[k.pkg] {
			c.failed++
		}
		return
	}
	if b := c.output[k]; b != nil && action == "fail" {
		fmt.Fprint(c.out, b.String())
	}
	delete(c.output, k)
	failedSubtests, isParent := c.parents[k]
	if action == "fail" {
		c.broken[k.pkg] = true
		if i := strings.LastIndexByte(k.test, '/'); i >= 0 {
			c.parents[key{k.pkg, k.test[:i]}]++
		}
	}
	switch {
	case action == "fail" && failedSubtests == 0:
		c.failed++
	case isParent: // its subtests are counted
	case action == "pass":
		c.passed++
	case action == "skip":
		c.skipped++
	}
}
