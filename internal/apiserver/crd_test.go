package apiserver

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apiextensionsclient "k8s.io/apiextensions-apiserver/pkg/client/clientset/clientset"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"sigs.k8s.io/yaml"
)

const widgets = `
metadata: {name: widgets.crd.example}
spec:
  group: crd.example
  scope: Namespaced
  names: {plural: widgets, singular: widget, kind: Widget, shortNames: [wd]}
  versions:
  - {name: v1beta1, served: true, storage: false, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}
  - name: v1
    served: true
    storage: true
    subresources: {status: {}}
    additionalPrinterColumns: [{name: Size, type: integer, jsonPath: .spec.size}]
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec: {type: object, required: [size], properties: {size: {type: integer, minimum: 1, description: How big it is.}}}
          status: {type: object, properties: {done: {type: boolean}}}
`

// TestCustomResources: a definition is served at once, found by every kind of discovery and in the documents, its
// objects are validated, and all of it ends with it.
func TestCustomResources(t *testing.T) {
	t.Parallel()
	ctx, admin := t.Context(), shared.client(t)
	namespace(t, "crd")
	var crd apiextensionsv1.CustomResourceDefinition
	if err := yaml.UnmarshalStrict([]byte(widgets), &crd); err != nil {
		t.Fatal(err)
	}
	api := apiextensionsclient.NewForConfigOrDie(shared.admin()).ApiextensionsV1().CustomResourceDefinitions()
	began := time.Now()
	if _, err := api.Create(ctx, &crd, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "established", func(ctx context.Context) (bool, error) {
		got, err := api.Get(ctx, crd.Name, metav1.GetOptions{})
		return err == nil && slices.ContainsFunc(got.Status.Conditions, func(c apiextensionsv1.CustomResourceDefinitionCondition) bool {
			return c.Type == apiextensionsv1.Established && c.Status == apiextensionsv1.ConditionTrue
		}), err
	})
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("established after %s", took)
	}

	dyn := dynamic.NewForConfigOrDie(shared.admin()).Resource(schema.GroupVersionResource{Group: "crd.example", Version: "v1", Resource: "widgets"}).Namespace("crd")
	widget := object(t, `{apiVersion: crd.example/v1, kind: Widget, metadata: {name: w}, spec: {size: 3}}`)
	eventually(t, "create a widget", func(ctx context.Context) (bool, error) {
		_, err := dyn.Create(ctx, widget, metav1.CreateOptions{FieldValidation: "Strict"})
		return err == nil, nil
	})
	for spec, want := range map[string]string{
		`{size: 0}`:          "spec.size: Invalid value: 0: spec.size in body should be greater than or equal to 1",
		`{size: big}`:        `spec.size: Invalid value: "string": spec.size in body must be of type integer: "string"`,
		`{}`:                 "spec.size: Required value",
		`{size: 1, sice: 2}`: `strict decoding error: unknown field "spec.sice"`,
	} {
		bad := object(t, `{apiVersion: crd.example/v1, kind: Widget, metadata: {name: bad}, spec: `+spec+`}`)
		if _, err := dyn.Create(ctx, bad, metav1.CreateOptions{FieldValidation: "Strict"}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("spec %s: %v, want %s", spec, err, want)
		}
	}
	if _, err := dyn.Apply(ctx, "w", object(t, `{apiVersion: crd.example/v1, kind: Widget, metadata: {name: w}, spec: {size: 4}}`), metav1.ApplyOptions{FieldManager: "tester", Force: true}); err != nil {
		t.Errorf("server-side apply: %v", err)
	}
	if _, err := dyn.UpdateStatus(ctx, object(t, `{apiVersion: crd.example/v1, kind: Widget, metadata: {name: w}, spec: {size: 9}, status: {done: true}}`), metav1.UpdateOptions{}); err == nil {
		t.Error("status update without a resourceVersion accepted")
	}

	eventually(t, "GET /apis, aggregated discovery and both documents", func(ctx context.Context) (bool, error) {
		raw, err := admin.RESTClient().Get().AbsPath("/apis").SetHeader("Accept", "application/json").DoRaw(ctx)
		if err != nil {
			return false, err
		}
		var list metav1.APIGroupList
		if err := json.Unmarshal(raw, &list); err != nil {
			return false, err
		}
		i := slices.IndexFunc(list.Groups, func(g metav1.APIGroup) bool { return g.Name == "crd.example" })
		if i < 0 || list.Groups[i].PreferredVersion.Version != "v1" || len(list.Groups[i].Versions) != 2 {
			return false, nil
		}
		for path, want := range map[string]string{
			"/apis?aggregated":                `"crd.example"`,
			"/apis/crd.example/v1":            `"wd"`,
			"/openapi/v2":                     "How big it is.",
			"/openapi/v3/apis/crd.example/v1": "How big it is.",
		} {
			request := admin.RESTClient().Get().AbsPath(strings.TrimSuffix(path, "?aggregated"))
			if strings.HasSuffix(path, "?aggregated") {
				request.SetHeader("Accept", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList")
			}
			if raw, err := request.DoRaw(ctx); err != nil || !strings.Contains(string(raw), want) {
				return false, nil
			}
		}
		return true, nil
	})

	if err := api.Delete(ctx, crd.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "gone from the API and GET /apis", func(ctx context.Context) (bool, error) {
		raw, err := admin.RESTClient().Get().AbsPath("/apis").SetHeader("Accept", "application/json").DoRaw(ctx)
		if err != nil {
			return false, err
		}
		_, err = dyn.List(ctx, metav1.ListOptions{})
		return apierrors.IsNotFound(err) && !strings.Contains(string(raw), "crd.example"), nil
	})
}
