package workload_test

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apiextensions "k8s.io/apiextensions-apiserver/pkg/client/clientset/clientset"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/endpointd/endpointd/internal/apiserver"
	"github.com/endpointd/endpointd/internal/apiserver/etcd"
	"github.com/endpointd/endpointd/internal/apiserver/pki"
	"github.com/endpointd/endpointd/internal/controller/workload"
	"github.com/endpointd/endpointd/internal/testkit"
)

// patience is for controllers on a busy machine; most answer in milliseconds.
const patience = 30 * time.Second

// api is the one server of all tests, without controllers of its own. Each test has its own namespace.
var api struct {
	config *rest.Config
	client kubernetes.Interface
	files  *pki.Files
}

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	dir, err := os.MkdirTemp("", "endpointd-workload")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir) //nolint:errcheck // a test's folder
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	stop, err := start(ctx, dir)
	if err != nil {
		fmt.Fprintln(os.Stderr, "start the API server:", err)
		return 1
	}
	code := m.Run()
	cancel()
	if err := stop(); err != nil {
		fmt.Fprintln(os.Stderr, "stop the API server:", err)
		return 1
	}
	return code
}

// start returns when the API answers; stop, after ctx has ended, when everything is down.
func start(ctx context.Context, dir string) (stop func() error, err error) {
	store, err := etcd.Start(ctx, etcd.Options{Dir: filepath.Join(dir, "etcd")})
	if err != nil {
		return nil, err
	}
	loopback := netip.MustParseAddr("127.0.0.1")
	if api.files, err = pki.Ensure(filepath.Join(dir, "pki"), pki.Options{IPs: []netip.Addr{loopback}}); err != nil {
		return nil, err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	server, err := apiserver.New(ctx, apiserver.Options{
		Listener: listener, Etcd: apiserver.EtcdOptions{Servers: store.Endpoints()},
		Certs: apiserver.Certs{CAFile: api.files.CACert, ServerCertFile: api.files.ServerCert, ServerKeyFile: api.files.ServerKey,
			ServiceAccountKeyFile: api.files.ServiceAccountKey},
		ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")},
	})
	if err != nil {
		return nil, err
	}
	done := make(chan error, 1)
	go func() { done <- server.Run(ctx) }()
	select {
	case <-server.Ready():
	case err := <-done:
		return nil, err
	}
	api.config = server.LoopbackConfig()
	api.client = kubernetes.NewForConfigOrDie(api.config)
	return func() error {
		err := <-done
		store.Close()
		return err
	}, nil
}

// controllers are like those of a server: built once, with informers that outlive the terms.
func controllers(t *testing.T) *workload.Controllers {
	t.Helper()
	f := informers.NewSharedInformerFactoryWithOptions(api.client, 0, informers.WithTransform(workload.StripManagedFields))
	c, err := workload.New(workload.Options{
		Config: api.config, Informers: f, Logger: slog.New(slog.DiscardHandler),
		CAFile: api.files.CACert, ServiceAccountKeyFile: api.files.ServiceAccountKey,
	})
	check(t, err)
	stop := make(chan struct{})
	f.Start(stop)
	t.Cleanup(func() { close(stop); f.Shutdown() })
	return c
}

// term runs the controllers until the returned function.
func term(t *testing.T, c *workload.Controllers) (end func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	ended := false
	end = func() {
		if ended {
			return
		}
		ended = true
		begin := time.Now()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		if took := time.Since(begin); took > 3*time.Second {
			t.Errorf("Run took %v to return", took)
		}
	}
	t.Cleanup(end)
	return end
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func await(t *testing.T, what string, cond func() error) {
	t.Helper()
	begin := time.Now()
	testkit.Await(t, patience, cond)
	t.Logf("%s after %v", what, time.Since(begin).Round(time.Millisecond))
}

func namespace(t *testing.T, name string) string {
	t.Helper()
	_, err := api.client.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
	check(t, err)
	return name
}

// pods wants n pods with the label app.
func pods(t *testing.T, ns, app string, n int) func() error {
	return func() error {
		list, err := api.client.CoreV1().Pods(ns).List(t.Context(), metav1.ListOptions{LabelSelector: "app=" + app})
		if err == nil && len(list.Items) != n {
			err = fmt.Errorf("%d pods of %s, want %d", len(list.Items), app, n)
		}
		return err
	}
}

func gone(err error) error {
	if err == nil {
		return fmt.Errorf("still there")
	}
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

func template(app string) (*metav1.LabelSelector, corev1.PodTemplateSpec) {
	labels := map[string]string{"app": app}
	return &metav1.LabelSelector{MatchLabels: labels}, corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}}}
}

