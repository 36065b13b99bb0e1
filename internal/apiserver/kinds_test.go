package apiserver

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"sigs.k8s.io/yaml"

	"github.com/endpointd/endpointd/internal/apiserver/top"
)

// samples has one object of every kind that can be stored: plural.version.group → YAML, the name being "sample"
// where the kind does not prescribe it.
func samples() map[string]string {
	template := "{metadata: {labels: {run: some-run}}, spec: {containers: [{name: c, image: nginx}]}}"
	return map[string]string{
		"configmaps.v1.":      `{data: {a: b}}`,
		"endpoints.v1.":       `{subsets: [{addresses: [{ip: 192.0.2.45}], ports: [{port: 9376}]}]}`,
		"events.v1.":          `{involvedObject: {kind: Pod, name: p, namespace: kinds}, reason: Tested, type: Normal}`,
		"namespaces.v1.":      `{}`,
		"nodes.v1.":           `{spec: {podCIDR: 10.1.0.0/24}}`,
		"pods.v1.":            `{spec: {serviceAccountName: runner, containers: [{name: c, image: nginx}]}}`,
		"secrets.v1.":         `{stringData: {a: b}}`,
		"serviceaccounts.v1.": `{}`,
		"services.v1.":        `{spec: {selector: {run: some-run}, ports: [{port: 80, targetPort: 9376}]}}`,

		"controllerrevisions.v1.apps": `{revision: 1, data: {a: b}}`,
		"daemonsets.v1.apps":          `{spec: {selector: {matchLabels: {run: some-run}}, template: ` + template + `}}`,
		"deployments.v1.apps":         `{spec: {selector: {matchLabels: {run: some-run}}, template: ` + template + `}}`,
		"replicasets.v1.apps":         `{spec: {selector: {matchLabels: {run: some-run}}, template: ` + template + `}}`,
		"statefulsets.v1.apps":        `{spec: {serviceName: s, selector: {matchLabels: {run: some-run}}, template: ` + template + `}}`,

		"leases.v1.coordination.k8s.io":      `{spec: {holderIdentity: me, leaseDurationSeconds: 5}}`,
		"endpointslices.v1.discovery.k8s.io": `{addressType: IPv4, endpoints: [{addresses: [192.0.2.45]}], ports: [{name: http, port: 9376}]}`,
		"events.v1.events.k8s.io": `{eventTime: "2026-01-02T03:04:05.000000Z", reportingController: t.example/c, reportingInstance: i, action: Test,
			reason: Tested, type: Normal, regarding: {kind: Pod, name: p, namespace: kinds}}`,

		"ingresses.v1.networking.k8s.io":       `{spec: {defaultBackend: {service: {name: s, port: {number: 80}}}}}`,
		"ingressclasses.v1.networking.k8s.io":  `{spec: {controller: t.example/c}}`,
		"networkpolicies.v1.networking.k8s.io": `{spec: {podSelector: {}, policyTypes: [Ingress]}}`,
		"ipaddresses.v1.networking.k8s.io":     `{metadata: {name: 10.200.0.9}, spec: {parentRef: {resource: services, namespace: kinds, name: s}}}`,
		"servicecidrs.v1.networking.k8s.io":    `{spec: {cidrs: [10.201.0.0/24]}}`,

		"clusterrolebindings.v1.rbac.authorization.k8s.io": `{roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: view}, subjects: [{kind: User, name: u}]}`,
		"clusterroles.v1.rbac.authorization.k8s.io":        `{rules: [{apiGroups: [""], resources: [pods], verbs: [get]}]}`,
		"rolebindings.v1.rbac.authorization.k8s.io":        `{roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: r}, subjects: [{kind: User, name: u}]}`,
		"roles.v1.rbac.authorization.k8s.io":               `{rules: [{apiGroups: [""], resources: [pods], verbs: [get]}]}`,

		"customresourcedefinitions.v1.apiextensions.k8s.io": `{metadata: {name: samples.kinds.example}, spec: {group: kinds.example, scope: Namespaced,
			names: {plural: samples, kind: Sample}, versions: [{name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object}}}]}}`,
	}
}

