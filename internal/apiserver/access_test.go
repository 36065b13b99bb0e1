package apiserver

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

func namespace(t *testing.T, name string) {
	t.Helper()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if _, err := shared.client(t).CoreV1().Namespaces().Create(t.Context(), ns, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

func account(name string) *corev1.ServiceAccount {
	return &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: name}}
}

func bearer(token string) *rest.Config {
	return &rest.Config{Host: "https://" + shared.addr, QPS: -1, BearerToken: token, TLSClientConfig: rest.TLSClientConfig{CAFile: shared.files.CACert}}
}

func TestAnonymous(t *testing.T) {
	t.Parallel()
	client, err := rest.HTTPClientFor(bearer(""))
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]int{
		"/livez": 200, "/readyz": 200, "/healthz": 200,
		"/": 401, "/livez/ping": 401, "/readyz/etcd": 401, "/version": 401, "/metrics": 401, "/api": 401, "/apis": 401, "/api/v1/namespaces": 401, "/api/v1/secrets": 401,
		"/openapi/v2": 401, "/openapi/v3": 401, "/openid/v1/jwks": 401, "/.well-known/openid-configuration": 401, "/debug/pprof/": 401, "/nowhere": 401,
		"//livez/../api/v1/secrets": 401,
	} {
		response, err := client.Get("https://" + shared.addr + path)
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		_, _ = io.Copy(io.Discard, response.Body)
		_ = response.Body.Close()
		if response.StatusCode != want {
			t.Errorf("%s: %d, want %d", path, response.StatusCode, want)
		}
	}
	// A bad credential is not an anonymous request.
	request, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+shared.addr+"/livez", nil)
	request.Header.Set("Authorization", "Bearer nonsense")
	response, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	_ = response.Body.Close()
	if response.StatusCode != http.StatusUnauthorized {
		t.Errorf("/livez with a bad token: %d, want 401", response.StatusCode)
	}
}

func TestOldTLSIsRefused(t *testing.T) {
	t.Parallel()
	c, err := tls.Dial("tcp", shared.addr, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11})
	if err == nil {
		_ = c.Close()
		t.Error("TLS 1.1 accepted")
	}
}