func deployment(name string, replicas int32) *appsv1.Deployment {
	s, p := template(name)
	return &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: appsv1.DeploymentSpec{Replicas: &replicas, Selector: s, Template: p}}
}

// Each row of the table does its work.
func TestControllers(t *testing.T) {
	term(t, controllers(t))
	ns := namespace(t, "rows")
	core, apps := api.client.CoreV1(), api.client.AppsV1()
	ctx := t.Context()

	await(t, "default ServiceAccount", func() error {
		_, err := core.ServiceAccounts(ns).Get(ctx, "default", metav1.GetOptions{})
		return err
	})
	await(t, "root CA", func() error {
		cm, err := core.ConfigMaps(ns).Get(ctx, "kube-root-ca.crt", metav1.GetOptions{})
		if err == nil && cm.Data["ca.crt"] == "" {
			err = fmt.Errorf("empty")
		}
		return err
	})

	_, err := core.Secrets(ns).Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "token",
		Annotations: map[string]string{corev1.ServiceAccountNameKey: "default"}}, Type: corev1.SecretTypeServiceAccountToken}, metav1.CreateOptions{})
	check(t, err)
	await(t, "token in its Secret", func() error {
		s, err := core.Secrets(ns).Get(ctx, "token", metav1.GetOptions{})
		if err == nil && len(s.Data[corev1.ServiceAccountTokenKey]) == 0 {
			err = fmt.Errorf("empty")
		}
		return err
	})

	_, err = apps.Deployments(ns).Create(ctx, deployment("dep", 3), metav1.CreateOptions{})
	check(t, err)
	await(t, "pods of a Deployment", pods(t, ns, "dep", 3))

	_, err = core.Nodes().Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node-1"}}, metav1.CreateOptions{})
	check(t, err)
	s, p := template("ds")
	_, err = apps.DaemonSets(ns).Create(ctx, &appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Name: "ds"},
		Spec: appsv1.DaemonSetSpec{Selector: s, Template: p}}, metav1.CreateOptions{})
	check(t, err)
	await(t, "pod of a DaemonSet", pods(t, ns, "ds", 1))

	s, p = template("sts")
	_, err = apps.StatefulSets(ns).Create(ctx, &appsv1.StatefulSet{ObjectMeta: metav1.ObjectMeta{Name: "sts"},
		Spec: appsv1.StatefulSetSpec{Selector: s, Template: p, Replicas: new(int32(2)), PodManagementPolicy: appsv1.ParallelPodManagement}}, metav1.CreateOptions{})
	check(t, err)
	await(t, "pods of a StatefulSet", pods(t, ns, "sts", 2))

	aggregated(t)

	check(t, apps.Deployments(ns).Delete(ctx, "dep", metav1.DeleteOptions{PropagationPolicy: new(metav1.DeletePropagationForeground)}))
	await(t, "foreground deletion", func() error {
		_, err := apps.Deployments(ns).Get(ctx, "dep", metav1.GetOptions{})
		return gone(err)
	})
	await(t, "no pods of the Deployment", pods(t, ns, "dep", 0))

	check(t, core.Namespaces().Delete(ctx, ns, metav1.DeleteOptions{}))
	await(t, "namespace deletion", func() error {
		_, err := core.Namespaces().Get(ctx, ns, metav1.GetOptions{})
		return gone(err)
	})
}

