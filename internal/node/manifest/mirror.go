package manifest

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

const (
	mirrorFirst   = 200 * time.Millisecond // until a failed write is tried again
	mirrorLast    = 5 * time.Second
	mirrorTimeout = 5 * time.Second // of a request
)

// IsMirror says whether a pod of the API only shows a static pod. The agent must not start it.
func IsMirror(p *corev1.Pod) bool { return p.Annotations[AnnotationMirror] != "" }

// StaticUID is the UID of the static pod that a mirror pod shows; "" = it is none.
func StaticUID(mirror *corev1.Pod) types.UID { return types.UID(mirror.Annotations[AnnotationMirror]) }

// IsStatic says whether a pod came from a file.
func IsStatic(p *corev1.Pod) bool { return p.Annotations[AnnotationSource] == "file" && !IsMirror(p) }

// Mirror is the pod of the API that shows a static pod, also one that is not wanted any more: the static pod's status
// is written to its status. It is shared: do not modify it.
func (m *Manifest) Mirror(uid types.UID) (*corev1.Pod, bool) {
	for _, p := range m.store.List() {
		if StaticUID(p) == uid {
			return p, true
		}
	}
	return nil, false
}

// Sync has the mirror pods looked at. Call it when Options.Running of a pod has become false.
func (m *Manifest) Sync() {
	select {
	case m.poke <- struct{}{}:
	default:
	}
}

// mirror keeps the mirror pods until ctx ends.
func (m *Manifest) mirror(ctx context.Context) {
	select {
	case <-m.store.Synced(): // before it, a mirror pod that is there would look missing
	case <-ctx.Done():
		return
	}
	said := ""
	retry := mirrorFirst
	for {
		var again <-chan time.Time
		waits, err := m.reconcile(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			if err.Error() != said {
				said = err.Error()
				m.log.Warn("a mirror pod is not as it should be, trying on", "error", err)
				m.event("FailedMirrorPod", err.Error())
			}
			again = time.After(retry)
			retry = min(2*retry, mirrorLast)
		default:
			said, retry = "", mirrorFirst
			if waits {
				again = time.After(time.Second)
			}
		}
		select {
		case <-m.poke:
		case <-again:
		case <-ctx.Done():
			return
		}
	}
}

// reconcile makes and deletes mirror pods. It waits when the Node is not known yet, or an old pod still runs.
func (m *Manifest) reconcile(ctx context.Context) (waits bool, failed error) {
	m.mu.Lock()
	known, pods := m.read, m.pods
	m.mu.Unlock()
	if !known { // nobody knows what is wanted
		return false, nil
	}
	var errs []error
	wanted := map[types.NamespacedName]*corev1.Pod{}
	for _, p := range pods {
		wanted[types.NamespacedName{Namespace: p.Namespace, Name: p.Name}] = p
	}
	for _, there := range m.store.List() {
		name := types.NamespacedName{Namespace: there.Namespace, Name: there.Name}
		p := wanted[name]
		switch {
		case !IsMirror(there):
			if p != nil {
				errs = append(errs, fmt.Errorf("static pod %s cannot be shown: the API has another pod of this name; delete that, or rename the pod in the manifest", name))
				delete(wanted, name)
			}
			continue
		case p != nil && StaticUID(there) == p.UID && there.DeletionTimestamp == nil:
			delete(wanted, name)
			continue
		}
		delete(wanted, name) // made when this one is gone
		old := p == nil || StaticUID(there) != p.UID
		if old && m.o.Running(StaticUID(there)) {
			waits = true
			if there.DeletionTimestamp != nil {
				continue
			}
			errs = append(errs, m.remove(ctx, there, nil)) // as gracefully as the pod ends
			continue
		}
		errs = append(errs, m.remove(ctx, there, new(int64(0))))
	}
	for _, p := range pods {
		if wanted[types.NamespacedName{Namespace: p.Namespace, Name: p.Name}] == nil {
			continue
		}
		node, ok := m.o.Node()
		if !ok {
			waits = true
			break
		}
		errs = append(errs, m.create(ctx, p, node))
	}
	return waits, errors.Join(errs...)
}

func (m *Manifest) remove(ctx context.Context, p *corev1.Pod, grace *int64) error {
	ctx, cancel := context.WithTimeout(ctx, mirrorTimeout)
	defer cancel()
	err := m.o.Client.CoreV1().Pods(p.Namespace).Delete(ctx, p.Name, metav1.DeleteOptions{
		GracePeriodSeconds: grace, Preconditions: &metav1.Preconditions{UID: &p.UID},
	})
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
		return fmt.Errorf("delete mirror pod %s/%s: %w", p.Namespace, p.Name, err)
	}
	return nil
}

func (m *Manifest) create(ctx context.Context, p *corev1.Pod, node *corev1.Node) error {
	ctx, cancel := context.WithTimeout(ctx, mirrorTimeout)
	defer cancel()
	mirror := p.DeepCopy()
	mirror.UID = ""
	mirror.Status = corev1.PodStatus{}
	mirror.Annotations[AnnotationMirror] = string(p.UID)
	mirror.OwnerReferences = []metav1.OwnerReference{{
		APIVersion: "v1", Kind: "Node", Name: node.Name, UID: node.UID, Controller: new(true),
	}}
	client := m.o.Client.CoreV1().Pods(p.Namespace)
	_, err := client.Create(ctx, mirror, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		there, readErr := client.Get(ctx, p.Name, metav1.GetOptions{})
		if readErr == nil && there.Spec.NodeName == m.o.NodeName {
			return nil // the watch is later than what was written, and asks for another look
		}
		return fmt.Errorf("static pod %s/%s cannot be shown: the API has a pod of this name that is not on this node; rename one of them: %w", p.Namespace, p.Name, err)
	}
	if err != nil {
		return fmt.Errorf("create mirror pod %s/%s: %w", p.Namespace, p.Name, err)
	}
	return nil
}
