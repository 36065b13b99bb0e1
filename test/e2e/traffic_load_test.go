package e2e

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// A request is one that a load sent. Times are of the machine's clock, which all network namespaces share.
type request struct {
	began, ended time.Time
	pod          string // who answered; "" = nobody
	failure      string // why nobody did
}

// A load is requests to a URL, from a node or from inside a pod, one connection each or kept connections, until it is ended.
type load struct {
	t    *testing.T
	cmd  *exec.Cmd
	in   io.WriteCloser
	name string
	read chan struct{} // closed when out is complete
	out  bytes.Buffer
	err  error // of reading out
}

// loadPatience is how long a request of a load may take.
const loadPatience = 5 * time.Second

// helperTraffic is the other side of [load]: it sends requests with a number of workers, each with a pause between two, until in ends, and
// then prints them.
func helperTraffic(args []string, in io.Reader, out io.Writer) error {
	url, keep := args[0], args[1] == "kept"
	workers, err := strconv.Atoi(args[2])
	if err != nil {
		return err
	}
	pause, err := time.ParseDuration(args[3])
	if err != nil {
		return err
	}
	over := make(chan struct{})
	lists := make([][]request, workers)
	var work sync.WaitGroup
	for i := range workers {
		work.Go(func() {
			client := &http.Client{Timeout: loadPatience, Transport: &http.Transport{DisableKeepAlives: !keep}}
			tick := time.NewTicker(pause)
			defer tick.Stop()
			for {
				select {
				case <-over:
					return
				case <-tick.C:
					lists[i] = append(lists[i], send(client, url))
				}
			}
		})
	}
	_, _ = fmt.Fprintln(out, "begun")
	_, err = io.Copy(io.Discard, in)
	close(over)
	work.Wait()
	buffered := bufio.NewWriter(out)
	for _, list := range lists {
		for _, r := range list {
			fmt.Fprintf(buffered, "%d %d %q %q\n", r.began.UnixNano(), r.ended.UnixNano(), r.pod, r.failure)
		}
	}
	if err != nil {
		return err
	}
	return buffered.Flush()
}

// send sends one request to an echo server.
func send(client *http.Client, url string) request {
	r := request{began: time.Now()}
	answer, err := client.Get(url)
	if err == nil {
		var text []byte
		text, err = io.ReadAll(answer.Body)
		_ = answer.Body.Close()
		r.pod, _, _ = strings.Cut(string(text), "\n")
		if err == nil && answer.StatusCode != http.StatusOK {
			err = fmt.Errorf("status %s", answer.Status)
		}
	}
	r.ended = time.Now()
	if err != nil {
		r.failure = err.Error()
	}
	return r
}

// load starts one from a node; with a pod's name, from inside that pod.
func (n *nodes) load(node, pod, url string, kept bool, workers int, pause time.Duration) *load {
	n.Helper()
	mode := "new"
	if kept {
		mode = "kept"
	}
	command := []string{self(n.T), helperArg, "traffic", url, mode, strconv.Itoa(workers), pause.String()}
	l := &load{t: n.T, read: make(chan struct{}), name: fmt.Sprintf("from %s%s, %s connections", node, pod, mode)}
	if pod != "" {
		l.cmd = n.u.Command(append([]string{"kubectl", "--kubeconfig", n.u.Server().Kubeconfig, "exec", "-i", "-n", n.name, pod, "--"}, command...)...)
	} else {
		l.cmd = n.u.Command(n.u.ExecArgs(node, command...)...)
	}
	var err error
	l.in, err = l.cmd.StdinPipe()
	check(n.T, err)
	out, err := l.cmd.StdoutPipe()
	check(n.T, err)
	l.cmd.Stderr = os.Stderr
	check(n.T, l.cmd.Start())
	reader := bufio.NewReader(out)
	if line, err := reader.ReadString('\n'); err != nil || line != "begun\n" {
		n.Fatalf("load %s: %q, %v", l.name, line, err)
	}
	go func() {
		defer close(l.read)
		_, l.err = io.Copy(&l.out, reader)
	}()
	n.Cleanup(func() { // also of a test that has failed in between
		_ = l.in.Close()
		<-l.read
		_ = l.cmd.Wait()
	})
	return l
}

// end ends the load and returns its requests in the order in which they began.
func (l *load) end() []request {
	l.t.Helper()
	check(l.t, l.in.Close())
	<-l.read
	check(l.t, l.err)
	var all []request
	for line := range strings.Lines(l.out.String()) {
		var began, ended int64
		var r request
		if _, err := fmt.Sscanf(line, "%d %d %q %q", &began, &ended, &r.pod, &r.failure); err != nil {
			l.t.Fatalf("load %s: %q: %v", l.name, line, err)
		}
		r.began, r.ended = time.Unix(0, began), time.Unix(0, ended)
		all = append(all, r)
	}
	slices.SortFunc(all, func(a, b request) int { return a.began.Compare(b.began) })
	return all
}

// allAnswered fails the test if a request was not answered, and says how many there were.
func (l *load) allAnswered() []request {
	l.t.Helper()
	all := l.end()
	failed := failures(all)
	var longest time.Duration
	for _, r := range all {
		longest = max(longest, r.ended.Sub(r.began))
	}
	l.t.Logf("%s: %d requests, %d failed, the longest took %v", l.name, len(all), len(failed), longest.Round(time.Millisecond))
	if len(all) == 0 {
		l.t.Errorf("%s: no request was made", l.name)
	}
	for _, r := range failed[:min(len(failed), 5)] {
		l.t.Errorf("%s: not answered at %s: %s", l.name, r.began.Format("15:04:05.000"), r.failure)
	}
	return all
}

func failures(all []request) []request {
	return slices.DeleteFunc(slices.Clone(all), func(r request) bool { return r.failure == "" })
}

// answered counts the answers of each pod.
func answered(all []request) map[string]int {
	by := map[string]int{}
	for _, r := range all {
		if r.failure == "" {
			by[r.pod]++
		}
	}
	return by
}
