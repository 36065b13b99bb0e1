package apiserver

import (
	"context"
	"fmt"
	"slices"

	metainternalversion "k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/selection"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	genericrequest "k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/generic/registry"
	podutil "k8s.io/kubernetes/pkg/api/pod"
	"k8s.io/kubernetes/pkg/apis/authorization"
	"k8s.io/kubernetes/pkg/apis/coordination"
	api "k8s.io/kubernetes/pkg/apis/core"
	"k8s.io/kubernetes/pkg/apis/discovery"
	"k8s.io/kubernetes/pkg/apis/events"
	"k8s.io/kubernetes/pkg/apis/networking"
	"k8s.io/kubernetes/pkg/auth/nodeidentifier"
)

// nodeRights allows node agents (users system:node:NAME of the group system:nodes) what they need and no more; upstream's
// node authorizer (Kubernetes: "Using Node Authorization") is the model:
//
//	services, endpointslices, nodes   read all
//	servicecidrs                      read all
//	nodes, nodes/status               write, their own
//	leases in kube-node-lease         their own
//	pods                              read, delete, write the status of those bound to them; create mirror pods
//	secrets, configmaps               read one that a pod bound to them names
//	serviceaccounts/token             create, for a pod bound to them
//	events                            write
//	subjectaccessreviews              create: who but the API server may use the agent's own port
//
// Upstream keeps a graph of all pods and what they name, fed by informers. Here the watch cache is asked, which has an
// index of pods by node: no memory, and nothing that lags behind what the agent was shown.
//
// What depends on the content of a request is in nodeAdmission. It never denies: RBAC may allow more.
type nodeRights struct {
	identify nodeidentifier.NodeIdentifier
	pods     *boundPods
}

// Authorize implements authorizer.Authorizer.
func (r nodeRights) Authorize(ctx context.Context, a authorizer.Attributes) (authorizer.Decision, string, error) {
	node, ok := r.identify.NodeIdentity(a.GetUser())
	if !ok || node == "" || !a.IsResourceRequest() {
		return authorizer.DecisionNoOpinion, "", nil
	}
	may, reason, err := r.may(ctx, node, a)
	if err != nil || !may {
		return authorizer.DecisionNoOpinion, reason, err
	}
	return authorizer.DecisionAllow, "", nil
}

// reads and patches are groups of the API's verbs.
func reads(verb string) bool   { return verb == "get" || verb == "list" || verb == "watch" }
func patches(verb string) bool { return verb == "update" || verb == "patch" }

func (r nodeRights) may(ctx context.Context, node string, a authorizer.Attributes) (ok bool, reason string, err error) {
	verb, sub := a.GetVerb(), a.GetSubresource()
	switch (schema.GroupResource{Group: a.GetAPIGroup(), Resource: a.GetResource()}) {
	case api.Resource("services"), discovery.Resource("endpointslices"), networking.Resource("servicecidrs"):
		return reads(verb) && sub == "", "nodes may only read", nil
	case api.Resource("events"), events.Resource("events"):
		return (verb == "create" || patches(verb)) && sub == "", "nodes may only write events", nil
	case authorization.Resource("subjectaccessreviews"):
		return verb == "create" && sub == "", "nodes may only ask", nil
	case api.Resource("nodes"):
		switch {
		case reads(verb) && sub == "", verb == "create" && sub == "": // nodeAdmission looks at the name
			return true, "", nil
		case patches(verb) && (sub == "" || sub == "status"):
			return a.GetName() == node, "nodes may only write their own Node", nil
		}
		return false, "nodes may read Nodes and write their own", nil
	case coordination.Resource("leases"):
		ok := a.GetNamespace() == api.NamespaceNodeLease && sub == "" &&
			(verb == "create" || (verb == "get" || verb == "delete" || patches(verb)) && a.GetName() == node)
		return ok, "nodes may only use their own Lease in " + api.NamespaceNodeLease, nil
	case api.Resource("pods"):
		return r.mayPods(ctx, node, a)
	case api.Resource("secrets"):
		return r.mayReadNamed(ctx, node, a, "secret", func(pod *api.Pod, visit podutil.Visitor) {
			podutil.VisitPodSecretNames(pod, visit, podutil.AllContainers)
		})
	case api.Resource("configmaps"):
		return r.mayReadNamed(ctx, node, a, "configmap", func(pod *api.Pod, visit podutil.Visitor) {
			podutil.VisitPodConfigmapNames(pod, visit, podutil.AllContainers)
		})
	case api.Resource("serviceaccounts"):
		if verb != "create" || sub != "token" {
			return false, "nodes may only create tokens", nil
		}
		return r.related(ctx, node, a, "service account", func(pod *api.Pod) bool { return pod.Spec.ServiceAccountName == a.GetName() })
	}
	return false, "", nil
}

