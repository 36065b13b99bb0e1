package app

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// forward is the work of an agent that stands in for kube-proxy on a node that a kubelet keeps: it reads Services, EndpointSlices and Nodes, leads
// connections, and writes nothing to the API but Events.
func (a *agent) forward(ctx context.Context) error {
	if err := a.makePlane(ctx); err != nil {
		return err
	}
	own, err := a.awaitNode(ctx)
	if err != nil {
		return err
	}
	a.lead()
	a.work.Go(func() { trimMemory(ctx) })
	a.work.Go(func() { dropPages(ctx) })
	a.runTraffic(ctx)
	_ = a.plane.inForce(ctx) // it ends with ctx
	// For the line that says so; what is in force follows the Node.
	if a.o.Addrs == nil {
		a.o.Addrs = peer(own).Addrs
	}
	if a.o.PodCIDRs == nil {
		a.o.PodCIDRs = peer(own).PodCIDRs
	}
	return nil
}

// mayForward says what is missing for the work, before anything is begun.
func mayForward() error {
	if !capable(unix.CAP_NET_ADMIN) {
		return errors.New("leading connections needs CAP_NET_ADMIN: run endpointd node --proxy-only as root, or give the container that capability")
	}
	return nil
}

// nodeRetry is between two looks for this machine's Node.
const nodeRetry = time.Second

// awaitNode returns the Node of this name when the API has it, with an address. Not to be allowed to look is final.
func (a *agent) awaitNode(ctx context.Context) (*corev1.Node, error) {
	for first := true; ; first = false {
		limited, cancel := context.WithTimeout(ctx, 10*time.Second)
		n, err := a.client.CoreV1().Nodes().Get(limited, a.o.Name, metav1.GetOptions{})
		cancel()
		if err == nil && (len(a.o.Addrs) > 0 || len(peer(n).Addrs) > 0) {
			return n, nil
		}
		if err == nil {
			err = fmt.Errorf("node %s has no InternalIP yet: give one with --node-ip", a.o.Name)
		}
		if apierrors.IsForbidden(err) || apierrors.IsUnauthorized(err) {
			return nil, fmt.Errorf("node %s: %w: give this user the role of deploy/node-proxy.yaml", a.o.Name, err)
		}
		if first {
			a.o.Logger.Info("waiting for this machine's Node; if its name is another one, give it with --name", "node", a.o.Name, "err", err)
		}
		select {
		case <-time.After(nodeRetry):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}
