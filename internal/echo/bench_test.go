package echo

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

// BenchmarkProcess measures a whole process: from exec to the first answer, and the memory that it keeps resident after one
// request and after 2,000, 50 of them at once. `go test -run - -bench Process ./internal/echo`; the test binary is a little larger than
// the server alone.
func BenchmarkProcess(b *testing.B) {
	var ready time.Duration
	var first, loaded int
	for b.Loop() {
		began := time.Now()
		cmd, out := process(b, "--http=127.0.0.1:0", "--tcp=127.0.0.1:0")
		at := listening(b, out)
		ask(b, at)
		ready += time.Since(began)
		first += resident(b, cmd.Process.Pid)
		done := make(chan struct{})
		const clients = 50
		for range clients {
			go func() {
				for range 40 {
					ask(b, at)
				}
				done <- struct{}{}
			}()
		}
		for range clients {
			<-done
		}
		loaded += resident(b, cmd.Process.Pid)
		if err := cmd.Process.Signal(os.Interrupt); err != nil {
			b.Fatal(err)
		}
		if err := cmd.Wait(); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(ready.Microseconds())/float64(b.N)/1000, "ms-to-answer")
	b.ReportMetric(float64(first)/float64(b.N)/1024, "MB-idle")
	b.ReportMetric(float64(loaded)/float64(b.N)/1024, "MB-loaded")
}

func listening(b *testing.B, out *output) string {
	b.Helper()
	for {
		out.mu.Lock()
		text, changed := out.text.String(), out.changed
		out.mu.Unlock()
		if _, after, found := strings.Cut(text, "http="); found {
			at, _, _ := strings.Cut(after, " ")
			return at
		}
		<-changed
	}
}

// ask makes one request on a connection of its own.
func ask(b *testing.B, at string) {
	conn, err := net.Dial("tcp", at)
	if err != nil {
		b.Error(err)
		return
	}
	defer func() { _ = conn.Close() }()
	fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil || resp.StatusCode != http.StatusOK {
		b.Errorf("%v %v", resp, err)
		return
	}
	_ = resp.Body.Close()
}

// resident is VmRSS in KiB.
func resident(b *testing.B, pid int) int {
	b.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		b.Fatal(err)
	}
	_, after, _ := strings.Cut(string(status), "VmRSS:")
	n, err := strconv.Atoi(strings.Fields(after)[0])
	if err != nil {
		b.Fatal(err)
	}
	return n
}