func (r nodeRights) mayPods(ctx context.Context, node string, a authorizer.Attributes) (bool, string, error) {
	verb := a.GetVerb()
	switch {
	case a.GetSubresource() == "status" && patches(verb),
		a.GetSubresource() == "" && (verb == "create" || verb == "delete"):
		return true, "", nil // nodeAdmission looks at the pod
	case a.GetSubresource() != "" || !reads(verb):
		return false, "nodes may read and delete their pods, write their status and create mirror pods", nil
	}
	if requirements, err := a.GetFieldSelector(); err == nil && verb != "get" {
		for _, r := range requirements {
			if r.Field == podNodeField && r.Value == node && r.Operator == selection.Equals {
				return true, "", nil
			}
		}
	}
	if a.GetName() == "" {
		return false, "nodes may only list and watch pods with the field selector " + podNodeField + "=" + node, nil
	}
	pod, err := r.pods.get(ctx, a.GetNamespace(), a.GetName(), node)
	return pod != nil, "not a pod of this node", err
}

// mayReadNamed is about single objects. A list or watch of one is a request with a field selector for its name.
func (r nodeRights) mayReadNamed(ctx context.Context, node string, a authorizer.Attributes, kind string, names func(*api.Pod, podutil.Visitor)) (bool, string, error) {
	if a.GetSubresource() != "" || a.GetName() == "" || a.GetNamespace() == "" || !reads(a.GetVerb()) {
		return false, "nodes may only read a " + kind + " by its name", nil
	}
	return r.related(ctx, node, a, kind, func(pod *api.Pod) bool {
		found := false
		names(pod, func(name string) bool {
			found = found || name == a.GetName()
			return !found
		})
		return found
	})
}

func (r nodeRights) related(ctx context.Context, node string, a authorizer.Attributes, kind string, match func(*api.Pod) bool) (bool, string, error) {
	found, err := r.pods.any(ctx, a.GetNamespace(), node, match)
	return found, fmt.Sprintf("no pod of node %s in namespace %s names this %s", node, a.GetNamespace(), kind), err
}

// ConditionsAwareAuthorize implements authorizer.Authorizer; there are no conditions.
func (r nodeRights) ConditionsAwareAuthorize(ctx context.Context, a authorizer.Attributes) authorizer.ConditionsAwareDecision {
	return authorizer.ConditionsAwareDecisionFromParts(r.Authorize(ctx, a))
}

// EvaluateConditions implements authorizer.Authorizer; there are no conditions.
func (nodeRights) EvaluateConditions(context.Context, authorizer.ConditionsAwareDecision, authorizer.ConditionsData) (authorizer.Decision, string, error) {
	return authorizer.DecisionDeny, "", authorizer.ErrorConditionEvaluationNotSupported
}

// podNodeField is the field selector of a pod's node.
const podNodeField = "spec.nodeName"

// boundPods answers what is bound to a node from the storage, without a request. The watch cache is asked first; where it
// does not know, it is asked again as of now, for another server may have bound the pod a moment ago.
type boundPods struct {
	pods, nodes *registry.Store // set when the registries are made, before anything is served
}

// get is the pod if it is bound to the node, else nil.
func (b *boundPods) get(ctx context.Context, namespace, name, node string) (*api.Pod, error) {
	pods, err := b.list(ctx, namespace, node, func(p *api.Pod) bool { return p.Name == name })
	if len(pods) == 0 {
		return nil, err
	}
	return &pods[0], nil
}

// any says whether a pod of the namespace that is bound to the node matches.
func (b *boundPods) any(ctx context.Context, namespace, node string, match func(*api.Pod) bool) (bool, error) {
	pods, err := b.list(ctx, namespace, node, match)
	return len(pods) > 0, err
}

// list gives the first pod that matches, or none.
func (b *boundPods) list(ctx context.Context, namespace, node string, match func(*api.Pod) bool) ([]api.Pod, error) {
	ctx = genericrequest.WithNamespace(ctx, namespace)
	predicate := b.pods.PredicateFunc(labels.Everything(), fields.OneTermEqualSelector(podNodeField, node))
	for _, version := range []string{"0", ""} { // what the cache has, then the newest
		obj, err := b.pods.ListPredicate(ctx, predicate, &metainternalversion.ListOptions{ResourceVersion: version})
		if err != nil {
			return nil, fmt.Errorf("look up the pods of node %s: %w", node, err)
		}
		pods := obj.(*api.PodList).Items
		if i := slices.IndexFunc(pods, func(p api.Pod) bool { return match(&p) }); i >= 0 {
			return pods[i : i+1], nil
		}
	}
	return nil, nil
}

// nodeUID is the UID of a Node as it is now.
func (b *boundPods) nodeUID(ctx context.Context, name string) (types.UID, error) {
	obj, err := b.nodes.Get(ctx, name, &metav1.GetOptions{})
	if err != nil {
		return "", err
	}
	return obj.(*api.Node).UID, nil
}
