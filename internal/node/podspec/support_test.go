package podspec

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/yaml"

	"github.com/endpointd/endpointd/internal/node/image"
	"github.com/endpointd/endpointd/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// objects is a Source in memory.
type objects struct {
	mu         sync.Mutex
	configMaps map[string]*corev1.ConfigMap // namespace/name →
	secrets    map[string]*corev1.Secret
	services   []*corev1.Service
	away       error // what every question gets while the API is away
	tokens     int   // how many were asked for
	requests   []*authenticationv1.TokenRequest
	now        func() time.Time
}

func newObjects() *objects {
	return &objects{configMaps: map[string]*corev1.ConfigMap{}, secrets: map[string]*corev1.Secret{}, now: time.Now}
}

func (o *objects) ConfigMap(_ context.Context, namespace, name string) (*corev1.ConfigMap, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if cm := o.configMaps[namespace+"/"+name]; cm != nil || o.away != nil {
		return cm, o.away
	}
	return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "configmaps"}, name)
}

func (o *objects) Secret(_ context.Context, namespace, name string) (*corev1.Secret, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if s := o.secrets[namespace+"/"+name]; s != nil || o.away != nil {
		return s, o.away
	}
	return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "secrets"}, name)
}

func (o *objects) Token(_ context.Context, namespace, account string, tr *authenticationv1.TokenRequest) (*authenticationv1.TokenRequest, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.away != nil {
		return nil, o.away
	}
	o.tokens++
	o.requests = append(o.requests, tr.DeepCopy())
	reply := tr.DeepCopy()
	reply.Status.Token = fmt.Sprintf("token-%d-of-%s/%s", o.tokens, namespace, account)
	reply.Status.ExpirationTimestamp = metav1.NewTime(o.now().Add(time.Duration(*tr.Spec.ExpirationSeconds) * time.Second))
	return reply, nil
}

func (o *objects) Services(namespace string) ([]*corev1.Service, error) {
	var list []*corev1.Service
	for _, s := range o.services {
		if s.Namespace == namespace {
			list = append(list, s)
		}
	}
	return list, nil
}

func (o *objects) setConfigMap(namespace, name string, data map[string]string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.configMaps[namespace+"/"+name] = &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Data: data}
}

// load adds objects and returns the pod of a YAML stream.
func (o *objects) load(t *testing.T, text string) *corev1.Pod {
	t.Helper()
	var pod *corev1.Pod
	for doc := range strings.SplitSeq(text, "\n---\n") {
		var head metav1.TypeMeta
		decode(t, doc, &head)
		switch head.Kind {
		case "Pod":
			pod = &corev1.Pod{}
			decode(t, doc, pod)
		case "ConfigMap":
			cm := &corev1.ConfigMap{}
			decode(t, doc, cm)
			o.configMaps[cm.Namespace+"/"+cm.Name] = cm
		case "Secret":
			s := &corev1.Secret{}
			decode(t, doc, s)
			o.secrets[s.Namespace+"/"+s.Name] = s
		case "Service":
			s := &corev1.Service{}
			decode(t, doc, s)
			o.services = append(o.services, s)
		default:
			t.Fatalf("kind %q in test data", head.Kind)
		}
	}
	if pod == nil {
		t.Fatal("no pod in test data")
	}
	defaults(pod)
	return pod
}

func decode(t *testing.T, text string, into any) {
	t.Helper()
	if _, head := into.(*metav1.TypeMeta); head {
		if err := yaml.Unmarshal([]byte(text), into); err != nil {
			t.Fatal(err)
		}
		return
	}
	if err := yaml.UnmarshalStrict([]byte(text), into); err != nil {
		t.Fatal(err)
	}
}

// defaults are the API's that matter here.
func defaults(pod *corev1.Pod) {
	if pod.Spec.DNSPolicy == "" {
		pod.Spec.DNSPolicy = corev1.DNSClusterFirst
	}
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			if list[i].TerminationMessagePath == "" {
				list[i].TerminationMessagePath = corev1.TerminationMessagePathDefault
			}
		}
	}
}

