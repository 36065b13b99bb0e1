package apiserver

import (
	"context"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/endpointd/endpointd/internal/apiserver/pki"
)

// agent is a client with the certificate of a node.
func agent(t *testing.T, name string) *kubernetes.Clientset {
	t.Helper()
	text, err := pki.NodeKubeconfig(filepath.Dir(shared.files.CACert), "https://"+shared.addr, pki.Node{Name: name, Addrs: []netip.Addr{netip.MustParseAddr("127.0.0.1")}})
	if err != nil {
		t.Fatal(err)
	}
	config, err := clientcmd.RESTConfigFromKubeConfig(text)
	if err != nil {
		t.Fatal(err)
	}
	config.QPS = -1
	return kubernetes.NewForConfigOrDie(config)
}

func testNode(t *testing.T, name string) *corev1.Node {
	t.Helper()
	nodes := shared.client(t).CoreV1().Nodes()
	node, err := nodes.Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = nodes.Delete(t.Context(), name, metav1.DeleteOptions{}) })
	return node
}

// boundPod names objects after itself: by environment, by volume, as image pull secret and as account.
func boundPod(namespace, name, node string) *corev1.Pod {
	ref := func(suffix string) corev1.LocalObjectReference {
		return corev1.LocalObjectReference{Name: name + suffix}
	}
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: map[string]string{"app": name}}, Spec: corev1.PodSpec{
		NodeName: node, ServiceAccountName: name, ImagePullSecrets: []corev1.LocalObjectReference{ref("-pull")},
		InitContainers: []corev1.Container{{Name: "init", Image: "i", Env: []corev1.EnvVar{{Name: "E", ValueFrom: &corev1.EnvVarSource{
			SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: ref("-env"), Key: "k"},
		}}}}},
		Containers: []corev1.Container{{Name: "c", Image: "i", EnvFrom: []corev1.EnvFromSource{{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: ref("-env")}}}}},
		Volumes: []corev1.Volume{
			{Name: "s", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: name + "-volume"}}},
			{Name: "p", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
				{ConfigMap: &corev1.ConfigMapProjection{LocalObjectReference: ref("-projected")}},
				{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token", Audience: "vault"}},
			}}}},
		},
	}}
}

