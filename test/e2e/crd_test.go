package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// A custom resource is a resource like any other.
func kubectlCRD(s *space) {
	group := strings.ReplaceAll(s.kubectl.Name, " ", "-") + ".example.test"
	s.has(s.apply(`
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: widgets.`+group+`}
spec:
  group: `+group+`
  scope: Namespaced
  names: {plural: widgets, singular: widget, kind: Widget}
  versions:
  - name: v1
    served: true
    storage: true
    subresources: {status: {}}
    additionalPrinterColumns: [{name: Size, type: integer, jsonPath: .spec.size}]
    schema:
      openAPIV3Schema:
        type: object
        description: A widget is a thing.
        properties:
          spec: {type: object, required: [size], properties: {size: {type: integer, minimum: 1, description: How large it is.}, colour: {type: string, default: blue}}}
          status: {type: object, x-kubernetes-preserve-unknown-fields: true}
`), "created")
	s.run("wait", "--for=condition=Established", "crd/widgets."+group, "--timeout=20s")
	s.await(func(context.Context) error {
		var groups metav1.APIGroupList
		if err := json.Unmarshal([]byte(s.run("get", "--raw", "/apis")), &groups); err != nil {
			return err
		}
		if !slices.ContainsFunc(groups.Groups, func(g metav1.APIGroup) bool { return g.Name == group }) {
			return fmt.Errorf("GET /apis does not list %s", group)
		}
		return nil
	})
	s.has(s.run("get", "--raw", "/apis/"+group+"/v1"), `"name":"widgets"`, `"name":"widgets/status"`)
	widgets := "widgets." + group
	s.has(s.run("api-resources", "--api-group="+group), "widgets "+group+"/v1 true Widget")

	widget := func(spec string) string {
		return yaml(`{apiVersion: ` + group + `/v1, kind: Widget, metadata: {name: w}, spec: {` + spec + `}}`)
	}
	apply := []string{"apply", "-f", "-"}
	s.has(s.refusedInput(widget("size: 0"), apply...), `The Widget "w" is invalid: spec.size: Invalid value: 0: spec.size in body should be greater than or equal to 1`)
	s.has(s.refusedInput(widget("colour: red"), apply...), "spec.size: Required value")
	s.has(s.refusedInput(widget("size: big"), apply...), `spec.size: Invalid value: "string": spec.size in body must be of type integer: "string"`)
	s.has(s.refusedInput(widget("size: 1, sise: 2"), apply...), `unknown field "spec.sise"`)
	s.has(s.apply(widget("size: 3")), "created")
	s.has(s.run("get", widgets), "NAME SIZE w 3")
	s.has(s.run("get", widgets, "w", "-o", "jsonpath={.spec.colour}"), "blue")
	s.await(func(context.Context) error { // the schema is published after the resource
		out, err := s.try("explain", "widget.spec", "--api-version="+group+"/v1")
		if err == nil && (!strings.Contains(out.Stdout, "size <integer> -required-") && !strings.Contains(squeeze(out.Stdout), "size <integer> -required-") ||
			!strings.Contains(out.Stdout, "How large it is.")) {
			err = fmt.Errorf("explain: %s", out.Stdout)
		}
		return err
	})
	s.run("patch", widgets, "w", "--type=merge", "-p", `{"spec":{"size":4}}`)
	s.run("patch", widgets, "w", "--type=merge", "--subresource=status", "-p", `{"status":{"seen":true}}`)
	s.has(s.run("describe", widgets, "w"), "Size: 4", "Seen: true")
	s.has(s.run("delete", "crd", widgets, "--timeout=20s"), "deleted")
	s.has(s.refused("get", widgets), "the server doesn't have a resource type")
	s.await(func(context.Context) error {
		if text := s.run("get", "--raw", "/apis"); strings.Contains(text, group) {
			return fmt.Errorf("GET /apis still lists %s", group)
		}
		return nil
	})
}
