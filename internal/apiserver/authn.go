package apiserver

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/apis/apiserver"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/group"
	"k8s.io/apiserver/pkg/authentication/request/anonymous"
	"k8s.io/apiserver/pkg/authentication/request/bearertoken"
	"k8s.io/apiserver/pkg/authentication/request/union"
	"k8s.io/apiserver/pkg/authentication/request/websocket"
	"k8s.io/apiserver/pkg/authentication/request/x509"
	tokencache "k8s.io/apiserver/pkg/authentication/token/cache"
	tokenunion "k8s.io/apiserver/pkg/authentication/token/union"
	"k8s.io/apiserver/pkg/server/dynamiccertificates"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/util/keyutil"
	"k8s.io/kubernetes/pkg/serviceaccount"
)

// tokenCacheTTL is how long a verified token is not verified again, as upstream; a revoked one works that much longer.
const tokenCacheTTL = 10 * time.Second

// healthPaths are all that a request without credentials gets (AnonymousAuthConfig conditions, KEP-4633).
func healthPaths() []string { return []string{"/livez", "/readyz", "/healthz"} }

// signingKey reads the private key of ServiceAccount tokens: what signs and what verifies them.
func signingKey(path string) (serviceaccount.TokenGenerator, serviceaccount.PublicKeysGetter, error) {
	private, err := keyutil.PrivateKeyFromFile(path)
	if err != nil {
		return nil, nil, fmt.Errorf("service account key %s: %w", path, err)
	}
	public, err := keyutil.PublicKeysFromFile(path)
	if err != nil {
		return nil, nil, fmt.Errorf("service account key %s: %w", path, err)
	}
	sign, err := serviceaccount.JWTTokenGenerator(Issuer, private)
	if err != nil {
		return nil, nil, fmt.Errorf("service account key %s: %w", path, err)
	}
	verify, err := serviceaccount.StaticPublicKeysGetter(public)
	if err != nil {
		return nil, nil, fmt.Errorf("service account key %s: %w", path, err)
	}
	return sign, verify, nil
}

// newAuthenticator accepts client certificates of the CA, ServiceAccount tokens (bound, and those in Secrets), and
// nobody for the health paths.
func newAuthenticator(ca dynamiccertificates.CAContentProvider, keys serviceaccount.PublicKeysGetter, client kubernetes.Interface) (authenticator.Request, error) {
	audiences := authenticator.Audiences{Issuer}
	getter := tokenObjects{client: client}
	legacy, err := serviceaccount.NewLegacyValidator(true, getter, client.CoreV1())
	if err != nil {
		return nil, err
	}
	tokens := tokencache.New(tokenunion.New(
		serviceaccount.JWTTokenAuthenticator([]string{serviceaccount.LegacyIssuer}, keys, audiences, legacy),
		serviceaccount.JWTTokenAuthenticator([]string{Issuer}, keys, audiences, serviceaccount.NewValidator(getter)),
	), true, tokenCacheTTL, 0)

	known := group.NewAuthenticatedGroupAdder(union.New(
		x509.NewDynamic(ca.VerifyOptions, x509.CommonNameUserConversion),
		bearertoken.New(tokens),
		websocket.NewProtocolAuthenticator(tokens),
	))
	var conditions []apiserver.AnonymousAuthCondition
	for _, path := range healthPaths() {
		conditions = append(conditions, apiserver.AnonymousAuthCondition{Path: path})
	}
	// Bad credentials are an error, never an anonymous request.
	return union.NewFailOnError(known, anonymous.NewAuthenticator(conditions)), nil
}

// tokenObjects looks up what a token is bound to, for serviceaccount.ServiceAccountTokenGetter. It reads from etcd, so
// a token ends with its object; tokenCacheTTL bounds the cost. Upstream keeps informers of all Pods, Secrets and
// Nodes for this: a second copy of everything in memory, and a moment behind.
type tokenObjects struct {
	client kubernetes.Interface // must not authenticate with a ServiceAccount token, or lookups recurse
}

func (t tokenObjects) GetServiceAccount(ctx context.Context, namespace, name string) (*corev1.ServiceAccount, error) {
	return t.client.CoreV1().ServiceAccounts(namespace).Get(ctx, name, metav1.GetOptions{})
}

func (t tokenObjects) GetPod(ctx context.Context, namespace, name string) (*corev1.Pod, error) {
	return t.client.CoreV1().Pods(namespace).Get(ctx, name, metav1.GetOptions{})
}

func (t tokenObjects) GetSecret(ctx context.Context, namespace, name string) (*corev1.Secret, error) {
	return t.client.CoreV1().Secrets(namespace).Get(ctx, name, metav1.GetOptions{})
}

func (t tokenObjects) GetNode(ctx context.Context, name string) (*corev1.Node, error) {
	return t.client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
}

func (t tokenObjects) GetValidatingWebhookConfiguration(ctx context.Context, name string) (*validatingWebhook, error) {
	return noWebhooks[*validatingWebhook]{}.Get(ctx, name, metav1.GetOptions{})
}

func (t tokenObjects) GetMutatingWebhookConfiguration(ctx context.Context, name string) (*mutatingWebhook, error) {
	return noWebhooks[*mutatingWebhook]{}.Get(ctx, name, metav1.GetOptions{})
}