func createPod(t *testing.T, pod *corev1.Pod) *corev1.Pod {
	t.Helper()
	ctx, admin := t.Context(), shared.client(t)
	if _, err := admin.CoreV1().ServiceAccounts(pod.Namespace).Create(ctx, account(pod.Name), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	var created *corev1.Pod
	eventually(t, "create pod "+pod.Name, func(ctx context.Context) (done bool, err error) {
		created, err = admin.CoreV1().Pods(pod.Namespace).Create(ctx, pod, metav1.CreateOptions{})
		return err == nil, nil // the server has not heard of the account at once
	})
	return created
}

// TestNodeRights: user × verb × resource, as the authorizer sees it.
func TestNodeRights(t *testing.T) {
	t.Parallel()
	ctx, admin := t.Context(), shared.client(t)
	namespace(t, "rights")
	namespace(t, "rights-other")
	createPod(t, boundPod("rights", "mine", "rights-1"))
	createPod(t, boundPod("rights", "theirs", "rights-2"))
	createPod(t, boundPod("rights", "nobodys", ""))

	const all = "get list watch create update patch delete deletecollection"
	tests := []struct {
		resource, namespace, name string // resource[.group][/subresource]
		selector                  string // of spec.nodeName
		allowed                   string // verbs; all others are refused
	}{
		{"services", "", "", "", "get list watch"},
		{"services", "rights", "s", "", "get list watch"},
		{"services/status", "rights", "s", "", ""},
		{"services/proxy", "rights", "s", "", ""},
		{"endpointslices.discovery.k8s.io", "", "", "", "get list watch"},
		{"servicecidrs.networking.k8s.io", "", "", "", "get list watch"},
		{"servicecidrs.networking.k8s.io", "", "kubernetes", "", "get list watch"},
		{"servicecidrs.networking.k8s.io/status", "", "kubernetes", "", ""},
		{"ipaddresses.networking.k8s.io", "", "", "", ""},
		{"endpoints", "rights", "e", "", ""},
		{"nodes", "", "", "", "get list watch create"},
		{"nodes", "", "rights-1", "", "get list watch create update patch"},
		{"nodes", "", "rights-2", "", "get list watch create"},
		{"nodes/status", "", "rights-1", "", "update patch"},
		{"nodes/status", "", "rights-2", "", ""},
		{"nodes/proxy", "", "rights-1", "", ""},
		{"leases.coordination.k8s.io", "kube-node-lease", "rights-1", "", "get create update patch delete"},
		{"leases.coordination.k8s.io", "kube-node-lease", "rights-2", "", "create"},
		{"leases.coordination.k8s.io", "kube-node-lease", "", "", "create"},
		{"leases.coordination.k8s.io", "kube-system", "rights-1", "", ""},
		{"pods", "", "", "", "create delete"},
		{"pods", "", "", "rights-1", "list watch create delete"},
		{"pods", "", "", "rights-2", "create delete"},
		{"pods", "rights", "mine", "", "get list watch create delete"},
		{"pods", "rights", "theirs", "", "create delete"},
		{"pods", "rights", "nobodys", "", "create delete"},
		{"pods", "rights-other", "mine", "", "create delete"},
		{"pods/status", "rights", "mine", "", "update patch"},
		{"pods/binding", "rights", "mine", "", ""},
		{"pods/eviction", "rights", "mine", "", ""},
		{"pods/exec", "rights", "mine", "", ""},
		{"pods/ephemeralcontainers", "rights", "mine", "", ""},
		{"secrets", "rights", "mine-env", "", "get list watch"},
		{"secrets", "rights", "mine-pull", "", "get list watch"},
		{"secrets", "rights", "mine-volume", "", "get list watch"},
		{"secrets", "rights", "mine", "", ""},
		{"secrets", "rights", "mine-projected", "", ""},
		{"secrets", "rights", "theirs-env", "", ""},
		{"secrets", "rights", "nobodys-env", "", ""},
		{"secrets", "rights-other", "mine-env", "", ""},
		{"secrets", "rights", "", "", ""},
		{"secrets", "", "", "", ""},
		{"configmaps", "rights", "mine-env", "", "get list watch"},
		{"configmaps", "rights", "mine-projected", "", "get list watch"},
		{"configmaps", "rights", "kube-root-ca.crt", "", "get list watch"},
		{"configmaps", "rights", "theirs-env", "", ""},
		{"configmaps", "", "mine-env", "", ""},
		{"serviceaccounts/token", "rights", "mine", "", "create"},
		{"serviceaccounts/token", "rights", "theirs", "", ""},
		{"serviceaccounts/token", "rights-other", "mine", "", ""},
		{"serviceaccounts", "rights", "mine", "", ""},
		{"events", "rights", "", "", "create update patch"},
		{"events.events.k8s.io", "rights", "", "", "create update patch"},
		{"namespaces", "", "rights", "", ""},
		{"deployments.apps", "rights", "d", "", ""},
		{"clusterroles.rbac.authorization.k8s.io", "", "c", "", ""},
		{"subjectaccessreviews.authorization.k8s.io", "", "", "", "create"},
		{"tokenreviews.authentication.k8s.io", "", "", "", ""},
		{"customresourcedefinitions.apiextensions.k8s.io", "", "c", "", ""},
	}
	may := func(user string, groups []string, a authorizationv1.ResourceAttributes) bool {
		t.Helper()
		review, err := admin.AuthorizationV1().SubjectAccessReviews().Create(ctx, &authorizationv1.SubjectAccessReview{
			Spec: authorizationv1.SubjectAccessReviewSpec{User: user, Groups: append(groups, "system:authenticated"), ResourceAttributes: &a},
		}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return review.Status.Allowed
	}
	for _, test := range tests {
		a := authorizationv1.ResourceAttributes{Namespace: test.namespace, Name: test.name}
		a.Resource, a.Subresource, _ = strings.Cut(test.resource, "/")
		a.Resource, a.Group, _ = strings.Cut(a.Resource, ".")
		if test.selector != "" {
			a.FieldSelector = &authorizationv1.FieldSelectorAttributes{Requirements: []metav1.FieldSelectorRequirement{{Key: "spec.nodeName", Operator: "In", Values: []string{test.selector}}}}
		}
		for a.Verb = range strings.FieldsSeq(all) {
			want := slices.Contains(strings.Fields(test.allowed), a.Verb)
			if got := may("system:node:rights-1", []string{"system:nodes"}, a); got != want {
				t.Errorf("%s %s %s/%s [%s]: allowed %v, want %v", a.Verb, test.resource, test.namespace, test.name, test.selector, got, want)
			}
			for user, groups := range map[string][]string{"system:node:rights-1": nil, "rights-1": {"system:nodes"}, "system:node:": {"system:nodes"}} {
				if may(user, groups, a) {
					t.Errorf("%s %v: %s %s is allowed to who is no node", user, groups, a.Verb, test.resource)
				}
			}
		}
	}
}

// TestNodeRequests: what an agent does works, and what it must not is refused by name or by content.
func TestNodeRequests(t *testing.T) {
	t.Parallel()
	ctx, admin, own := t.Context(), shared.client(t), agent(t, "requests-1")
	namespace(t, "requests")
	testNode(t, "requests-2")
	forbidden := func(what string, err error) {
		t.Helper()
		if !apierrors.IsForbidden(err) {
			t.Errorf("%s: %v, want Forbidden", what, err)
		}
	}
	fine := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	node, err := own.CoreV1().Nodes().Create(ctx, &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: "requests-1", Labels: map[string]string{"kubernetes.io/hostname": "requests-1", "rack": "7"}},
		Spec:       corev1.NodeSpec{PodCIDR: "10.244.200.0/24", PodCIDRs: []string{"10.244.200.0/24"}, Taints: []corev1.Taint{{Key: "gpu", Effect: corev1.TaintEffectNoSchedule}}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = admin.CoreV1().Nodes().Delete(t.Context(), "requests-1", metav1.DeleteOptions{}) })
	patch := func(name, body string, sub ...string) error {
		_, err := own.CoreV1().Nodes().Patch(ctx, name, types.StrategicMergePatchType, []byte(body), metav1.PatchOptions{}, sub...)
		return err
	}
	fine("write its status", patch("requests-1", `{"status":{"addresses":[{"type":"InternalIP","address":"10.200.0.11"}]}}`, "status"))
	fine("write a label of its own", patch("requests-1", `{"metadata":{"labels":{"rack":"8","topology.kubernetes.io/zone":"a"}}}`))
	forbidden("another's status", patch("requests-2", `{"status":{"phase":"Running"}}`, "status"))
	forbidden("a taint", patch("requests-1", `{"spec":{"taints":[]}}`))
	forbidden("all taints", patch("requests-1", `{"spec":{"taints":null}}`))
	forbidden("a label that steers", patch("requests-1", `{"metadata":{"labels":{"node-role.kubernetes.io/control-plane":""}}}`))
	forbidden("a restricted label", patch("requests-1", `{"metadata":{"labels":{"pci.node-restriction.kubernetes.io/x":"y"}}}`))
	_, err = own.CoreV1().Nodes().Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "requests-3"}}, metav1.CreateOptions{})
	forbidden("register as another", err)

	lease := func(namespace, name string) error {
		_, err := own.CoordinationV1().Leases(namespace).Create(ctx, &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
		return err
	}
	eventually(t, "the namespace of leases", func(ctx context.Context) (bool, error) {
		_, err := admin.CoreV1().Namespaces().Get(ctx, corev1.NamespaceNodeLease, metav1.GetOptions{})
		return err == nil, nil
	})
	fine("its lease", lease(corev1.NamespaceNodeLease, "requests-1"))
	forbidden("another's lease", lease(corev1.NamespaceNodeLease, "requests-2"))

	testNodePods(t, own, node, fine, forbidden)
}

