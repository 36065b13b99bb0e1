package node

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/resourceversion"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/util/workqueue"
)

// How the writing of statuses is bounded: requests at once, the time for one, and the pauses while the API does not take them.
const (
	statusWriters = 8
	statusTimeout = 5 * time.Second
	firstPause    = 20 * time.Millisecond
	maxPause      = time.Second
)

// statuses writes what workers report, the newest of each pod, and goes on until the API has it. It also deletes the objects of
// pods that are gone from the node, after their last status.
type statuses struct {
	client corev1client.PodsGetter
	log    *slog.Logger
	queue  workqueue.TypedRateLimitingInterface[types.UID]

	mu   sync.Mutex // guards todo
	todo map[types.UID]report
}

// report is the newest wish of one worker. The key is the worker's UID, which for a static pod is not the object's.
type report struct {
	worker *worker
	pod    *corev1.Pod // the object to write, as last known
	status corev1.PodStatus
	ticket uint64 // not zero = the standing waits for the API's answer, even if nothing changes
	remove bool
}

func newStatuses(client corev1client.PodsGetter, log *slog.Logger) *statuses {
	return &statuses{
		client: client, log: log, todo: map[types.UID]report{},
		queue: workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[types.UID](firstPause, maxPause)),
	}
}

// run writes until ctx ends.
func (s *statuses) run(ctx context.Context) {
	var writers sync.WaitGroup
	for range statusWriters {
		writers.Go(func() {
			for s.next(ctx) {
			}
		})
	}
	<-ctx.Done()
	s.queue.ShutDown()
	writers.Wait()
}

// set has the status written to the object. The worker's standing gets the answer, with the ticket.
func (s *statuses) set(w *worker, pod *corev1.Pod, status corev1.PodStatus, ticket uint64) {
	s.mu.Lock()
	r := s.todo[w.uid]
	s.todo[w.uid] = report{worker: w, pod: pod, status: status, ticket: ticket, remove: r.remove}
	s.mu.Unlock()
	s.queue.Add(w.uid)
}

// remove has the object deleted after this last status.
func (s *statuses) remove(w *worker, pod *corev1.Pod, status corev1.PodStatus) {
	s.mu.Lock()
	s.todo[w.uid] = report{worker: w, pod: pod, status: status, remove: true}
	s.mu.Unlock()
	s.queue.Add(w.uid)
}

func (s *statuses) next(ctx context.Context) bool {
	uid, down := s.queue.Get()
	if down {
		return false
	}
	defer s.queue.Done(uid)
	s.mu.Lock()
	r, ok := s.todo[uid]
	delete(s.todo, uid)
	s.mu.Unlock()
	if !ok {
		return true
	}
	pod, replaced, err := s.write(ctx, r)
	switch {
	case err == nil:
		s.queue.Forget(uid)
		r.worker.standing.answered(r.ticket, pod)
		r.worker.inbox.post(func() { r.worker.wrote(r, pod, replaced) })
	case ctx.Err() == nil:
		s.log.Debug("status not written, trying again", "pod", r.pod.Namespace+"/"+r.pod.Name, "err", err)
		s.mu.Lock()
		if newer, ok := s.todo[uid]; !ok {
			s.todo[uid] = r
		} else if r.remove {
			newer.remove = true
			s.todo[uid] = newer
		}
		s.mu.Unlock()
		s.queue.AddRateLimited(uid)
	}
	return true
}

// write returns the object as it is then, nil when it is gone, and whether the status replaced the object's.
func (s *statuses) write(ctx context.Context, r report) (pod *corev1.Pod, replaced bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	pods := s.client.Pods(r.pod.Namespace)
	pod = r.pod
	if r.ticket != 0 || !sameStatus(&r.pod.Status, &r.status) {
		if pod, replaced, err = writeStatus(ctx, pods, r); err != nil {
			return nil, false, s.explain(ctx, r.pod, err)
		}
	}
	if !r.remove {
		return pod, replaced, nil
	}
	err = pods.Delete(ctx, r.pod.Name, metav1.DeleteOptions{GracePeriodSeconds: new(int64(0)), Preconditions: metav1.NewUIDPreconditions(string(r.pod.UID))})
	if err != nil {
		return nil, false, s.explain(ctx, r.pod, err)
	}
	return nil, false, nil
}

// writeStatus replaces the status of the object that is known, which costs the API half of what a patch does. If that one is not the newest,
// somebody else has written, and it is patched: what comes of it may be another status.
func writeStatus(ctx context.Context, pods corev1client.PodInterface, r report) (pod *corev1.Pod, replaced bool, err error) {
	next := *r.pod // a shallow copy: only the status is another one
	next.Status = r.status
	pod, err = pods.UpdateStatus(ctx, &next, metav1.UpdateOptions{})
	if !apierrors.IsConflict(err) {
		return pod, true, err
	}
	patch, err := statusPatch(r.pod, &r.status)
	if err != nil {
		return nil, false, err
	}
	pod, err = pods.Patch(ctx, r.pod.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
	return pod, false, err
}

// explain turns an error into nil if the pod is gone. A conflict may mean so: another pod of this name is there then.
func (s *statuses) explain(ctx context.Context, pod *corev1.Pod, err error) error {
	if apierrors.IsConflict(err) {
		is, getErr := s.client.Pods(pod.Namespace).Get(ctx, pod.Name, metav1.GetOptions{})
		if getErr == nil && is.UID != pod.UID {
			return nil
		}
		if getErr != nil {
			err = getErr
		}
	}
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// statusPatch changes only what differs, so that conditions of others survive, and only the very pod that is meant.
func statusPatch(pod *corev1.Pod, status *corev1.PodStatus) ([]byte, error) {
	before, err := json.Marshal(corev1.Pod{Status: pod.Status})
	if err != nil {
		return nil, err
	}
	after, err := json.Marshal(corev1.Pod{ObjectMeta: metav1.ObjectMeta{UID: pod.UID}, Status: *status})
	if err != nil {
		return nil, err
	}
	patch, err := strategicpatch.CreateTwoWayMergePatch(before, after, corev1.Pod{})
	if err != nil {
		return nil, fmt.Errorf("patch for the status of pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	return patch, nil
}

// sameStatus compares as the API stores: nil and empty are one.
func sameStatus(a, b *corev1.PodStatus) bool { return equality.Semantic.DeepEqual(a, b) }

// older compares two resourceVersions of one kind of object (KEP-5504); what cannot be compared is not older.
func older(a, b string) bool {
	c, err := resourceversion.CompareResourceVersion(a, b)
	return err == nil && c < 0
}