// TestKinds takes one object of every kind through its life. What discovery lists and samples must be the same set.
func TestKinds(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	client := shared.client(t)
	namespace(t, "kinds")
	if _, err := client.CoreV1().ServiceAccounts("kinds").Create(ctx, account("runner"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	lists, err := client.Discovery().ServerPreferredResources()
	if err != nil {
		t.Fatal(err)
	}
	left := samples()
	for _, list := range lists {
		gv, err := schema.ParseGroupVersion(list.GroupVersion)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range list.APIResources {
			if !slices.Contains(r.Verbs, "list") || strings.HasSuffix(gv.Group, ".example") || gv.Group == top.GroupVersion().Group {
				continue // reviews: TestReviews; .example: other tests' custom resources; metrics: TestMetrics
			}
			gvr := gv.WithResource(r.Name)
			id := fmt.Sprintf("%s.%s.%s", gvr.Resource, gvr.Version, gvr.Group)
			sample, ok := left[id]
			if !ok {
				t.Errorf("%s is served and has no sample", id)
				continue
			}
			delete(left, id)
			t.Run(id, func(t *testing.T) {
				t.Parallel()
				life(t, gvr, r, sample)
			})
		}
	}
	for _, id := range slices.Sorted(maps.Keys(left)) {
		t.Errorf("%s has a sample and is not served", id)
	}
}

func life(t *testing.T, gvr schema.GroupVersionResource, r metav1.APIResource, sample string) {
	ctx := t.Context()
	dyn := dynamic.NewForConfigOrDie(shared.admin())
	var api dynamic.ResourceInterface = dyn.Resource(gvr)
	obj := object(t, sample)
	obj.SetGroupVersionKind(gvr.GroupVersion().WithKind(r.Kind))
	if obj.GetName() == "" {
		obj.SetName("sample")
	}
	name := obj.GetName()
	if r.Namespaced {
		api = dyn.Resource(gvr).Namespace("kinds")
	}

	bogus := obj.DeepCopy()
	bogus.Object["bogus"] = true
	_, err := api.Create(ctx, bogus, metav1.CreateOptions{FieldValidation: "Strict"})
	if err == nil || !strings.Contains(err.Error(), `unknown field "bogus"`) {
		t.Errorf("strict create with an unknown field: %v", err)
	}

	before, err := api.List(ctx, metav1.ListOptions{Limit: 1})
	if err != nil {
		t.Fatal(err)
	}
	byName := metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector("metadata.name", name).String(), ResourceVersion: before.GetResourceVersion()}
	events, err := api.Watch(ctx, byName)
	if err != nil {
		t.Fatal(err)
	}
	defer events.Stop()

	if _, err := api.Create(ctx, obj, metav1.CreateOptions{FieldValidation: "Strict"}); err != nil {
		t.Fatalf("create: %v", err)
	}
	if _, err := api.Create(ctx, obj, metav1.CreateOptions{}); !apierrors.IsAlreadyExists(err) {
		t.Errorf("second create: %v, want AlreadyExists", err)
	}
	patch := []byte(`{"metadata":{"annotations":{"patched":"yes"}}}`)
	if _, err := api.Patch(ctx, name, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		t.Errorf("merge patch: %v", err)
	}
	apply := &unstructured.Unstructured{Object: map[string]any{"metadata": map[string]any{"name": name, "labels": map[string]any{"applied": "yes"}}}}
	apply.SetGroupVersionKind(obj.GroupVersionKind())
	if _, err := api.Apply(ctx, name, apply, metav1.ApplyOptions{FieldManager: "tester"}); err != nil {
		t.Errorf("server-side apply: %v", err)
	}
	got, err := api.Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		t.Fatalf("get: %v", err)
	}
	if got.GetAnnotations()["patched"] != "yes" || got.GetLabels()["applied"] != "yes" {
		t.Errorf("annotations %v labels %v, want patched=yes and applied=yes", got.GetAnnotations(), got.GetLabels())
	}
	if !slices.ContainsFunc(got.GetManagedFields(), func(m metav1.ManagedFieldsEntry) bool {
		return m.Manager == "tester" && m.Operation == metav1.ManagedFieldsOperationApply
	}) {
		t.Errorf("managed fields without the applying manager: %v", got.GetManagedFields())
	}
	if list, err := api.List(ctx, metav1.ListOptions{LabelSelector: "applied=yes"}); err != nil || len(list.Items) != 1 {
		t.Errorf("list by label: %v, %v", list, err)
	}
	if err := api.Delete(ctx, name, metav1.DeleteOptions{}); err != nil {
		t.Errorf("delete: %v", err)
	}
	if gvr.Resource == "namespaces" { // the finalizer belongs to the namespace controller, which runs elsewhere
		finalized := object(t, `{apiVersion: v1, kind: Namespace, metadata: {name: sample}}`)
		if _, err := api.Update(ctx, finalized, metav1.UpdateOptions{}, "finalize"); err != nil {
			t.Errorf("finalize: %v", err)
		}
	}
	seen := map[watch.EventType]int{}
	for seen[watch.Deleted] == 0 {
		select {
		case e := <-events.ResultChan():
			seen[e.Type]++
		case <-time.After(10 * time.Second):
			t.Fatalf("watch saw %v, no deletion", seen)
		}
	}
	if seen[watch.Added] != 1 || seen[watch.Modified] < 2 || seen[watch.Error] != 0 {
		t.Errorf("watch saw %v, want one addition and at least two changes", seen)
	}
	if _, err := api.Get(ctx, name, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("get after deletion: %v, want NotFound", err)
	}
}

