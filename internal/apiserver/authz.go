package apiserver

import (
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/authorization/authorizerfactory"
	"k8s.io/apiserver/pkg/authorization/path"
	"k8s.io/apiserver/pkg/authorization/union"
	"k8s.io/client-go/informers"
	"k8s.io/kubernetes/plugin/pkg/auth/authorizer/rbac"
)

// newAuthorizer allows system:masters everything, everybody the health paths (so that probes work before the roles
// exist), nodes what their agents need, and the rest what RBAC says. The RBAC authorizer also lists rules for SelfSubjectRulesReview.
func newAuthorizer(nodes nodeRights, inf informers.SharedInformerFactory) (authorizer.Authorizer, authorizer.RuleResolver, error) {
	r := inf.Rbac().V1()
	roles := rbac.New(
		&rbac.RoleGetter{Lister: r.Roles().Lister()}, &rbac.RoleBindingLister{Lister: r.RoleBindings().Lister()},
		&rbac.ClusterRoleGetter{Lister: r.ClusterRoles().Lister()}, &rbac.ClusterRoleBindingLister{Lister: r.ClusterRoleBindings().Lister()})
	health, err := path.NewAuthorizer(healthPaths())
	if err != nil {
		return nil, nil, err
	}
	authz, err := union.New(
		union.NamedAuthorizer{AuthorizerName: "masters", Authorizer: authorizerfactory.NewPrivilegedGroups(user.SystemPrivilegedGroup)},
		union.NamedAuthorizer{AuthorizerName: "health", Authorizer: health},
		union.NamedAuthorizer{AuthorizerName: "nodes", Authorizer: nodes},
		union.NamedAuthorizer{AuthorizerName: "rbac", Authorizer: roles},
	)
	return authz, roles, err
}