// imageTable has a root of its own, so that users are the same on every machine.
const imageTable = `images:
- {name: app, rootfs: "ROOT", entrypoint: [/bin/app], args: [--default], env: [{name: FROM_IMAGE, value: image}, {name: A, value: image}], workingDir: /work}
- {name: machine, entrypoint: [/bin/app]}
- {name: named, rootfs: "ROOT", user: worker, entrypoint: [/bin/app]}
- {name: grouped, rootfs: "ROOT", user: "1000:staff", entrypoint: [/bin/app]}
- {name: numbered, rootfs: "ROOT", user: "4242", entrypoint: [/bin/app]}
- {name: zero, rootfs: "ROOT", user: "00", entrypoint: [/bin/app]}
- {name: nobody-knows, rootfs: "ROOT", user: stranger, entrypoint: [/bin/app]}
- {name: empty}
`

const (
	passwd = "root:x:0:0:root:/root:/bin/sh\nworker:x:1000:1000::/home/worker:/bin/sh\nbroken line\n"
	groups = "root:x:0:\nworker:x:1000:worker\nstaff:x:50:worker\naudio:x:29:other,worker\n"
)

// newBuilder is a Builder whose node has two cores and 4 GiB, and what it told.
func newBuilder(t *testing.T, source Source) (*Builder, *[]string) {
	t.Helper()
	return newBuilderWith(t, source, func(*Options) {})
}

func newBuilderWith(t *testing.T, source Source, change func(*Options)) (*Builder, *[]string) {
	t.Helper()
	dir := t.TempDir()
	root := filepath.Join(dir, "root")
	if err := os.MkdirAll(filepath.Join(root, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	writeText(t, filepath.Join(root, "etc/passwd"), passwd)
	writeText(t, filepath.Join(root, "etc/group"), groups)
	table, err := image.Parse("images.yaml", []byte(strings.ReplaceAll(imageTable, "ROOT", root)), "/opt/endpointd")
	if err != nil {
		t.Fatal(err)
	}
	resolv := filepath.Join(dir, "resolv.conf")
	writeText(t, resolv, "# a comment\nnameserver 192.0.2.1\nsearch example.com. corp.example.\noptions edns0 timeout:1\n")
	var told []string
	options := Options{
		Source: source, Images: table, Dir: filepath.Join(dir, "volumes"), ResolvConf: resolv,
		ClusterDNS: []netip.Addr{netip.MustParseAddr("10.96.0.10")},
		Node: func() *corev1.Node {
			return &corev1.Node{Status: corev1.NodeStatus{Allocatable: corev1.ResourceList{
				corev1.ResourceCPU: resource.MustParse("2"), corev1.ResourceMemory: resource.MustParse("4Gi"),
			}}}
		},
		Event: func(_ *corev1.Pod, reason, message string) { told = append(told, reason+": "+message) },
	}
	change(&options)
	b, err := New(options)
	if err != nil {
		t.Fatal(err)
	}
	return b, &told
}

func facts() Facts {
	return Facts{
		PodIPs:  []netip.Addr{netip.MustParseAddr("10.244.1.5"), netip.MustParseAddr("fd00:244::5")},
		HostIPs: []netip.Addr{netip.MustParseAddr("10.200.0.11")},
	}
}

// newPod is a pod of one container of the image app.
func newPod(change func(*corev1.Pod)) *corev1.Pod {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web", UID: "uid-1"},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "app"}}},
	}
	if change != nil {
		change(pod)
	}
	defaults(pod)
	return pod
}

func writeText(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func readString(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// wantError fails unless err is an *Error with the reason, and says all the texts.
func wantError(t *testing.T, err error, reason string, texts ...string) {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) || e.Reason != reason {
		t.Fatalf("error %v, want reason %s", err, reason)
	}
	for _, text := range texts {
		if !strings.Contains(e.Message, text) {
			t.Errorf("message %q does not say %q", e.Message, text)
		}
	}
}
