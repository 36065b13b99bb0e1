package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/endpointd/endpointd/internal/testkit"
)

// helperLookups looks a name up in a loop, by UDP and by TCP, each time over a new socket, until it is killed. Each lookup is a line:
// network, when it began and how long it took in nanoseconds, and what was found or why nothing was.
func helperLookups(name string, out io.Writer) error {
	var mu sync.Mutex // guards out
	var work sync.WaitGroup
	for _, network := range []string{"udp", "tcp"} {
		resolver := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, address string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, address)
		}}
		work.Go(func() {
			for tick := time.NewTicker(lookupEvery); ; <-tick.C {
				began := time.Now()
				found, err := resolver.LookupHost(context.Background(), name)
				took := time.Since(began)
				if err != nil {
					found = []string{"failed: " + err.Error()}
				}
				mu.Lock()
				fmt.Fprintf(out, "%s %d %d %q\n", network, began.UnixNano(), took, strings.Join(found, " "))
				mu.Unlock()
			}
		})
	}
	work.Wait()
	return nil
}

const lookupEvery = 20 * time.Millisecond

// A lookup is one that a pod made.
type lookup struct {
	network string
	began   time.Time
	took    time.Duration
	found   string
}

// lookups are those that a pod has made until now.
func (n *nodes) lookups(pod string) ([]lookup, error) {
	out, err := n.try("logs", pod)
	if err != nil {
		return nil, err
	}
	var all []lookup
	for line := range strings.Lines(out.Stdout) {
		var l lookup
		var began, took int64
		if _, err := fmt.Sscanf(line, "%s %d %d %q", &l.network, &began, &took, &l.found); err != nil {
			return nil, fmt.Errorf("log of %s: %q: %w", pod, line, err)
		}
		l.began, l.took = time.Unix(0, began), time.Duration(took)
		all = append(all, l)
	}
	return all, nil
}

// awaitLookups waits until a pod has ended a lookup of each kind that began after a time, so that all that began before have ended, too.
func (n *nodes) awaitLookups(pod string, after time.Time) []lookup {
	n.Helper()
	var all []lookup
	testkit.Await(n, patience, func() (err error) {
		if all, err = n.lookups(pod); err != nil {
			return err
		}
		seen := map[string]bool{}
		for _, l := range all {
			seen[l.network] = seen[l.network] || l.began.After(after)
		}
		if len(seen) < 2 || !seen["udp"] || !seen["tcp"] {
			return fmt.Errorf("pod %s asked no more: %v", pod, seen)
		}
		return nil
	})
	return all
}

// TestNamesRestart has pods ask for a Service while the agents of their nodes, who answer, are killed and told to end, one by one and together: no
// lookup fails.
func TestNamesRestart(t *testing.T) {
	t.Parallel()
	testkit.Need(t, testkit.Net())
	u := testkit.Up(t, testkit.UpOptions{Nodes: 2})
	n := nodesOf(t, clusterOf(t, u.Server()), u)
	n.apply(`{apiVersion: v1, kind: Service, metadata: {name: found}, spec: {ports: [{port: 80}]}}`)
	svc, err := n.client.CoreV1().Services(n.name).Get(n.Context(), "found", metav1.GetOptions{})
	check(t, err)
	name := "found." + n.name + ".svc.cluster.local"
	agents := []string{"node-1", "node-2"}
	for _, node := range agents {
		n.resolves(node, "", name, svc.Spec.ClusterIP)
		n.apply(fmt.Sprintf(`{apiVersion: v1, kind: Pod, metadata: {name: on-%s}, spec: {nodeName: %s, terminationGracePeriodSeconds: 0,
containers: [{name: c, image: endpointd/echo, command: [%q, %s, lookups, %s.]}]}}`, node, node, self(t), helperArg, name))
	}
	for _, node := range agents {
		n.awaitPod("on-"+node, patience, isReady)
		n.awaitLookups("on-"+node, time.Time{})
	}
	for _, round := range []struct {
		parts  []string
		signal syscall.Signal
	}{
		{agents[:1], syscall.SIGKILL},
		{agents[1:], syscall.SIGTERM},
		{agents, syscall.SIGKILL},
		{agents, syscall.SIGTERM},
	} {
		n.restart(round.signal, round.parts...)
		again := time.Now()
		for _, node := range agents {
			n.awaitLookups("on-"+node, again)
		}
	}
	for _, node := range agents {
		n.allFound("on-"+node, svc.Spec.ClusterIP)
	}
}

// restart ends agents at the same time, and returns when they run again.
func (n *nodes) restart(signal syscall.Signal, agents ...string) {
	n.Helper()
	before := map[string]int{}
	for _, a := range agents {
		before[a] = n.u.Signal(a, signal)
	}
	for _, a := range agents {
		testkit.Await(n, patience, func() error {
			if pid := n.u.Part(a).PID; pid == 0 || pid == before[a] {
				return errors.New(a + " does not run again")
			}
			return nil
		})
	}
}

// allFound fails the test if a lookup of a pod did not find what there is, and says how long they took.
func (n *nodes) allFound(pod, want string) {
	n.Helper()
	longest, count := map[string]time.Duration{}, map[string]int{}
	for _, l := range n.awaitLookups(pod, time.Now()) {
		count[l.network]++
		longest[l.network] = max(longest[l.network], l.took)
		if l.found != want {
			n.Errorf("%s by %s at %s: %q, want %q", pod, l.network, l.began.Format("15:04:05.000"), l.found, want)
		}
	}
	n.Logf("%s: %v lookups, the longest took %v", pod, count, longest)
}
