package e2e

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
)

// An answer is what a DNS server said of a name for the first time after it had said something else. Times are of the machine's clock.
type answer struct {
	asked, told time.Time
	addrs       string // sorted, with blanks in between; or an RCODE
}

// namePause is between an answer and the next question of a prober.
const namePause = time.Millisecond

// helperNames asks DNS servers for the addresses of a name, one after the other and for as long as in does not end, and then prints the answers that were not like
// the one before.
func helperNames(name string, servers []string, in io.Reader, out io.Writer) error {
	over := make(chan struct{})
	lists := make([][]answer, len(servers))
	errs := make([]error, len(servers))
	var work sync.WaitGroup
	for i, server := range servers {
		work.Go(func() { lists[i], errs[i] = follow(name, server, over) })
	}
	_, _ = fmt.Fprintln(out, "begun")
	_, err := io.Copy(io.Discard, in)
	close(over)
	work.Wait()
	buffered := bufio.NewWriter(out)
	for i, list := range lists {
		if err == nil {
			err = errs[i]
		}
		for _, a := range list {
			fmt.Fprintf(buffered, "%s %d %d %s\n", servers[i], a.asked.UnixNano(), a.told.UnixNano(), a.addrs)
		}
	}
	if err != nil {
		return err
	}
	return buffered.Flush()
}

// follow asks one server until over is closed.
func follow(name, server string, over <-chan struct{}) (list []answer, err error) {
	conn, err := dns.DialTimeout("udp", net.JoinHostPort(server, "53"), loadPatience)
	if err != nil {
		return nil, err
	}
	defer conn.Close() //nolint:errcheck // all is read
	tick := time.NewTicker(namePause)
	defer tick.Stop()
	client := &dns.Client{Timeout: loadPatience}
	for {
		select {
		case <-over:
			return list, nil
		case <-tick.C:
		}
		q := new(dns.Msg).SetQuestion(dns.Fqdn(name), dns.TypeA)
		a := answer{asked: time.Now()}
		m, _, err := client.ExchangeWithConn(q, conn)
		if err != nil {
			return list, fmt.Errorf("ask %s for %s: %w", server, name, err)
		}
		a.told = time.Now()
		a.addrs = dns.RcodeToString[m.Rcode]
		if m.Rcode == dns.RcodeSuccess {
			var found []string
			for _, rr := range m.Answer {
				if rr, is := rr.(*dns.A); is {
					found = append(found, rr.A.String())
				}
			}
			a.addrs = sortedWords(found)
		}
		if len(list) == 0 || list[len(list)-1].addrs != a.addrs {
			list = append(list, a)
		}
	}
}

// followNames asks nodes' DNS servers from node-1 until the function that it returns is called, which tells what each has said.
func (n *nodes) followNames(name string, servers ...string) func() map[string][]answer {
	n.Helper()
	cmd := n.u.Command(n.u.ExecArgs("node-1", append([]string{self(n.T), helperArg, "names", name}, servers...)...)...)
	in, err := cmd.StdinPipe()
	check(n.T, err)
	pipe, err := cmd.StdoutPipe()
	check(n.T, err)
	cmd.Stderr = os.Stderr
	check(n.T, cmd.Start())
	out := bufio.NewReader(pipe)
	n.Cleanup(func() { // also of a test that has failed in between
		_ = in.Close()
		_, _ = io.Copy(io.Discard, out)
		_ = cmd.Wait()
	})
	if line, err := out.ReadString('\n'); err != nil || line != "begun\n" {
		n.Fatalf("ask for %s: %q, %v", name, line, err)
	}
	return func() map[string][]answer {
		n.Helper()
		check(n.T, in.Close())
		var text bytes.Buffer
		_, err := text.ReadFrom(out)
		check(n.T, err)
		all := map[string][]answer{}
		for line := range strings.Lines(text.String()) {
			var server string
			var asked, told int64
			if _, err := fmt.Sscan(line, &server, &asked, &told); err != nil {
				n.Fatalf("answers for %s: %q: %v", name, line, err)
			}
			all[server] = append(all[server], answer{time.Unix(0, asked), time.Unix(0, told), strings.Join(strings.Fields(line)[3:], " ")})
		}
		for _, server := range servers {
			if len(all[server]) == 0 {
				n.Fatalf("%s was asked for %s and never answered", server, name)
			}
		}
		return all
	}
}

// recordLate is more than any machine needs, and less than the time for which clients may remember an answer. What is measured is logged.
const recordLate = 3 * time.Second

// mortal is a pod whose process stays dead, or with Always is not ready for a second after it was started again.
const mortal = `{apiVersion: v1, kind: Pod, metadata: {name: NAME, labels: {app: mortal}}, spec: {nodeName: NODE, restartPolicy: POLICY, containers: [{name: c, image: endpointd/echo, PROBE}]}}
---
`

