package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes"
)

const (
	upNodes   = 3
	echoImage = "endpointd/echo"
	echoPort  = 8080
	// fleetWait is how long all pods may take for anything.
	fleetWait = 3 * time.Minute
)

// fleet is a Deployment of echo servers on three nodes, and a Service that selects them all.
type fleet struct {
	*fleetView
	sandbox *sandbox
	client  kubernetes.Interface
	server  int
	agents  map[string]int // node → process
	made    bool
}

// withFleet has `endpointd up` run for as long as do does.
func (b *bench) withFleet(ctx context.Context, do func(*fleet) error) (err error) {
	s := &sandbox{binary: b.binary, dir: filepath.Join(b.dir, "nodes"), nodes: upNodes}
	if _, err := s.up(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.down(ctx)) }()
	config, err := clientConfig(s.kubeconfig())
	if err != nil {
		return err
	}
	f := &fleet{sandbox: s}
	if f.client, err = kubernetes.NewForConfig(config); err != nil {
		return err
	}
	if f.agents, err = s.parts(ctx); err != nil {
		return err
	}
	f.server = f.agents[serverPart]
	delete(f.agents, serverPart)
	if _, err := f.client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}, metav1.CreateOptions{}); err != nil {
		return err
	}
	_, err = f.client.CoreV1().Services(namespace).Create(ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: bigService},
		Spec: corev1.ServiceSpec{
			Selector: map[string]string{fleetLabel: "yes"}, Ports: []corev1.ServicePort{{Port: 80, TargetPort: intstr.FromInt32(echoPort)}},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	if f.fleetView, err = viewFleet(ctx, f.client); err != nil {
		return err
	}
	defer f.close()
	return do(f)
}

// create makes the Deployment. Its pods are asked each second whether they are ready.
func (f *fleet) create(ctx context.Context, pods int) error {
	replicas, grace := int32(pods), int64(1) //nolint:gosec // a flag, checked
	labels := map[string]string{fleetLabel: "yes"}
	object := &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: bigService},
		Spec: appsv1.DeploymentSpec{
			Replicas: &replicas, Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: corev1.PodSpec{
				TerminationGracePeriodSeconds: &grace,
				Containers: []corev1.Container{{
					Name: "echo", Image: echoImage, Ports: []corev1.ContainerPort{{ContainerPort: echoPort}},
					ReadinessProbe: &corev1.Probe{PeriodSeconds: 1, ProbeHandler: corev1.ProbeHandler{
						HTTPGet: &corev1.HTTPGetAction{Path: "/readyz", Port: intstr.FromInt32(echoPort)},
					}},
				}},
			}},
		},
	}
	_, err := f.client.AppsV1().Deployments(namespace).Create(ctx, object, metav1.CreateOptions{})
	f.made = err == nil
	return err
}

// remove deletes the Deployment and waits until the last pod is gone.
func (f *fleet) remove(ctx context.Context) (time.Duration, error) {
	empty := f.when("no pod", func() bool { return len(f.pods) == 0 })
	background := metav1.DeletePropagationBackground
	began := time.Now()
	err := f.client.AppsV1().Deployments(namespace).Delete(ctx, bigService, metav1.DeleteOptions{PropagationPolicy: &background})
	if err != nil {
		return 0, err
	}
	f.made = false
	at, err := f.seen(ctx, empty, fleetWait)
	return at.Sub(began), err
}

// size brings the Deployment to so many pods, all of them ready.
func (f *fleet) size(ctx context.Context, pods int) error {
	if !f.made {
		if err := f.create(ctx, pods); err != nil {
			return err
		}
		return f.settle(ctx, pods)
	}
	patch := fmt.Appendf(nil, `{"spec":{"replicas":%d}}`, pods)
	_, err := f.client.AppsV1().Deployments(namespace).Patch(ctx, bigService, types.MergePatchType, patch, metav1.PatchOptions{})
	if err != nil {
		return err
	}
	return f.settle(ctx, pods)
}

// settle waits until there are exactly so many pods, all of them ready and in slices.
func (f *fleet) settle(ctx context.Context, pods int) error {
	return f.until(ctx, fmt.Sprintf("%d ready pods", pods), fleetWait, func() bool { return f.allReady(pods) && len(f.pods) == pods && len(f.ready) == pods })
}

// allReady is for conditions: the caller holds the view's lock.
func (f *fleet) allReady(pods int) bool {
	ready := 0
	for _, p := range f.pods {
		if p.ready && !p.leaving {
			ready++
		}
	}
	return ready == pods
}

// deletePod deletes one pod; that it is gone already is fine.
func (f *fleet) deletePod(ctx context.Context, name string) error {
	err := f.client.CoreV1().Pods(namespace).Delete(ctx, name, metav1.DeleteOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}