func testNodePods(t *testing.T, own kubernetes.Interface, node *corev1.Node, fine, forbidden func(string, error)) {
	ctx, admin := t.Context(), shared.client(t)
	w, err := own.CoreV1().Pods("").Watch(ctx, metav1.ListOptions{FieldSelector: "spec.nodeName=requests-1"})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	mine, theirs := createPod(t, boundPod("requests", "mine", "requests-1")), createPod(t, boundPod("requests", "theirs", "requests-2"))
	for _, name := range []string{"mine-env", "theirs-env"} {
		if _, err := admin.CoreV1().Secrets("requests").Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if e := <-w.ResultChan(); e.Type != watch.Added || e.Object.(*corev1.Pod).Name != "mine" {
		t.Fatalf("watch: %v", e)
	}
	// Whoever is shown a pod may read what it names, at once.
	_, err = own.CoreV1().Secrets("requests").Get(ctx, "mine-env", metav1.GetOptions{})
	fine("a secret of its pod", err)
	_, err = own.CoreV1().Secrets("requests").Get(ctx, "theirs-env", metav1.GetOptions{})
	forbidden("a secret of another's pod", err)
	_, err = own.CoreV1().Secrets("requests").List(ctx, metav1.ListOptions{FieldSelector: "metadata.name=mine-env"})
	fine("list that secret", err)
	_, err = own.CoreV1().Pods("").List(ctx, metav1.ListOptions{})
	forbidden("list all pods", err)

	status := func(name, body string) error {
		_, err := own.CoreV1().Pods("requests").Patch(ctx, name, types.StrategicMergePatchType, []byte(body), metav1.PatchOptions{}, "status")
		return err
	}
	fine("the status of its pod", status("mine", `{"status":{"phase":"Running"}}`))
	forbidden("labels with the status", status("mine", `{"metadata":{"labels":{"app":"web"}}}`))
	forbidden("the status of another's pod", status("theirs", `{"status":{"phase":"Running"}}`))

	token := func(account string, ref *authenticationv1.BoundObjectReference, audiences ...string) error {
		_, err := own.CoreV1().ServiceAccounts("requests").CreateToken(ctx, account, &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{BoundObjectRef: ref, Audiences: audiences}}, metav1.CreateOptions{})
		return err
	}
	podRef := func(p *corev1.Pod) *authenticationv1.BoundObjectReference {
		return &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: p.Name, UID: p.UID}
	}
	fine("a token of its pod", token("mine", podRef(mine)))
	fine("a token for an audience of its pod", token("mine", podRef(mine), "vault"))
	forbidden("a token for another audience", token("mine", podRef(mine), "bank"))
	forbidden("a token bound to nothing", token("mine", nil))
	forbidden("a token bound to its node", token("mine", &authenticationv1.BoundObjectReference{Kind: "Node", APIVersion: "v1", Name: node.Name, UID: node.UID}))
	forbidden("a token of another's pod", token("theirs", podRef(theirs)))
	forbidden("a token of its account bound to another's pod", token("mine", podRef(theirs)))
	forbidden("a token bound to an earlier pod", token("mine", &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: "mine", UID: "0"}))

	create := func(change func(*corev1.Pod)) error {
		pod := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{
				Name: "static", Namespace: "requests", Annotations: map[string]string{corev1.MirrorPodAnnotationKey: "hash"},
				OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: node.Name, UID: node.UID, Controller: new(true)}},
			},
			Spec: corev1.PodSpec{NodeName: node.Name, Containers: []corev1.Container{{Name: "c", Image: "i"}}},
		}
		change(pod)
		_, err := own.CoreV1().Pods("requests").Create(ctx, pod, metav1.CreateOptions{})
		return err
	}
	forbidden("a pod that mirrors nothing", create(func(p *corev1.Pod) { p.Annotations = nil }))
	forbidden("a mirror pod elsewhere", create(func(p *corev1.Pod) { p.Spec.NodeName = "requests-2" }))
	forbidden("a mirror pod without owner", create(func(p *corev1.Pod) { p.OwnerReferences = nil }))
	forbidden("a mirror pod of an earlier Node", create(func(p *corev1.Pod) { p.OwnerReferences[0].UID = "0" }))
	forbidden("a mirror pod with a secret", create(func(p *corev1.Pod) { p.Spec.ImagePullSecrets = []corev1.LocalObjectReference{{Name: "theirs-env"}} }))
	fine("a mirror pod", create(func(*corev1.Pod) {}))
	forbidden("delete another's pod", own.CoreV1().Pods("requests").Delete(ctx, "theirs", metav1.DeleteOptions{}))
	fine("delete its mirror pod", own.CoreV1().Pods("requests").Delete(ctx, "static", metav1.DeleteOptions{GracePeriodSeconds: new(int64(0))}))
	fine("delete its pod", own.CoreV1().Pods("requests").Delete(ctx, "mine", metav1.DeleteOptions{GracePeriodSeconds: new(int64(0))}))
	review, err := own.AuthorizationV1().SubjectAccessReviews().Create(ctx, &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
		User: "eve", ResourceAttributes: &authorizationv1.ResourceAttributes{Verb: "get", Resource: "nodes", Subresource: "proxy", Name: node.Name},
	}}, metav1.CreateOptions{})
	fine("ask what others may", err)
	if review.Status.Allowed {
		t.Error("eve may use the node's port")
	}
	_, err = own.CoreV1().Events("requests").Create(ctx, &corev1.Event{ObjectMeta: metav1.ObjectMeta{Name: "e", Namespace: "requests"}, InvolvedObject: corev1.ObjectReference{Kind: "Pod", Namespace: "requests", Name: "mine"}}, metav1.CreateOptions{})
	fine("an event", err)
}
