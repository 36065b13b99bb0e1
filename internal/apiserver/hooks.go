package apiserver

import (
	"context"
	"net"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/kubernetes/pkg/controlplane/controller/defaultservicecidr"
	"k8s.io/kubernetes/pkg/controlplane/controller/systemnamespaces"
)

// systemNamespaces exist always. The first three cannot be deleted (NamespaceLifecycle).
func systemNamespaces() []string {
	return []string{"default", "kube-system", "kube-public", "kube-node-lease"}
}

// hooks registers the controllers that belong to the API itself. What a hook does before it returns gates readiness;
// none returns an error, for upstream would end the process.
func (b *builder) hooks() error {
	s := b.server
	background := func(f func(context.Context)) genericapiserver.PostStartHookFunc {
		return func(ctx genericapiserver.PostStartHookContext) error {
			s.spawn(func() { f(ctx) })
			return nil
		}
	}
	namespaces := systemnamespaces.NewController(systemNamespaces(), b.client, b.informers.Core().V1().Namespaces())
	groups := &crdGroups{
		informer: s.crds.Informers.Apiextensions().V1().CustomResourceDefinitions().Informer(), groups: s.generic.DiscoveryGroupManager,
		reserved: sets.New[string](), changed: make(chan struct{}, 1),
	}
	for _, group := range b.groups[1:] {
		groups.reserved.Insert(group.PrioritizedVersions[0].Group)
	}
	s.generic.DiscoveryGroupManager.AddGroup(crdGroup())
	roles := defaultRoles(servedGroups(b.groups))
	kubernetes, err := b.kubernetesService()
	if err != nil {
		return err
	}

	for name, hook := range map[string]genericapiserver.PostStartHookFunc{
		"default-service-cidr": func(ctx genericapiserver.PostStartHookContext) error {
			cidrs := b.options.ServiceCIDRs
			var second net.IPNet
			if len(cidrs) > 1 {
				second = ipNet(cidrs[1])
			}
			defaultservicecidr.NewController(ipNet(cidrs[0]), second, b.client).Start(ctx)
			return nil
		},
		"service-allocations": func(ctx genericapiserver.PostStartHookContext) error {
			b.core.allocators.start(ctx, s.spawn)
			return nil
		},
		"storage-readiness": s.generic.StorageReadinessHook.Hook,
		"system-namespaces": func(ctx genericapiserver.PostStartHookContext) error {
			b.leaseNamespace(ctx)
			s.spawn(func() { namespaces.Run(ctx.Done()) })
			return nil
		},
		"crd-discovery":      background(func(ctx context.Context) { groups.run(ctx, s.log) }),
		"rbac-roles":         background(func(ctx context.Context) { roles.reconcile(ctx, b.client, s.log) }),
		"kubernetes-service": background(func(ctx context.Context) { kubernetes.Start(ctx.Done()) }),
	} {
		if err := s.generic.AddPostStartHook(name, hook); err != nil {
			return err
		}
	}
	return s.generic.AddPreShutdownHook("kubernetes-service", func() error {
		kubernetes.Stop()
		return nil
	})
}

// leaseNamespace makes the namespace of nodes' Leases before the server is ready, because agents that wait for it renew theirs
// at once. When that fails, the controller of system namespaces follows.
func (b *builder) leaseNamespace(ctx context.Context) {
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: corev1.NamespaceNodeLease}}
	if _, err := b.client.CoreV1().Namespaces().Create(ctx, ns, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
		b.options.Logger.Debug("namespace of node leases", "component", "apiserver", "err", err)
	}
}
