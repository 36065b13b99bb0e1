package prober

import (
	"bufio"
	"fmt"
	"os"
	"strings"
	"testing"
)

// timeWaits counts our sockets in TIME_WAIT to a port.
func timeWaits(t *testing.T, port uint16) int {
	t.Helper()
	t.Helper()
	f, err := os.Open("/proc/self/net/tcp")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	n := 0
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) > 3 && fields[3] == "06" && strings.HasSuffix(fields[2], fmt.Sprintf(":%04X", port)) {
			n++
		}
	}
	return n
}
