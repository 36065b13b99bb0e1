package apiserver

import (
	"maps"
	"slices"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apiextensions "k8s.io/apiextensions-apiserver/pkg/apiserver"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/version"
	genericapi "k8s.io/apiserver/pkg/endpoints"
	openapinamer "k8s.io/apiserver/pkg/endpoints/openapi"
	"k8s.io/apiserver/pkg/registry/rest"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/apiserver/pkg/util/openapi"
	"k8s.io/kube-openapi/pkg/common"
	"k8s.io/kube-openapi/pkg/util"
	"k8s.io/kube-openapi/pkg/validation/spec"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	generatedopenapi "k8s.io/kubernetes/pkg/generated/openapi"
)

// openAPI sets the schemas for server-side apply, strict validation and kubectl explain: those of what is served,
// about a third of the upstream ones. The documents are made in documents.go.
func (b *builder) openAPI() error {
	roots, err := servedTypes(b.groups)
	if err != nil {
		return err
	}
	all := openapi.GetOpenAPIDefinitionsWithoutDisabledFeatures(generatedopenapi.GetOpenAPIDefinitions)
	definitions := func(ref common.ReferenceCallback) map[string]common.OpenAPIDefinition {
		return reachable(all(ref), roots)
	}
	schemes := []*runtime.Scheme{legacyscheme.Scheme, apiextensions.Scheme}
	for _, group := range b.groups {
		if !slices.Contains(schemes, group.Scheme) {
			schemes = append(schemes, group.Scheme)
		}
	}
	namer := openapinamer.NewDefinitionNamer(schemes...)
	bearer := spec.SecuritySchemeProps{Type: "apiKey", Name: "authorization", In: "header", Description: "Bearer Token authentication"}

	v2 := genericapiserver.DefaultOpenAPIConfig(definitions, namer)
	v2.Info.Title = "Kubernetes"
	v2.SecurityDefinitions = &spec.SecurityDefinitions{"BearerToken": &spec.SecurityScheme{SecuritySchemeProps: bearer}}
	v3 := genericapiserver.DefaultOpenAPIV3Config(definitions, namer)
	v3.Info.Title = "Kubernetes"
	b.config.OpenAPIConfig, b.config.OpenAPIV3Config = v2, v3
	b.config.SkipOpenAPIInstallation = true
	return nil
}

// servedTypes names the Go types that requests to, and answers of, the groups and the CRD API are made of, directly.
func servedTypes(groups []*genericapiserver.APIGroupInfo) ([]string, error) {
	names := map[string]bool{}
	add := func(objs ...any) {
		for _, obj := range objs {
			names[util.GetCanonicalTypeName(obj)] = true
		}
	}
	add(&metav1.Status{}, &metav1.DeleteOptions{}, &metav1.Patch{}, &metav1.WatchEvent{}, &metav1.APIGroup{}, &metav1.APIGroupList{},
		&metav1.APIResourceList{}, &metav1.APIVersions{}, &version.Info{},
		&apiextensionsv1.CustomResourceDefinition{}, &apiextensionsv1.CustomResourceDefinitionList{})
	for _, group := range groups {
		for v, resources := range group.VersionedResourcesStorageMap {
			gv := schema.GroupVersion{Group: group.PrioritizedVersions[0].Group, Version: v}
			for _, storage := range resources {
				kind, err := genericapi.GetResourceKind(gv, storage, group.Scheme)
				if err != nil {
					return nil, err
				}
				obj, err := group.Scheme.New(kind)
				if err != nil {
					return nil, err
				}
				add(obj)
				if lister, ok := storage.(rest.Lister); ok {
					list, err := external(group.Scheme, gv, lister.NewList())
					if err != nil {
						return nil, err
					}
					add(list)
				}
			}
		}
	}
	return slices.Sorted(maps.Keys(names)), nil
}

// external is the versioned form of an internal type.
func external(scheme *runtime.Scheme, gv schema.GroupVersion, internal runtime.Object) (runtime.Object, error) {
	kinds, _, err := scheme.ObjectKinds(internal)
	if err != nil {
		return nil, err
	}
	return scheme.New(gv.WithKind(kinds[0].Kind))
}

// reachable is the part of all that the roots are made of.
func reachable(all map[string]common.OpenAPIDefinition, roots []string) map[string]common.OpenAPIDefinition {
	keep := make(map[string]common.OpenAPIDefinition, len(roots))
	for todo := slices.Clone(roots); len(todo) > 0; {
		name := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if _, seen := keep[name]; seen {
			continue
		}
		if definition, ok := all[name]; ok { // what is missing, upstream reports when it builds the document
			keep[name] = definition
			todo = append(todo, definition.Dependencies...)
		}
	}
	return keep
}
