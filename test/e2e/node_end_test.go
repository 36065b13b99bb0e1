package e2e

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	discovery "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/watch"
)

func endScenarios() []nodeScenario {
	return []nodeScenario{
		{"order", endOrder},
		{"killed", endKilled},
		{"rollout", endRollout},
	}
}

// diary is a container that notes in /diary/notes when it is told what, in nanoseconds.
const diary = `{apiVersion: v1, kind: Pod, metadata: {name: NAME, labels: {app: NAME}}, spec: {terminationGracePeriodSeconds: GRACE, containers: [{name: c, image: endpointd/echo,
command: [bash, -c, 'trap "echo term \$(date +%s%N) >>/diary/notes; EXIT" TERM; echo up $(date +%s%N) >>/diary/notes; while :; do sleep 0.02; done'],
lifecycle: {preStop: {exec: {command: [bash, -c, 'echo preStop $(date +%s%N) >>/diary/notes; sleep 0.5; echo stopped $(date +%s%N) >>/diary/notes']}}},
volumeMounts: [{name: diary, mountPath: /diary}]}], volumes: [{name: diary, hostPath: {path: DIR, type: Directory}}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: NAME}, spec: {selector: {app: NAME}, ports: [{port: 80}]}}`

// notes is what a diary says: word → when it was last written.
func notes(dir string) map[string]time.Time {
	text, _ := os.ReadFile(filepath.Join(dir, "notes")) // nothing is written yet
	found := map[string]time.Time{}
	for line := range strings.Lines(string(text)) {
		word, number, _ := strings.Cut(strings.TrimSpace(line), " ")
		if nanos, err := strconv.ParseInt(number, 10, 64); err == nil {
			found[word] = time.Unix(0, nanos)
		}
	}
	return found
}

func (n *nodes) diary(name, grace, exit string) (dir string) {
	n.Helper()
	dir = n.TempDir()
	n.apply(strings.NewReplacer("NAME", name, "GRACE", grace, "EXIT", exit, "DIR", dir).Replace(diary))
	n.awaitPod(name, patience, isReady)
	n.await(func(context.Context) error {
		if notes(dir)["up"].IsZero() {
			return fmt.Errorf("%s is not up", name)
		}
		return nil
	})
	return dir
}

// The endpoint is terminating before the pod is told anything; then preStop, then SIGTERM.
func endOrder(n *nodes) {
	dir := n.diary("d", "10", "exit 0")
	events := n.watchSlices("d")
	deleted := time.Now()
	n.run("delete", "pod", "d", "--wait=false")
	terminating := awaitTerminating(n, events)
	n.awaitPodGone("d", patience)
	gone := time.Now()
	said := notes(dir)
	steps := []struct {
		what string
		at   time.Time
	}{
		{"deleted", deleted}, {"preStop", said["preStop"]}, {"end of preStop", said["stopped"]}, {"SIGTERM", said["term"]}, {"gone", gone},
	}
	for i, s := range steps[1:] {
		n.Logf("%-20s %v", s.what, s.at.Sub(deleted))
		if s.at.Before(steps[i].at) {
			n.Errorf("%s came before %s", s.what, steps[i].what)
		}
	}
	n.Logf("%-20s %v", "endpoint terminating", terminating.Sub(deleted))
	// The nodes have heard of it before preStop, which takes half a second; the test may hear of it a little later.
	if terminating.After(said["stopped"]) {
		n.Error("the endpoint was seen to be terminating after preStop only")
	}
	if wait := said["preStop"].Sub(terminating); wait > 1500*time.Millisecond {
		n.Errorf("preStop came %v after the endpoint was seen to be terminating, want that all nodes have said before --drain-grace that they lead nobody there", wait)
	}
	if took := gone.Sub(said["term"]); took > 2*time.Second {
		n.Errorf("it was gone %v after it ended", took)
	}
}

func awaitTerminating(n *nodes, events <-chan watch.Event) time.Time {
	n.Helper()
	late := time.After(patience)
	for {
		select {
		case e := <-events:
			slice, ok := e.Object.(*discovery.EndpointSlice)
			if !ok {
				continue
			}
			for _, ep := range slice.Endpoints {
				if ep.Conditions.Terminating != nil && *ep.Conditions.Terminating && !*ep.Conditions.Ready {
					return time.Now()
				}
			}
		case <-late:
			n.Fatal("no endpoint is terminating")
		}
	}
}

