package app

import (
	"context"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/endpointd/endpointd/internal/sandbox"
)

const (
	// readyPoll is between two questions whether the server is ready. The first waits in the listener until it runs.
	readyPoll = 5 * time.Millisecond
	// upPatience is how long server and nodes may take to be ready.
	upPatience = time.Minute
)

// awaitServer returns when the server is ready.
func awaitServer(ctx context.Context, client kubernetes.Interface) error {
	ctx, cancel := context.WithTimeout(ctx, upPatience)
	defer cancel()
	tick := time.NewTicker(readyPoll)
	defer tick.Stop()
	for {
		_, err := client.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("the server is not ready after %v: %w", upPatience, err)
		}
	}
}

// awaitNodes returns when all are ready, and calls each for every one.
func awaitNodes(ctx context.Context, client kubernetes.Interface, nodes []sandbox.Node, each func(name string)) error {
	ctx, cancel := context.WithTimeout(ctx, upPatience)
	defer cancel()
	missing := map[string]bool{}
	for _, n := range nodes {
		missing[n.Name] = true
	}
	began := time.Now()
	seen := func(n *corev1.Node) {
		if missing[n.Name] && readySince(n, began) {
			delete(missing, n.Name)
			each(n.Name)
		}
	}
	for {
		err := watchNodes(ctx, client, seen, func() bool { return len(missing) == 0 })
		if len(missing) == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			var names []string
			for _, n := range nodes {
				if missing[n.Name] {
					names = append(names, n.Name)
				}
			}
			return fmt.Errorf("not ready after %v: %s: see logs/%s.log in the data folder (%w)", upPatience, strings.Join(names, ", "), names[0], context.Cause(ctx))
		case <-time.After(readyPoll):
			_ = err // a watch ends now and then; the next list says if something is wrong
		}
	}
}

// watchNodes calls seen for every Node and change, until done or the watch ends.
func watchNodes(ctx context.Context, client kubernetes.Interface, seen func(*corev1.Node), done func() bool) error {
	list, err := client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for i := range list.Items {
		seen(&list.Items[i])
	}
	if done() {
		return nil
	}
	w, err := client.CoreV1().Nodes().Watch(ctx, metav1.ListOptions{ResourceVersion: list.ResourceVersion})
	if err != nil {
		return err
	}
	defer w.Stop()
	for e := range w.ResultChan() {
		if n, ok := e.Object.(*corev1.Node); ok {
			seen(n)
		}
		if done() {
			return nil
		}
	}
	return ctx.Err()
}

// readySince: a node of an earlier run may still look ready, so its word has to be new. Times have whole seconds.
func readySince(n *corev1.Node, began time.Time) bool {
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return c.Status == corev1.ConditionTrue && !c.LastHeartbeatTime.Time.Before(began.Add(-upStart).Truncate(time.Second))
		}
	}
	return false
}

// upStart is more than a node needs from its start to a server that answers, and less than two runs are apart.
const upStart = 2 * time.Second
