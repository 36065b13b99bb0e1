package podspec

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/endpointd/endpointd/internal/node/image"
)

// Source has what pods refer to. Objects are read only, and may come from a cache. An object that does not exist is
// an error for which apierrors.IsNotFound holds.
type Source interface {
	ConfigMap(ctx context.Context, namespace, name string) (*corev1.ConfigMap, error)
	Secret(ctx context.Context, namespace, name string) (*corev1.Secret, error)
	// Token asks for a token of a service account (TokenRequest).
	Token(ctx context.Context, namespace, serviceAccount string, tr *authenticationv1.TokenRequest) (*authenticationv1.TokenRequest, error)
	// Services are those of a namespace, for environment variables. It does not block.
	Services(namespace string) ([]*corev1.Service, error)
}

// Options of a Builder. Source, Images and Dir are needed.
type Options struct {
	Source Source
	Images *image.Table
	// Dir has a folder for each pod, by UID. It is made when it is not there.
	Dir string
	// Node is the node's object as it is now, for its allocatable resources; nil, or a nil object, when it is not known.
	Node func() *corev1.Node
	// ClusterDNS are the servers of pods with the policy ClusterFirst. Without any such pods get the node's own.
	ClusterDNS []netip.Addr
	// ClusterDomain is what Services' names end in; "" = cluster.local.
	ClusterDomain string
	// ResolvConf is the node's own; "" = /etc/resolv.conf.
	ResolvConf string
	// PodPIDs is how many tasks a pod may have; zero = no limit.
	PodPIDs int64
	// UnsafeSysctls are allowed beside the safe ones: names, or prefixes that end in "*".
	UnsafeSysctls []string
	// Event tells of something that the pod's owner should know and that stops nothing; nil = it is logged.
	Event func(pod *corev1.Pod, reason, message string)
	// Now is the time; nil = time.Now.
	Now    func() time.Time
	Logger *slog.Logger // nil = nothing is logged
}

// Facts are what is known of a pod only once it runs.
type Facts struct {
	PodIPs  []netip.Addr // first the one that the node prefers; with hostNetwork the node's
	HostIPs []netip.Addr
	Attempt int // counts the starts of this container from 0
}

// The kubelet's words for why a pod or a container does not start: the reason of an event or of a waiting container.
const (
	ReasonImagePull       = "ErrImagePull"               // the image is not in the table
	ReasonImageNeverPull  = "ErrImageNeverPull"          // the same with imagePullPolicy Never
	ReasonImageName       = "InvalidImageName"           // no image has such a name
	ReasonContainerConfig = "CreateContainerConfigError" // a reference or a setting of the container is wrong
	ReasonContainer       = "CreateContainerError"       // the container has nothing to run
	ReasonSandbox         = "CreatePodSandboxError"      // a setting of the pod is wrong
	ReasonSysctl          = "SysctlForbidden"            // the pod asks for a sysctl that is not allowed; it fails for good
	ReasonMount           = "FailedMount"                // a volume could not be made
)

// Error is why a pod or a container cannot start as it is.
type Error struct {
	Reason  string // one of the Reason constants
	Message string // names the object and the next step; holds no secret
	Err     error  // what it came from; may be nil
}

func (e *Error) Error() string { return e.Reason + ": " + e.Message }
func (e *Error) Unwrap() error { return e.Err }

// refuse is an Error; a %w among the arguments is what it wraps.
func refuse(reason, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Reason: reason, Message: err.Error(), Err: errors.Unwrap(err)}
}

// reasoned gives an error without a reason this one.
func reasoned(reason string, err error) error {
	var e *Error
	if err == nil || errors.As(err, &e) {
		return err
	}
	return &Error{Reason: reason, Message: err.Error(), Err: err}
}

// Builder makes sandboxes, containers and volumes from pods.
type Builder struct {
	options Options
	dir     string // Options.Dir, made and resolved

	mu     sync.Mutex
	tokens map[tokenKey]token // guarded by mu
}

// New makes the folder and a Builder for it.
func New(options Options) (*Builder, error) {
	if options.Source == nil || options.Images == nil || options.Dir == "" {
		return nil, errors.New("podspec: Source, Images and Dir are needed")
	}
	if options.ClusterDomain == "" {
		options.ClusterDomain = "cluster.local"
	}
	if options.ResolvConf == "" {
		options.ResolvConf = "/etc/resolv.conf"
	}
	if options.Now == nil {
		options.Now = time.Now
	}
	if options.Logger == nil {
		options.Logger = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(options.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("volumes: %w", err)
	}
	dir, err := filepath.Abs(options.Dir)
	if err != nil {
		return nil, fmt.Errorf("volumes: %w", err)
	}
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		return nil, fmt.Errorf("volumes: %w", err)
	}
	return &Builder{options: options, dir: dir, tokens: map[tokenKey]token{}}, nil
}

// tell is an event, or a line of the log.
func (b *Builder) tell(pod *corev1.Pod, reason, format string, args ...any) {
	message := fmt.Sprintf(format, args...)
	if b.options.Event != nil {
		b.options.Event(pod, reason, message)
		return
	}
	b.options.Logger.Warn("pod starts with less than it asked for", "pod", pod.Namespace+"/"+pod.Name, "reason", reason, "message", message)
}

// podDir is the folder of a pod. The UID is a file name: the API makes it, but a static pod's comes from a file.
func (b *Builder) podDir(uid string) (string, error) {
	if uid == "" || uid == "." || uid == ".." || filepath.Base(uid) != uid {
		return "", fmt.Errorf("pod UID %q cannot be the name of a folder", uid)
	}
	return filepath.Join(b.dir, uid), nil
}

// allocatable is what the node has for pods; nil when it is not known.
func (b *Builder) allocatable() corev1.ResourceList {
	if b.options.Node == nil {
		return nil
	}
	node := b.options.Node()
	if node == nil {
		return nil
	}
	return node.Status.Allocatable
}

// configMap is a ConfigMap that a pod refers to; nil when it does not exist and may do so.
func (b *Builder) configMap(ctx context.Context, namespace, name string, optional *bool) (*corev1.ConfigMap, error) {
	cm, err := b.options.Source.ConfigMap(ctx, namespace, name)
	if err == nil {
		return cm, nil
	}
	return nil, missing("configmap", namespace, name, optional, err)
}

// secret is a Secret that a pod refers to; nil when it does not exist and may do so.
func (b *Builder) secret(ctx context.Context, namespace, name string, optional *bool) (*corev1.Secret, error) {
	s, err := b.options.Source.Secret(ctx, namespace, name)
	if err == nil {
		return s, nil
	}
	return nil, missing("secret", namespace, name, optional, err)
}

// missing is nil for an object that may be missing and is.
func missing(kind, namespace, name string, optional *bool, err error) error {
	switch {
	case !apierrors.IsNotFound(err):
		return fmt.Errorf("%s %s/%s: %w", kind, namespace, name, err)
	case isTrue(optional):
		return nil
	}
	return fmt.Errorf("%s %q not found in namespace %s; create it, or mark the reference optional (%w)", kind, name, namespace, err)
}

func isTrue(b *bool) bool { return b != nil && *b }
