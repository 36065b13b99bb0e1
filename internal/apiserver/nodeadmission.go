package apiserver

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apiserver/pkg/admission"
	kubeletapis "k8s.io/kubelet/pkg/apis"
	podutil "k8s.io/kubernetes/pkg/api/pod"
	"k8s.io/kubernetes/pkg/apis/authentication"
	"k8s.io/kubernetes/pkg/apis/coordination"
	api "k8s.io/kubernetes/pkg/apis/core"
	"k8s.io/kubernetes/pkg/auth/nodeidentifier"
)

// nodeAdmissionName is upstream's for the plugin with the same rules.
const nodeAdmissionName = "NodeRestriction"

// nodeAdmission refuses what nodeRights can not see from the request line: a node that writes another Node or the pods of
// one, that frees itself of taints or takes labels that steer workloads (Kubernetes: "NodeRestriction"), or that wants a
// token for a pod elsewhere. Whatever rights RBAC gives a node besides, these hold.
type nodeAdmission struct {
	identify nodeidentifier.NodeIdentifier
	pods     *boundPods
}

// Handles implements admission.Interface.
func (nodeAdmission) Handles(op admission.Operation) bool { return op != admission.Connect }

// Validate implements admission.ValidationInterface.
func (n nodeAdmission) Validate(ctx context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	node, ok := n.identify.NodeIdentity(a.GetUserInfo())
	if !ok {
		return nil
	}
	var err error
	switch a.GetResource().GroupResource() {
	case api.Resource("nodes"):
		err = n.node(node, a)
	case api.Resource("pods"):
		err = n.pod(ctx, node, a)
	case coordination.Resource("leases"):
		if a.GetNamespace() != api.NamespaceNodeLease || a.GetName() != node {
			err = fmt.Errorf("node %s may only use its own Lease in %s", node, api.NamespaceNodeLease)
		}
	case api.Resource("serviceaccounts"):
		if a.GetSubresource() == "token" {
			err = n.token(ctx, node, a)
		}
	}
	if err != nil {
		return admission.NewForbidden(a, err)
	}
	return nil
}

func (nodeAdmission) node(node string, a admission.Attributes) error {
	if a.GetName() != node {
		return fmt.Errorf("node %s may not change Node %s", node, a.GetName())
	}
	now, _ := a.GetObject().(*api.Node)
	if now == nil {
		return nil // a deletion, which only RBAC can have allowed
	}
	old, _ := a.GetOldObject().(*api.Node)
	var oldLabels map[string]string
	if old != nil {
		oldLabels = old.Labels
	}
	if forbidden := forbiddenLabels(oldLabels, now.Labels); len(forbidden) > 0 {
		return fmt.Errorf("node %s may not set the labels %s", node, strings.Join(forbidden, ", "))
	}
	switch {
	case old == nil: // it may register with taints
	case !equality.Semantic.DeepEqual(old.Spec.Taints, now.Spec.Taints):
		return fmt.Errorf("node %s may not change its taints", node)
	case !equality.Semantic.DeepEqual(old.OwnerReferences, now.OwnerReferences):
		return fmt.Errorf("node %s may not change its owner references", node)
	}
	return nil
}

// forbiddenLabels are those that differ and are not a node's to say, sorted.
func forbiddenLabels(old, now map[string]string) []string {
	var forbidden []string
	check := func(key, other string, has bool, value string) {
		if (!has || value != other) && !nodeLabel(key) {
			forbidden = append(forbidden, key)
		}
	}
	for key, value := range now {
		was, ok := old[key]
		check(key, was, ok, value)
	}
	for key, value := range old {
		if _, ok := now[key]; !ok {
			check(key, "", false, value)
		}
	}
	slices.Sort(forbidden)
	return forbidden
}

// nodeLabel says whether a node may choose the label: its own, and of Kubernetes' those that a kubelet sets.
func nodeLabel(key string) bool {
	domain, _, qualified := strings.Cut(key, "/")
	if !qualified {
		return true
	}
	within := func(parent string) bool { return domain == parent || strings.HasSuffix(domain, "."+parent) }
	if within(corev1.LabelNamespaceNodeRestriction) {
		return false
	}
	return !within("kubernetes.io") && !within("k8s.io") || kubeletapis.IsKubeletLabel(key)
}