// Who does not listen is killed when the grace period is over, and not before.
func endKilled(n *nodes) {
	dir := n.diary("d", "2", ":")
	pid := n.first("d")
	deleted := time.Now()
	n.run("delete", "pod", "d")
	took := time.Since(deleted)
	if took < 1900*time.Millisecond || took > 5*time.Second {
		n.Errorf("deleted after %v with a grace period of 2 s", took)
	}
	if notes(dir)["term"].IsZero() {
		n.Error("it was not told")
	}
	if _, err := os.Stat(fmt.Sprintf("/proc/%d", pid)); err == nil {
		n.Errorf("process %d runs on", pid)
	}
}

// helperLoad sends requests to the addresses that the newest line of in lists, four at once, until in ends, and says how they went.
func helperLoad(in io.Reader, out io.Writer) error {
	var mu sync.Mutex // guards what follows
	var addrs []string
	var done, ended bool
	good, bad := 0, map[string]int{}
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	one := func() bool {
		mu.Lock()
		ended = done
		address := ""
		if len(addrs) > 0 {
			address = addrs[rand.IntN(len(addrs))]
		}
		mu.Unlock()
		if ended || address == "" {
			return !ended
		}
		r, err := client.Get("http://" + address + "/")
		text := ""
		if err != nil {
			text = err.Error()
		} else {
			_, err = io.Copy(io.Discard, r.Body)
			_ = r.Body.Close()
			if err != nil || r.StatusCode != http.StatusOK {
				text = fmt.Sprint(r.Status, err)
			}
		}
		mu.Lock()
		defer mu.Unlock()
		if text == "" {
			good++
		} else {
			bad[text]++
		}
		return true
	}
	lines := bufio.NewScanner(in)
	var work sync.WaitGroup
	for lines.Scan() {
		mu.Lock()
		first := addrs == nil
		addrs = strings.Fields(lines.Text())
		mu.Unlock()
		for range 4 {
			if first {
				work.Go(func() {
					for one() {
					}
				})
			}
		}
	}
	mu.Lock()
	done = true
	mu.Unlock()
	work.Wait()
	_, err := fmt.Fprintln(out, good, len(bad), bad)
	return err
}

// Every request that is under way when a pod is told to end is answered.
func endRollout(n *nodes) {
	n.apply(strings.Replace(threeEchoes, "image: endpointd/echo,", "image: endpointd/echo, env: [{name: ECHO_DELAY, value: 500ms}],", 1))
	pods := n.awaitPods("app=echo", 3)
	events := n.watchSlices("echo")
	n.awaitSlice(events, leadTo(8080, pods...))
	cmd := n.u.Command(n.u.ExecArgs("", self(n.T), helperArg, "load")...)
	in, err := cmd.StdinPipe()
	check(n.T, err)
	var out bytes.Buffer
	cmd.Stdout = &out
	check(n.T, cmd.Start())
	fmt.Fprintln(in, leadTo(8080, pods...))
	over := make(chan struct{})
	var pump sync.WaitGroup
	pump.Go(func() {
		for {
			select {
			case e := <-events:
				if slice, ok := e.Object.(*discovery.EndpointSlice); ok && ready(*slice) != "" {
					fmt.Fprintln(in, ready(*slice))
				}
			case <-over:
				_ = in.Close()
				return
			}
		}
	})
	n.run("rollout", "restart", "deployment/echo")
	_, err = n.try("rollout", "status", "deployment/echo", "--timeout=30s")
	close(over)
	pump.Wait()
	check(n.T, err)
	check(n.T, cmd.Wait())
	var good, bad int
	_, err = fmt.Sscan(out.String(), &good, &bad)
	check(n.T, err)
	n.Logf("requests: %s", out.String())
	if good < 8 || bad > 0 {
		n.Errorf("%d requests were answered; not answered: %s", good, out.String())
	}
	for _, p := range n.awaitPods("app=echo", 3) {
		for _, old := range pods {
			if p.UID == old.UID {
				n.Errorf("pod %s is an old one", p.Name)
			}
		}
	}
}