// A pod's process is killed: its record goes, on its own node and on others. A pod becomes ready: its record is there.
func namesKilled(n *nodes) {
	n.apply(`{apiVersion: v1, kind: Service, metadata: {name: mortal}, spec: {clusterIP: None, selector: {app: mortal}, ports: [{port: 8080}]}}`)
	name := "mortal." + n.name + ".svc.cluster.local"
	nodeOf := map[string]string{n.nodeAddress("node-1"): "node-1", n.nodeAddress("node-2"): "node-2"}
	end := n.followNames(name, n.nodeAddress("node-1"), n.nodeAddress("node-2"))

	names := []string{"a", "b", "c", "d"}
	readyAt := n.watchReady("app=mortal", len(names))
	var manifest strings.Builder
	for i, pod := range names {
		policy, probe := "Never", ""
		if i >= 2 {
			policy, probe = "Always", "readinessProbe: {tcpSocket: {port: 8080}, initialDelaySeconds: 1, periodSeconds: 1}"
		}
		manifest.WriteString(strings.NewReplacer("NAME", pod, "NODE", fmt.Sprintf("node-%d", i%2+1), "POLICY", policy, "PROBE", probe).Replace(mortal))
	}
	n.apply(manifest.String())
	ready := readyAt()
	pods := map[string]*corev1.Pod{}
	var addrs []string
	for _, pod := range names {
		pods[pod] = n.pod(pod)
		addrs = append(addrs, pods[pod].Status.PodIP)
	}
	n.resolves("node-1", "", name, addrs...)
	n.resolves("node-2", "", name, addrs...)

	killed := map[string]time.Time{}
	for i, pod := range names {
		pid := n.first(pod)
		n.until(time.Now().Add(100 * time.Millisecond)) // what was done to find it is over
		killed[pod] = time.Now()
		check(n.T, syscall.Kill(pid, syscall.SIGKILL))
		if i < 2 {
			n.awaitPod(pod, patience, phaseIs(corev1.PodFailed))
			addrs = slices.DeleteFunc(addrs, func(addr string) bool { return addr == pods[pod].Status.PodIP })
		} else {
			n.awaitPod(pod, patience, restarted(1))
		}
		n.resolves("node-1", "", name, addrs...)
		n.resolves("node-2", "", name, addrs...)
	}
	for server, list := range end() {
		for _, pod := range names {
			where := "another node"
			if pods[pod].Spec.NodeName == nodeOf[server] {
				where = "its own node"
			}
			n.recordOf(where, pods[pod].Status.PodIP, list, ready[pod], killed[pod])
		}
	}
}

// recordOf tells when a pod's record came and went, and fails if that was late.
func (n *nodes) recordOf(where, addr string, list []answer, ready, killed time.Time) {
	n.Helper()
	has := func(a answer) bool { return slices.Contains(strings.Fields(a.addrs), addr) }
	came := slices.IndexFunc(list, has)
	went := slices.IndexFunc(list, func(a answer) bool { return a.told.After(killed) && !has(a) })
	if came < 0 || went < 0 {
		n.Errorf("on %s the record of %s, ready at %v and killed at %v, did not come and go: %v", where, addr, ready, killed, list)
		return
	}
	from, to := list[came].told.Sub(ready), list[went].told.Sub(killed)
	n.Logf("MEASURED on %s: record there %v after the API had said ready, gone %v after the kill", where, from.Round(10*time.Microsecond), to.Round(10*time.Microsecond))
	if from > recordLate || to > recordLate {
		n.Errorf("on %s the record came %v after the pod was ready, and went %v after its process had died; want at most %v", where, from, to, recordLate)
	}
}

// watchReady watches for pods to become ready from now on; the function that it returns waits for all, and is when the API said so of each.
func (n *nodes) watchReady(label string, count int) func() map[string]time.Time {
	n.Helper()
	w, err := n.client.CoreV1().Pods(n.name).Watch(n.Context(), metav1.ListOptions{LabelSelector: label})
	check(n.T, err)
	n.Cleanup(w.Stop)
	done := make(chan map[string]time.Time, 1)
	go func() {
		at := map[string]time.Time{}
		for e := range w.ResultChan() {
			if pod, is := e.Object.(*corev1.Pod); is && e.Type != watch.Deleted && isReady(pod) == nil && at[pod.Name].IsZero() {
				at[pod.Name] = time.Now()
			}
			if len(at) == count {
				break
			}
		}
		done <- at
	}()
	return func() map[string]time.Time {
		n.Helper()
		late := time.NewTimer(patience)
		defer late.Stop()
		select {
		case at := <-done:
			if len(at) == count {
				return at
			}
		case <-late.C:
		}
		n.Fatalf("%d pods with %s are not all ready: %d are there", count, label, len(n.list(label)))
		return nil
	}
}
