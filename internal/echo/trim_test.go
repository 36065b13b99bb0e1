package echo

import (
	"os"
	"strconv"
	"strings"
	"testing"
)

// fileRSS is how much of files is mapped and resident, in KiB.
func fileRSS(t *testing.T) int {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(status), "RssFile:")
	n, err := strconv.Atoi(strings.Fields(after)[0])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestTrimLetsGoOfTheFileAndLosesNothing(t *testing.T) {
	before := fileRSS(t)
	trim()
	if after := fileRSS(t); after > before*3/4 {
		t.Errorf("%d KiB of the program's file are resident, before it was %d", after, before)
	}
	s := serve(t)
	s.want(t, "/", 200)
}
