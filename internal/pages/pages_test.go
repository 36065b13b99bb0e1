package pages

import (
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/endpointd/endpointd/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

func TestDropMakesTheProcessSmaller(t *testing.T) {
	touch(t)
	before := filePages(t)
	Drop()
	after := filePages(t)
	if after >= before {
		t.Errorf("%d kB of files before, %d kB after", before, after)
	}
}

// touch reads the program's file through its mapping, so that there is something to drop.
func touch(t *testing.T) {
	t.Helper()
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.ReadFile(program); err != nil {
		t.Fatal(err)
	}
}

func filePages(t *testing.T) int {
	t.Helper()
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, "RssFile:"); ok {
			n, err := strconv.Atoi(strings.Fields(value)[0])
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatal("no RssFile")
	return 0
}

func TestDroppable(t *testing.T) {
	const program = "/opt/my programs/endpointd"
	for line, want := range map[string]bool{
		"00400000-00a00000 r-xp 00000000 fe:00 12 /opt/my programs/endpointd":  true,
		"00a00000-00b00000 r--p 00000000 fe:00 12 /opt/my programs/endpointd":  true,
		"00b00000-00c00000 rw-p 00000000 fe:00 12 /opt/my programs/endpointd":  false,
		"00a00000-00b00000 r--p 00000000 fe:00 12 /opt/my programs/endpointd2": false,
		"c000000000-c000400000 rw-p 00000000 00:00 0":                          false,
		"nonsense":                                false,
		"zz-yy r--p 0 0 0 " + program:             false,
		"00b00000-00a00000 r--p 0 0 0 " + program: false,
		"": false,
	} {
		if _, _, ok := droppable(line, program); ok != want {
			t.Errorf("%q: %v", line, ok)
		}
	}
}