// TestToken: a ServiceAccount token works, gives what RBAC gives, and ends with what it is bound to.
func TestToken(t *testing.T) {
	t.Parallel()
	ctx, admin := t.Context(), shared.client(t)
	namespace(t, "tokens")
	if _, err := admin.CoreV1().ServiceAccounts("tokens").Create(ctx, account("robot"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := admin.CoreV1().Secrets("tokens").Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "bound"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	request := func(ref *authenticationv1.BoundObjectReference) *kubernetes.Clientset {
		t.Helper()
		token, err := admin.CoreV1().ServiceAccounts("tokens").CreateToken(ctx, "robot", &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{BoundObjectRef: ref}}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return kubernetes.NewForConfigOrDie(bearer(token.Status.Token))
	}
	robot := request(nil)
	who, err := robot.AuthenticationV1().SelfSubjectReviews().Create(ctx, &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if got := who.Status.UserInfo.Username; got != "system:serviceaccount:tokens:robot" {
		t.Errorf("user %s", got)
	}
	if _, err := robot.CoreV1().Pods("tokens").List(ctx, metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("without a role: %v, want Forbidden", err)
	}
	binding := &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "robot"}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "system:aggregate-to-view"},
		Subjects: []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Name: "robot", Namespace: "tokens"}},
	}
	if _, err := admin.RbacV1().RoleBindings("tokens").Create(ctx, binding, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "list pods with a role", func(ctx context.Context) (bool, error) {
		_, err := robot.CoreV1().Pods("tokens").List(ctx, metav1.ListOptions{})
		return err == nil, nil
	})
	if _, err := robot.CoreV1().Pods("default").List(ctx, metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("in another namespace: %v, want Forbidden", err)
	}
	if _, err := robot.CoreV1().Secrets("tokens").List(ctx, metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("secrets with view: %v, want Forbidden", err)
	}

	// Fresh tokens, for verified ones are remembered for tokenCacheTTL.
	bound := request(&authenticationv1.BoundObjectReference{Kind: "Secret", APIVersion: "v1", Name: "bound"})
	unused := request(nil)
	if err := admin.CoreV1().Secrets("tokens").Delete(ctx, "bound", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a token bound to a deleted Secret is refused", refused(bound))
	if err := admin.CoreV1().ServiceAccounts("tokens").Delete(ctx, "robot", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a token of a deleted account is refused", refused(unused))
}

func refused(c *kubernetes.Clientset) func(context.Context) (bool, error) {
	return func(ctx context.Context) (bool, error) {
		_, err := c.Discovery().RESTClient().Get().AbsPath("/api").DoRaw(ctx)
		return apierrors.IsUnauthorized(err), nil
	}
}

func TestOpenID(t *testing.T) {
	t.Parallel()
	raw, err := shared.client(t).RESTClient().Get().AbsPath("/.well-known/openid-configuration").DoRaw(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var doc map[string]any
	if err := json.Unmarshal(raw, &doc); err != nil || doc["issuer"] != Issuer {
		t.Errorf("issuer in %s", raw)
	}
	keys, err := shared.client(t).RESTClient().Get().AbsPath("/openid/v1/jwks").DoRaw(t.Context())
	if err != nil || !strings.Contains(string(keys), `"kty"`) || strings.Contains(string(keys), `"d"`) {
		t.Errorf("keys %s, %v", keys, err)
	}
}

// TestReviews: the kinds that are asked and not stored, and what the default roles say.
func TestReviews(t *testing.T) {
	t.Parallel()
	ctx, admin := t.Context(), shared.client(t)
	eventually(t, "default roles", func(ctx context.Context) (bool, error) {
		bindings, err := admin.RbacV1().ClusterRoleBindings().List(ctx, metav1.ListOptions{LabelSelector: "kubernetes.io/bootstrapping=rbac-defaults"})
		return err == nil && len(bindings.Items) == len(defaultRoles(nil).bindings), nil
	})
	for _, c := range []struct {
		user, verb, group, resource, path string
		groups                            []string
		want                              bool
	}{
		{user: "root", groups: []string{"system:masters"}, verb: "delete", resource: "secrets", want: true},
		{user: "eve", groups: []string{"system:authenticated"}, verb: "get", resource: "secrets"},
		{user: "eve", groups: []string{"system:authenticated"}, verb: "create", group: "authorization.k8s.io", resource: "selfsubjectaccessreviews", want: true},
		{user: "eve", groups: []string{"system:authenticated"}, verb: "get", path: "/openapi/v3", want: true},
		{user: "eve", groups: []string{"system:authenticated"}, verb: "get", path: "/metrics"},
		{user: "prometheus", groups: []string{"system:monitoring"}, verb: "get", path: "/metrics", want: true},
		{user: "system:kube-controller-manager", groups: []string{"system:authenticated"}, verb: "list", resource: "secrets"},
		{user: "system:kube-scheduler", groups: []string{"system:authenticated"}, verb: "list", resource: "pods"},
		{user: "system:node:n", groups: []string{"system:nodes", "system:authenticated"}, verb: "get", resource: "secrets"},
	} {
		spec := authorizationv1.SubjectAccessReviewSpec{User: c.user, Groups: c.groups}
		if c.path != "" {
			spec.NonResourceAttributes = &authorizationv1.NonResourceAttributes{Path: c.path, Verb: c.verb}
		} else {
			spec.ResourceAttributes = &authorizationv1.ResourceAttributes{Verb: c.verb, Group: c.group, Resource: c.resource}
		}
		review, err := admin.AuthorizationV1().SubjectAccessReviews().Create(ctx, &authorizationv1.SubjectAccessReview{Spec: spec}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if review.Status.Allowed != c.want {
			t.Errorf("%s %s %s%s: allowed %v, want %v (%s)", c.user, c.verb, c.resource, c.path, review.Status.Allowed, c.want, review.Status.Reason)
		}
	}
	rules, err := admin.AuthorizationV1().SelfSubjectRulesReviews().Create(ctx, &authorizationv1.SelfSubjectRulesReview{Spec: authorizationv1.SelfSubjectRulesReviewSpec{Namespace: "default"}}, metav1.CreateOptions{})
	if err != nil || len(rules.Status.ResourceRules) == 0 {
		t.Errorf("rules review: %v, %v", rules, err)
	}
	local := &authorizationv1.LocalSubjectAccessReview{ObjectMeta: metav1.ObjectMeta{Namespace: "default"}, Spec: authorizationv1.SubjectAccessReviewSpec{
		User: "eve", ResourceAttributes: &authorizationv1.ResourceAttributes{Namespace: "default", Verb: "get", Resource: "pods"},
	}}
	if got, err := admin.AuthorizationV1().LocalSubjectAccessReviews("default").Create(ctx, local, metav1.CreateOptions{}); err != nil || got.Status.Allowed {
		t.Errorf("local review: %v, %v", got, err)
	}
	token, err := admin.AuthenticationV1().TokenReviews().Create(ctx, &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: "nonsense"}}, metav1.CreateOptions{})
	if err != nil || token.Status.Authenticated {
		t.Errorf("token review of nonsense: %v, %v", token, err)
	}
}

// TestDefaultRoles: nothing about API groups that do not exist here, and nothing for absent components.
func TestDefaultRoles(t *testing.T) {
	t.Parallel()
	r := defaultRoles(servedGroups(nil).Insert("", "apps"))
	if len(r.roles) != keptRoles().Len()+1 { // and metricsReader
		t.Errorf("%d roles of %d that are to be kept: upstream renamed one?", len(r.roles), keptRoles().Len())
	}
	for _, role := range r.roles {
		for _, rule := range role.Rules {
			for _, group := range rule.APIGroups {
				if slices.Contains([]string{"batch", "extensions", "policy", "autoscaling", "resource.k8s.io"}, group) {
					t.Errorf("role %s has a rule about %s", role.Name, group)
				}
			}
			if len(rule.APIGroups) == 0 && len(rule.NonResourceURLs) == 0 {
				t.Errorf("role %s has an empty rule %v", role.Name, rule)
			}
		}
	}
}