func (n nodeAdmission) pod(ctx context.Context, node string, a admission.Attributes) error {
	now, _ := a.GetObject().(*api.Pod)
	old, _ := a.GetOldObject().(*api.Pod)
	switch op, sub := a.GetOperation(), a.GetSubresource(); {
	case op == admission.Create && sub == "" && now != nil:
		return n.mirrorPod(ctx, node, now)
	case op == admission.Delete && sub == "" && old != nil:
		if old.Spec.NodeName != node {
			return fmt.Errorf("node %s may only delete pods that are bound to it", node)
		}
		return nil
	case op == admission.Update && sub == "status" && old != nil && now != nil:
		if old.Spec.NodeName != node {
			return fmt.Errorf("node %s may only write the status of pods that are bound to it", node)
		}
		if !maps.Equal(old.Labels, now.Labels) {
			return fmt.Errorf("node %s may not change labels with the status", node)
		}
		return nil
	}
	return fmt.Errorf("node %s may only create and delete mirror pods, delete its pods and write their status", node)
}

// mirrorPod: one that shows a pod of the node's own manifests, belongs to its Node and gets at nothing through the API.
func (n nodeAdmission) mirrorPod(ctx context.Context, node string, pod *api.Pod) error {
	if _, ok := pod.Annotations[api.MirrorPodAnnotationKey]; !ok {
		return fmt.Errorf("node %s may only create mirror pods: the annotation %s is missing", node, api.MirrorPodAnnotationKey)
	}
	if pod.Spec.NodeName != node {
		return fmt.Errorf("node %s may only create pods with spec.nodeName %s", node, node)
	}
	owner := fmt.Errorf("node %s may only create pods whose one owner and controller is its Node, without blockOwnerDeletion", node)
	if len(pod.OwnerReferences) != 1 {
		return owner
	}
	ref := pod.OwnerReferences[0]
	if ref.APIVersion != corev1.SchemeGroupVersion.String() || ref.Kind != "Node" || ref.Name != node ||
		ref.Controller == nil || !*ref.Controller || ref.BlockOwnerDeletion != nil && *ref.BlockOwnerDeletion {
		return owner
	}
	uid, err := n.pods.nodeUID(ctx, node)
	if err != nil {
		return fmt.Errorf("look up the owner: %w", err)
	}
	if ref.UID != uid {
		return fmt.Errorf("the owner reference has UID %s, but Node %s has %s", ref.UID, node, uid)
	}
	refers, what, err := podutil.HasAPIObjectReference(pod)
	if err != nil {
		return err
	}
	if refers {
		return fmt.Errorf("node %s may not create pods that name %s", node, what)
	}
	return nil
}

// token: bound to a pod of the node, by UID, and for the audiences that the pod asks for (KEP-4412's restriction of
// what a node may ask). The registry checks that the pod uses the ServiceAccount.
func (n nodeAdmission) token(ctx context.Context, node string, a admission.Attributes) error {
	request, _ := a.GetObject().(*authentication.TokenRequest)
	if request == nil {
		return errors.New("not a TokenRequest")
	}
	ref := request.Spec.BoundObjectRef
	if ref == nil || ref.APIVersion != "v1" || ref.Kind != "Pod" || ref.Name == "" || ref.UID == "" {
		return fmt.Errorf("node %s may only ask for tokens that are bound to a pod by name and UID", node)
	}
	pod, err := n.pods.get(ctx, a.GetNamespace(), ref.Name, node)
	switch {
	case err != nil:
		return err
	case pod == nil || pod.UID != ref.UID:
		return fmt.Errorf("no pod %s with UID %s is bound to node %s", ref.Name, ref.UID, node)
	}
	allowed := tokenAudiences(pod)
	for _, audience := range request.Spec.Audiences {
		if !slices.Contains(allowed, audience) {
			return fmt.Errorf("no volume of pod %s asks for a token for the audience %q", pod.Name, audience)
		}
	}
	return nil
}

// tokenAudiences are those of the pod's projected tokens, and the API server's own.
func tokenAudiences(pod *api.Pod) []string {
	audiences := []string{Issuer}
	for _, volume := range pod.Spec.Volumes {
		if volume.Projected == nil {
			continue
		}
		for _, source := range volume.Projected.Sources {
			if source.ServiceAccountToken != nil {
				audiences = append(audiences, source.ServiceAccountToken.Audience)
			}
		}
	}
	return audiences
}
