package e2e

import (
	"context"
	"fmt"
	"sync"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// agent plays the agent of all nodes for the pods of the namespace, until the test ends: a new pod becomes ready with an
// address that begins with network, and one that is told to end is gone.
func (s *space) agent(network string) {
	s.Helper()
	pods := s.client.CoreV1().Pods(s.name)
	ctx, cancel := context.WithCancel(context.WithoutCancel(s.Context()))
	w, err := pods.Watch(ctx, metav1.ListOptions{})
	check(s.T, err)
	var work sync.WaitGroup
	work.Go(func() {
		next := 10
		for event := range w.ResultChan() {
			pod, ok := event.Object.(*corev1.Pod)
			if !ok {
				continue // the end of the watch
			}
			var err error
			switch {
			case pod.DeletionTimestamp != nil:
				err = pods.Delete(ctx, pod.Name, metav1.DeleteOptions{GracePeriodSeconds: new(int64)})
			case pod.Status.PodIP == "":
				next++
				_, err = pods.Patch(ctx, pod.Name, types.StrategicMergePatchType,
					[]byte(podStatus(true, fmt.Sprint(network, next))), metav1.PatchOptions{}, "status")
			}
			if err != nil && !apierrors.IsNotFound(err) && ctx.Err() == nil {
				s.Errorf("agent: pod %s: %v", pod.Name, err)
			}
		}
	})
	s.Cleanup(func() { cancel(); w.Stop(); work.Wait() })
}