// TestDocuments checks that kubectl explain and validation find a schema for everything discovery lists.
func TestDocuments(t *testing.T) {
	t.Parallel()
	client := shared.client(t)
	_, lists, err := client.Discovery().ServerGroupsAndResources()
	if err != nil {
		t.Fatal(err)
	}
	paths, err := client.Discovery().OpenAPIV3().Paths()
	if err != nil {
		t.Fatal(err)
	}
	v2, err := client.RESTClient().Get().AbsPath("/openapi/v2").DoRaw(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	checked := 0
	for _, list := range lists {
		gv, err := schema.ParseGroupVersion(list.GroupVersion)
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(gv.Group, ".example") {
			continue
		}
		path := "apis/" + list.GroupVersion
		if gv.Group == "" {
			path = "api/" + gv.Version
		}
		if paths[path] == nil {
			t.Errorf("no OpenAPI document %s", path)
			continue
		}
		v3, err := paths[path].Schema("application/json")
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range list.APIResources {
			kind := schema.GroupVersionKind{Group: gv.Group, Version: gv.Version, Kind: r.Kind}
			if r.Group != "" || r.Version != "" { // a subresource of another group's kind, as deployments/scale
				kind.Group, kind.Version = r.Group, r.Version
			}
			if r.Kind == "PodExecOptions" || strings.HasSuffix(r.Kind, "Options") || strings.HasSuffix(r.Kind, "ProxyOptions") {
				continue // query parameters, not an object
			}
			for doc, text := range map[string][]byte{"v3": v3, "v2": v2} {
				if !hasKind(t, text, kind) {
					t.Errorf("%s document %s: no schema of %s (%s)", doc, path, kind, r.Name)
				}
				checked++
			}
		}
	}
	if checked < 80 {
		t.Errorf("only %d schemas looked for", checked)
	}
	if n := strings.Count(string(v2), "io.k8s.api.batch"); n > 0 {
		t.Errorf("the documents mention batch, which is not served, %d times", n)
	}
}

// hasKind says whether an OpenAPI document, either version, has a schema of kind.
func hasKind(t *testing.T, doc []byte, kind schema.GroupVersionKind) bool {
	t.Helper()
	type named struct {
		GVKs []schema.GroupVersionKind `json:"x-kubernetes-group-version-kind"`
	}
	var d struct {
		Definitions map[string]named
		Components  struct{ Schemas map[string]named }
	}
	if err := json.Unmarshal(doc, &d); err != nil {
		t.Fatal(err)
	}
	for _, schemas := range []map[string]named{d.Definitions, d.Components.Schemas} {
		for _, s := range schemas {
			if slices.Contains(s.GVKs, kind) {
				return true
			}
		}
	}
	return false
}

func object(t *testing.T, text string) *unstructured.Unstructured {
	t.Helper()
	obj := &unstructured.Unstructured{Object: map[string]any{}}
	if err := yaml.Unmarshal([]byte(text), &obj.Object); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	return obj
}

// eventually retries until ok or 10 s.
func eventually(t *testing.T, what string, ok func(context.Context) (bool, error)) {
	t.Helper()
	if err := wait.PollUntilContextTimeout(t.Context(), 20*time.Millisecond, 10*time.Second, true, ok); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}