func aggregated(t *testing.T) {
	t.Helper()
	roles := api.client.RbacV1().ClusterRoles()
	rule := rbacv1.PolicyRule{Verbs: []string{"get"}, APIGroups: []string{"example.org"}, Resources: []string{"things"}}
	_, err := roles.Create(t.Context(), &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "things", Labels: map[string]string{"to": "all"}},
		Rules: []rbacv1.PolicyRule{rule}}, metav1.CreateOptions{})
	check(t, err)
	_, err = roles.Create(t.Context(), &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "all"}, AggregationRule: &rbacv1.AggregationRule{
		ClusterRoleSelectors: []metav1.LabelSelector{{MatchLabels: map[string]string{"to": "all"}}}}}, metav1.CreateOptions{})
	check(t, err)
	await(t, "aggregated ClusterRole", func() error {
		r, err := roles.Get(t.Context(), "all", metav1.GetOptions{})
		if err == nil && len(r.Rules) != 1 {
			err = fmt.Errorf("%d rules, want 1", len(r.Rules))
		}
		return err
	})
}

// The garbage collector learns of a new kind while it runs: an object of it goes with its owner.
func TestGarbageOfACustomResource(t *testing.T) {
	term(t, controllers(t))
	ns := namespace(t, "custom")
	ctx := t.Context()
	crds := apiextensions.NewForConfigOrDie(api.config).ApiextensionsV1().CustomResourceDefinitions()
	_, err := crds.Create(ctx, &apiextensionsv1.CustomResourceDefinition{
		ObjectMeta: metav1.ObjectMeta{Name: "things.example.org"},
		Spec: apiextensionsv1.CustomResourceDefinitionSpec{
			Group: "example.org", Scope: apiextensionsv1.NamespaceScoped,
			Names: apiextensionsv1.CustomResourceDefinitionNames{Plural: "things", Singular: "thing", Kind: "Thing", ListKind: "ThingList"},
			Versions: []apiextensionsv1.CustomResourceDefinitionVersion{{Name: "v1", Served: true, Storage: true,
				Schema: &apiextensionsv1.CustomResourceValidation{OpenAPIV3Schema: &apiextensionsv1.JSONSchemaProps{Type: "object"}}}},
		},
	}, metav1.CreateOptions{})
	check(t, err)
	owner, err := api.client.CoreV1().ConfigMaps(ns).Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "owner"}}, metav1.CreateOptions{})
	check(t, err)
	things := dynamic.NewForConfigOrDie(api.config).Resource(schema.GroupVersionResource{Group: "example.org", Version: "v1", Resource: "things"}).Namespace(ns)
	thing := &unstructured.Unstructured{}
	thing.SetAPIVersion("example.org/v1")
	thing.SetKind("Thing")
	thing.SetName("owned")
	thing.SetOwnerReferences([]metav1.OwnerReference{{APIVersion: "v1", Kind: "ConfigMap", Name: owner.Name, UID: owner.UID}})
	await(t, "created custom resource", func() error {
		_, err := things.Create(ctx, thing, metav1.CreateOptions{})
		return err
	})
	check(t, api.client.CoreV1().ConfigMaps(ns).Delete(ctx, owner.Name, metav1.DeleteOptions{}))
	await(t, "collected custom resource", func() error {
		_, err := things.Get(ctx, "owned", metav1.GetOptions{})
		return gone(err)
	})
}

// A server that leads again works again, and an ended term leaves nothing running.
func TestTerms(t *testing.T) {
	c := controllers(t)
	ns := namespace(t, "terms")
	idle := 0
	for i := range 3 {
		name := fmt.Sprint("dep-", i)
		end := term(t, c)
		_, err := api.client.AppsV1().Deployments(ns).Create(t.Context(), deployment(name, 2), metav1.CreateOptions{})
		check(t, err)
		await(t, fmt.Sprint("term ", i), pods(t, ns, name, 2))
		end()

		_, err = api.client.AppsV1().Deployments(ns).Patch(t.Context(), name, types.MergePatchType, []byte(`{"spec":{"replicas":5}}`), metav1.PatchOptions{})
		check(t, err)
		if i == 0 {
			idle = runtime.NumGoroutine()
			continue
		}
		// The server of this process comes and goes with some goroutines; a term has hundreds.
		testkit.Await(t, patience, func() error {
			if n := runtime.NumGoroutine(); n > idle+30 {
				return fmt.Errorf("%d goroutines after term %d, %d after the first", n, i, idle)
			}
			return nil
		})
	}
	check(t, pods(t, ns, "dep-2", 2)())
	term(t, c)
	await(t, "what happened between the terms", pods(t, ns, "dep-2", 5))
}
