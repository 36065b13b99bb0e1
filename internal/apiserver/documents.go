package apiserver

import (
	"fmt"
	"net/http"
	"strings"
	"sync"

	"github.com/emicklei/go-restful/v3"
	genericapiserver "k8s.io/apiserver/pkg/server"
	builder2 "k8s.io/kube-openapi/pkg/builder"
	builder3 "k8s.io/kube-openapi/pkg/builder3"
	"k8s.io/kube-openapi/pkg/common"
	"k8s.io/kube-openapi/pkg/common/restfuladapter"
	"k8s.io/kube-openapi/pkg/handler"
	"k8s.io/kube-openapi/pkg/handler3"
	"k8s.io/kube-openapi/pkg/spec3"
	"k8s.io/kube-openapi/pkg/validation/spec"
)

// documents makes /openapi/v2 and /openapi/v3 when somebody asks for the first time. Upstream makes them at every
// start, which is a quarter of the start and, until the end of the process, most of the heap of an idle server.
type documents struct {
	v2     *common.Config
	v3     *common.OpenAPIV3Config
	routes []*restful.WebService

	mu    sync.Mutex                // guards specs
	specs map[string]*spec3.OpenAPI // path (apis/apps/v1) → document not handed out yet; nil before the first request
}

// installDocuments serves the documents of both servers, and lets the CRD server's controllers add the schemas of
// custom resources to them, which is the aggregator's work upstream.
func (s *Server) installDocuments(v2 *common.Config, v3 *common.OpenAPIV3Config) error {
	crd := s.crds.GenericAPIServer
	d := &documents{v2: v2, v3: v3, routes: routesOf(s.generic, crd)}
	// Made anew on the first request; until then server-side apply has what it needs of them.
	v3.Definitions = nil
	mux := s.generic.Handler.NonGoRestfulMux

	service3 := handler3.NewOpenAPIService()
	if err := service3.RegisterOpenAPIV3VersionedService("/openapi/v3", mux); err != nil {
		return err
	}
	for _, ws := range d.routes {
		service3.UpdateGroupVersionLazy(documentPath(ws), document{d, documentPath(ws)})
	}

	// The controllers merge custom resources into static when a request comes, after fill.
	static := &spec.Swagger{}
	service2 := handler.NewOpenAPIService(static)
	service2.RegisterOpenAPIVersionedService("/openapi/v2", handleFunc(func(path string, next http.Handler) {
		fill := sync.OnceValue(func() error { return d.fillV2(static) })
		mux.Handle(path, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if err := fill(); err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
				return
			}
			next.ServeHTTP(w, r)
		}))
	}))
	crd.StaticOpenAPISpec, crd.OpenAPIVersionedService, crd.OpenAPIV3VersionedService = static, service2, service3
	return nil
}

// routesOf are the web services of the servers; of those that all have, such as /version, the first one's.
func routesOf(servers ...*genericapiserver.GenericAPIServer) []*restful.WebService {
	var services []*restful.WebService
	seen := map[string]bool{}
	for _, g := range servers {
		for _, ws := range g.Handler.GoRestfulContainer.RegisteredWebServices() {
			if !seen[ws.RootPath()] {
				seen[ws.RootPath()] = true
				services = append(services, ws)
			}
		}
	}
	return services
}

// documentPath is where a document is found under /openapi/v3.
func documentPath(ws *restful.WebService) string { return strings.TrimPrefix(ws.RootPath(), "/") }

func (d *documents) fillV2(static *spec.Swagger) error {
	built, err := builder2.BuildOpenAPISpecFromRoutes(restfuladapter.AdaptWebServices(d.routes), d.v2)
	if err != nil {
		return fmt.Errorf("openapi v2 document: %w", err)
	}
	built.Definitions = handler.PruneDefaults(built.Definitions)
	*static = *built
	return nil
}

// take builds all version 3 documents at the first call, for they share the definitions, and hands each out once.
func (d *documents) take(path string) (*spec3.OpenAPI, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.specs == nil {
		config := *d.v3
		config.Definitions = config.GetDefinitions(func(name string) spec.Ref {
			schema, _ := config.GetDefinitionName(name)
			return spec.MustCreateRef("#/components/schemas/" + common.EscapeJsonPointer(schema))
		})
		specs := map[string]*spec3.OpenAPI{}
		for _, ws := range d.routes {
			built, err := builder3.BuildOpenAPISpecFromRoutes(restfuladapter.AdaptWebServices([]*restful.WebService{ws}), &config)
			if err != nil {
				return nil, fmt.Errorf("openapi v3 document of %s: %w", ws.RootPath(), err)
			}
			specs[documentPath(ws)] = built
		}
		d.specs = specs
	}
	built := d.specs[path]
	d.specs[path] = nil
	return built, nil
}

// document is one version 3 document as a cached.Value. Its tag never changes, so the handler, which keeps the
// encoded form, does not look at what a second Get returns: nothing.
type document struct {
	all  *documents
	path string
}

func (d document) Get() (*spec3.OpenAPI, string, error) {
	built, err := d.all.take(d.path)
	return built, "built-in", err
}

// handleFunc adapts a function to common.PathHandler.
type handleFunc func(path string, h http.Handler)

func (f handleFunc) Handle(path string, h http.Handler) { f(path, h) }
