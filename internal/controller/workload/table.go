package workload

import (
	"context"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/util/flowcontrol"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/controller/certificates/rootcacertpublisher"
	"k8s.io/kubernetes/pkg/controller/clusterroleaggregation"
	"k8s.io/kubernetes/pkg/controller/daemon"
	"k8s.io/kubernetes/pkg/controller/deployment"
	"k8s.io/kubernetes/pkg/controller/garbagecollector"
	"k8s.io/kubernetes/pkg/controller/namespace"
	"k8s.io/kubernetes/pkg/controller/replicaset"
	"k8s.io/kubernetes/pkg/controller/serviceaccount"
	"k8s.io/kubernetes/pkg/controller/statefulset"
)

// controller is a row of the table. build is called once a term and returns what blocks until its context ends and
// its workers have.
type controller struct {
	name  string
	build func(context.Context, *term) (run func(context.Context), err error)
}

// table lists the controllers in the order of start: what a new namespace needs comes first. The numbers of workers are
// those of kube-controller-manager where work can be slow or plenty, and less elsewhere.
func (c *Controllers) table() []controller {
	return []controller{
		{"serviceaccount", c.serviceAccounts},
		{"root-ca-cert-publisher", c.rootCAPublisher},
		{"serviceaccount-token", c.serviceAccountTokens},
		{"clusterrole-aggregation", c.clusterRoleAggregation},
		{"replicaset", c.replicaSets},
		{"deployment", c.deployments},
		{"daemonset", c.daemonSets},
		{"statefulset", c.statefulSets},
		{"garbage-collector", c.garbageCollector},
		{"namespace", c.namespaces},
	}
}

// workers binds the number of workers of upstream's usual Run.
func workers(n int, run func(context.Context, int)) func(context.Context) {
	return func(ctx context.Context) { run(ctx, n) }
}

func (c *Controllers) serviceAccounts(ctx context.Context, t *term) (func(context.Context), error) {
	s, err := serviceaccount.NewServiceAccountsController(klog.FromContext(ctx), t.serviceAccounts, t.namespaces, c.client,
		serviceaccount.DefaultServiceAccountsControllerOptions())
	if err != nil {
		return nil, err
	}
	return workers(2, s.Run), nil
}

func (c *Controllers) rootCAPublisher(_ context.Context, t *term) (func(context.Context), error) {
	p, err := rootcacertpublisher.NewPublisher(t.rootCAs, t.namespaces, c.client, c.ca)
	if err != nil {
		return nil, err
	}
	return workers(2, p.Run), nil
}

// serviceAccountTokens fills Secrets of type kubernetes.io/service-account-token that users create. TokenRequest, which
// kubectl create token uses, is the API server's and needs no controller.
func (c *Controllers) serviceAccountTokens(ctx context.Context, t *term) (func(context.Context), error) {
	s, err := serviceaccount.NewTokensController(klog.FromContext(ctx), t.serviceAccounts, t.tokens, c.client,
		serviceaccount.TokensControllerOptions{TokenGenerator: c.signer, RootCA: c.ca})
	if err != nil {
		return nil, err
	}
	return workers(1, s.Run), nil
}

func (c *Controllers) clusterRoleAggregation(_ context.Context, t *term) (func(context.Context), error) {
	return workers(1, clusterroleaggregation.NewClusterRoleAggregation(t.clusterRoles, c.client.RbacV1()).Run), nil
}

func (c *Controllers) replicaSets(ctx context.Context, t *term) (func(context.Context), error) {
	r := replicaset.NewReplicaSetController(ctx, t.replicaSets, t.pods, c.client, replicaset.BurstReplicas)
	return workers(5, r.Run), nil
}

func (c *Controllers) deployments(ctx context.Context, t *term) (func(context.Context), error) {
	d, err := deployment.NewDeploymentController(ctx, t.deployments, t.replicaSets, t.pods, c.client)
	if err != nil {
		return nil, err
	}
	return workers(5, d.Run), nil
}

func (c *Controllers) daemonSets(ctx context.Context, t *term) (func(context.Context), error) {
	d, err := daemon.NewDaemonSetsController(ctx, t.daemonSets, t.revisions, t.pods, t.nodes, c.client,
		flowcontrol.NewBackOff(time.Second, 15*time.Minute))
	if err != nil {
		return nil, err
	}
	return workers(2, d.Run), nil
}

func (c *Controllers) statefulSets(ctx context.Context, t *term) (func(context.Context), error) {
	s := statefulset.NewStatefulSetController(ctx, t.pods, t.statefulSets, t.claims, t.revisions, c.client)
	return workers(5, s.Run), nil
}

func (c *Controllers) garbageCollector(ctx context.Context, t *term) (func(context.Context), error) {
	started := make(chan struct{})
	close(started) // the shared informers run, and the others are started by the collector
	g, err := garbagecollector.NewGarbageCollector(ctx, c.client, c.metadata, c.mapper, garbagecollector.DefaultIgnoredResources(), t, started)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) {
		var following sync.WaitGroup
		defer following.Wait()
		following.Go(func() { g.Sync(ctx, c.discovery, discoveryPeriod) })
		g.Run(ctx, 20, garbageSyncTimeout)
	}, nil
}

func (c *Controllers) namespaces(ctx context.Context, t *term) (func(context.Context), error) {
	n := namespace.NewNamespaceController(ctx, c.client, c.metadata, c.discovery.ServerPreferredNamespacedResources, t.namespaces,
		namespaceResync, corev1.FinalizerKubernetes)
	return workers(10, n.Run), nil
}
