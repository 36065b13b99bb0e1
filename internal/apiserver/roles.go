package apiserver

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/wait"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/client-go/kubernetes"
	"k8s.io/component-helpers/auth/rbac/reconciliation"
	"k8s.io/kubernetes/plugin/pkg/auth/authorizer/rbac/bootstrappolicy"

	"github.com/endpointd/endpointd/internal/apiserver/top"
)

// roles are the default ClusterRoles and their bindings.
type roles struct {
	roles    []rbacv1.ClusterRole
	bindings []rbacv1.ClusterRoleBinding
}

// keptRoles says which upstream default roles exist here, and for whom. Those of the Kubernetes components
// (controllers, scheduler, kubelet, kube-proxy, kube-dns, certificate signers) are left out: their user names would
// be rights lying about for who gets a certificate with such a name.
func keptRoles() sets.Set[string] {
	return sets.New(
		"cluster-admin", "admin", "edit", "view", // for users; admin, edit and view aggregate the next three
		"system:aggregate-to-admin", "system:aggregate-to-edit", "system:aggregate-to-view",
		"system:discovery", "system:basic-user", "system:public-info-viewer", // for everybody who is known
		"system:monitoring",                       // for scrapers in the group of that name
		"system:auth-delegator",                   // for servers that ask this one about tokens, bound by their charts
		"system:service-account-issuer-discovery", // for who verifies our tokens
	)
}

// defaultRoles takes upstream's data, without rules about API groups that are not served.
func defaultRoles(served sets.Set[string]) roles {
	keep := keptRoles()
	var r roles
	for _, role := range bootstrappolicy.ClusterRoles() {
		if keep.Has(role.Name) {
			role.Rules = servedRules(role.Rules, served)
			r.roles = append(r.roles, role)
		}
	}
	r.roles = append(r.roles, metricsReader())
	for _, binding := range bootstrappolicy.ClusterRoleBindings() {
		if keep.Has(binding.RoleRef.Name) {
			r.bindings = append(r.bindings, binding)
		}
	}
	return r
}

// metricsReader lets who may view pods see what they use, as the role of this name that metrics-server brings.
func metricsReader() rbacv1.ClusterRole {
	const aggregate = "rbac.authorization.k8s.io/aggregate-to-"
	return rbacv1.ClusterRole{
		ObjectMeta: metav1.ObjectMeta{Name: "system:aggregated-metrics-reader", Labels: map[string]string{
			aggregate + "view": "true", aggregate + "edit": "true", aggregate + "admin": "true",
		}},
		Rules: []rbacv1.PolicyRule{{APIGroups: []string{top.GroupVersion().Group}, Resources: []string{"pods", "nodes"}, Verbs: []string{"get", "list", "watch"}}},
	}
}

func servedRules(rules []rbacv1.PolicyRule, served sets.Set[string]) []rbacv1.PolicyRule {
	var kept []rbacv1.PolicyRule
	for _, rule := range rules {
		isResource := len(rule.APIGroups) > 0
		rule.APIGroups = slices.DeleteFunc(slices.Clone(rule.APIGroups), func(g string) bool {
			return g != rbacv1.APIGroupAll && !served.Has(g) && !strings.HasSuffix(g, "metrics.k8s.io")
		})
		if !isResource || len(rule.APIGroups) > 0 {
			kept = append(kept, rule)
		}
	}
	return kept
}

func servedGroups(groups []*genericapiserver.APIGroupInfo) sets.Set[string] {
	names := sets.New(crdGroup().Name)
	for _, group := range groups {
		names.Insert(group.PrioritizedVersions[0].Group)
	}
	return names
}

// reconcile makes the roles and bindings exist and have at least the default rules and subjects, once. It retries
// until it has succeeded or ctx ends. Objects annotated rbac.authorization.kubernetes.io/autoupdate=false are left alone.
func (r roles) reconcile(ctx context.Context, client kubernetes.Interface, log *slog.Logger) {
	backoff := wait.Backoff{Duration: 50 * time.Millisecond, Factor: 2, Jitter: 0.2, Steps: 1 << 30, Cap: 10 * time.Second}
	var last string
	_ = wait.ExponentialBackoffWithContext(ctx, backoff, func(ctx context.Context) (bool, error) {
		err := r.reconcileOnce(client)
		if err != nil && ctx.Err() == nil && err.Error() != last {
			last = err.Error()
			log.Warn("default RBAC roles not complete, trying again", "component", "apiserver", "err", err)
		}
		return err == nil, nil
	})
}

func (r roles) reconcileOnce(client kubernetes.Interface) error {
	for i := range r.roles {
		// A copy: the reconciler writes into what it is given.
		o := reconciliation.ReconcileRoleOptions{
			Role:   reconciliation.ClusterRoleRuleOwner{ClusterRole: r.roles[i].DeepCopy()},
			Client: reconciliation.ClusterRoleModifier{Client: client.RbacV1().ClusterRoles()}, Confirm: true,
		}
		if _, err := o.Run(); err != nil && !apierrors.IsAlreadyExists(err) {
			return fmt.Errorf("cluster role %s: %w", r.roles[i].Name, err)
		}
	}
	for i := range r.bindings {
		o := reconciliation.ReconcileRoleBindingOptions{
			RoleBinding: reconciliation.ClusterRoleBindingAdapter{ClusterRoleBinding: r.bindings[i].DeepCopy()},
			Client:      reconciliation.ClusterRoleBindingClientAdapter{Client: client.RbacV1().ClusterRoleBindings()}, Confirm: true,
		}
		if _, err := o.Run(); err != nil && !apierrors.IsAlreadyExists(err) {
			return fmt.Errorf("cluster role binding %s: %w", r.bindings[i].Name, err)
		}
	}
	return nil
}
