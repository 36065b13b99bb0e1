package podspec

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
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

// Each file of testdata/pods is a pod, and objects that it refers to; the golden file beside it is what is started.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/pods/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no test data: %v", err)
	}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".yaml")
		t.Run(name, func(t *testing.T) {
			source := newObjects()
			pod := source.load(t, readString(t, file))
			before := pod.DeepCopy()
			b, _ := newBuilderWith(t, source, func(o *Options) {
				o.Now = func() time.Time { return time.Unix(1_700_000_000, 0) }
			})
			var out strings.Builder
			show := func(title string, v any) {
				text, err := yaml.Marshal(v)
				if err != nil {
					t.Fatal(err)
				}
				fmt.Fprintf(&out, "# %s\n%s", title, text)
			}
			if err := b.Prepare(t.Context(), pod); err != nil {
				t.Fatal(err)
			}
			sandbox, err := b.Sandbox(pod)
			if err != nil {
				t.Fatal(err)
			}
			show("sandbox", short(t, sandbox))
			for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
				for i := range list {
					c, err := b.Container(t.Context(), pod, &list[i], facts())
					if err != nil {
						t.Fatal(err)
					}
					if c.Rootfs == "" { // whose home is the machine's
						c.Env = slices.DeleteFunc(c.Env, func(v string) bool { return strings.HasPrefix(v, "HOME=") })
					}
					if slices.Equal(c.Capabilities, defaultCapabilities()) {
						c.Capabilities = []string{"the default ones"}
					}
					show("container "+c.Name, short(t, c))
				}
			}
			show("files", tree(t, filepath.Join(b.dir, string(pod.UID))))
			text := strings.ReplaceAll(out.String(), b.dir, "$DIR")
			text = strings.ReplaceAll(text, filepath.Dir(b.dir)+"/root", "$ROOT")
			testkit.Golden(t, "pods/"+name+".golden", []byte(text))
			if !equality.Semantic.DeepEqual(before, pod) {
				t.Error("the pod was changed")
			}
		})
	}
}

// short is a value without what says nothing.
func short(t *testing.T, v any) any {
	t.Helper()
	text, err := yaml.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	var fields any
	if err := yaml.Unmarshal(text, &fields); err != nil {
		t.Fatal(err)
	}
	return prune(fields)
}

func prune(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for key, value := range v {
			if value = prune(value); value == nil {
				delete(v, key)
			} else {
				v[key] = value
			}
		}
		if len(v) == 0 {
			return nil
		}
	case []any:
		for i := range v {
			v[i] = prune(v[i])
		}
		if len(v) == 0 {
			return nil
		}
	case string:
		if v == "" {
			return nil
		}
	case bool:
		if !v {
			return nil
		}
	case float64:
		if v == 0 {
			return nil
		}
	}
	return v
}

// tree is each file below a folder, with its mode and text, as a reader of the volumes sees it.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	var walk func(string)
	walk = func(path string) {
		entries, err := os.ReadDir(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if strings.HasPrefix(e.Name(), ownPrefix) {
				continue
			}
			child := filepath.Join(path, e.Name())
			info, err := os.Stat(child)
			if err != nil {
				t.Fatal(err)
			}
			name, _ := filepath.Rel(dir, child)
			if info.IsDir() {
				files[name+"/"] = info.Mode().String()
				walk(child)
				continue
			}
			files[name] = info.Mode().String() + " " + readString(t, child)
		}
	}
	walk(dir)
	return files
}

func TestErrorsOfContainers(t *testing.T) {
	tests := []struct {
		name   string
		change func(*corev1.Pod, *corev1.Container)
		reason string
		says   []string
	}{
		{"unknown image", func(_ *corev1.Pod, c *corev1.Container) { c.Image = "postgres:16" }, ReasonImagePull, []string{"postgres:16", "images.yaml", "endpointd/echo"}},
		{"unknown image, never pulled", func(_ *corev1.Pod, c *corev1.Container) {
			c.Image, c.ImagePullPolicy = "postgres:16", corev1.PullNever
		}, ReasonImageNeverPull, []string{"postgres:16"}},
		{"no image name", func(_ *corev1.Pod, c *corev1.Container) { c.Image = "Not A Name" }, ReasonImageName, []string{"Not A Name"}},
		{"nothing to run", func(_ *corev1.Pod, c *corev1.Container) { c.Image = "empty" }, ReasonContainer, []string{"no command specified", "entrypoint"}},
		{"configmap missing", func(_ *corev1.Pod, c *corev1.Container) {
			c.Env = []corev1.EnvVar{{Name: "A", ValueFrom: &corev1.EnvVarSource{ConfigMapKeyRef: &corev1.ConfigMapKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: "none"}, Key: "k"}}}}
		}, ReasonContainerConfig, []string{"env A", `configmap "none" not found`, "optional"}},
		{"secret missing", func(_ *corev1.Pod, c *corev1.Container) {
			c.EnvFrom = []corev1.EnvFromSource{{SecretRef: &corev1.SecretEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "none"}}}}
		}, ReasonContainerConfig, []string{`secret "none" not found`}},
		{"key missing", func(_ *corev1.Pod, c *corev1.Container) {
			c.Env = []corev1.EnvVar{{Name: "A", ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: "s"}, Key: "other"}}}}
		}, ReasonContainerConfig, []string{"couldn't find key other in secret shop/s"}},
		{"NUL in a value", func(_ *corev1.Pod, c *corev1.Container) {
			c.Env = []corev1.EnvVar{{Name: "A", ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: "s"}, Key: "nul"}}}}
		}, ReasonContainerConfig, []string{"variable A", "NUL"}},
		{"unknown field", func(_ *corev1.Pod, c *corev1.Container) {
			c.Env = []corev1.EnvVar{{Name: "A", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "spec.image"}}}}
		}, ReasonContainerConfig, []string{"spec.image", "status.podIP"}},
		{"root, not to be", func(_ *corev1.Pod, c *corev1.Container) {
			c.SecurityContext = &corev1.SecurityContext{RunAsNonRoot: new(true)}
		}, ReasonContainerConfig, []string{"container has runAsNonRoot and image will run as root", "pod shop/web", "container c"}},
		{"unknown capability", func(_ *corev1.Pod, c *corev1.Container) {
			c.SecurityContext = &corev1.SecurityContext{Capabilities: &corev1.Capabilities{Add: []corev1.Capability{"NET_ADMN"}}}
		}, ReasonContainerConfig, []string{"NET_ADMN"}},
		{"seccomp profile", func(_ *corev1.Pod, c *corev1.Container) {
			c.SecurityContext = &corev1.SecurityContext{SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeLocalhost}}
		}, ReasonContainerConfig, []string{"seccompProfile", "RuntimeDefault"}},
		{"volume missing", func(_ *corev1.Pod, c *corev1.Container) {
			c.VolumeMounts = []corev1.VolumeMount{{Name: "v", MountPath: "/v"}}
		}, ReasonContainerConfig, []string{"volumeMount v", "spec.volumes"}},
		{"mount on the root", func(p *corev1.Pod, c *corev1.Container) {
			p.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}}
			c.VolumeMounts = []corev1.VolumeMount{{Name: "v", MountPath: "/."}}
		}, ReasonContainerConfig, []string{"root"}},
		{"sub-path of an unknown variable", func(p *corev1.Pod, c *corev1.Container) {
			p.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}}
			c.VolumeMounts = []corev1.VolumeMount{{Name: "v", MountPath: "/v", SubPathExpr: "a/$(NONE)"}}
		}, ReasonContainerConfig, []string{"NONE"}},
		{"device", func(_ *corev1.Pod, c *corev1.Container) {
			c.VolumeDevices = []corev1.VolumeDevice{{Name: "disk"}}
		}, ReasonContainerConfig, []string{"volumeDevices: disk"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			source := newObjects()
			source.secrets["shop/s"] = &corev1.Secret{Data: map[string][]byte{"k": []byte("hidden"), "nul": []byte("hidden\x00")}}
			b, _ := newBuilder(t, source)
			pod := newPod(func(p *corev1.Pod) { test.change(p, &p.Spec.Containers[0]) })
			if err := b.Prepare(t.Context(), pod); err != nil {
				t.Fatal(err)
			}
			_, err := b.Container(t.Context(), pod, &pod.Spec.Containers[0], facts())
			wantError(t, err, test.reason, append(test.says, "container c")...)
			if strings.Contains(err.Error(), "hidden") {
				t.Errorf("the message %q tells a secret", err)
			}
		})
	}
}

func TestErrorsOfSandboxes(t *testing.T) {
	tests := []struct {
		name   string
		change func(*corev1.Pod)
		reason string
		says   string
	}{
		{"windows", func(p *corev1.Pod) { p.Spec.OS = &corev1.PodOS{Name: corev1.Windows} }, ReasonSandbox, "linux"},
		{"user namespace", func(p *corev1.Pod) { p.Spec.HostUsers = new(false) }, ReasonSandbox, "hostUsers"},
		{"claims", func(p *corev1.Pod) { p.Spec.ResourceClaims = []corev1.PodResourceClaim{{Name: "gpu"}} }, ReasonSandbox, "resourceClaims"},
		{"host name", func(p *corev1.Pod) { p.Spec.Hostname = "a.b" }, ReasonSandbox, "spec.hostname"},
		{"long whole name", func(p *corev1.Pod) {
			p.Spec.Subdomain, p.Spec.SetHostnameAsFQDN = strings.Repeat("x", 63), new(true)
		}, ReasonSandbox, "shorten"},
		{"UID that is a path", func(p *corev1.Pod) { p.UID = "../x" }, ReasonSandbox, "UID"},
		{"sysctl of the machine", func(p *corev1.Pod) { sysctl(p, "vm.swappiness", "1") }, ReasonSysctl, "whole machine"},
		{"sysctl that is not safe", func(p *corev1.Pod) { sysctl(p, "net.core.somaxconn", "1") }, ReasonSysctl, "allow it on the node"},
		{"sysctl with the node's network", func(p *corev1.Pod) {
			p.Spec.HostNetwork = true
			sysctl(p, "net.ipv4.tcp_syncookies", "1")
		}, ReasonSysctl, "hostNetwork"},
		{"sysctl with the node's IPC", func(p *corev1.Pod) {
			p.Spec.HostIPC = true
			sysctl(p, "kernel.shm_rmid_forced", "1")
		}, ReasonSysctl, "hostIPC"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			b, _ := newBuilder(t, newObjects())
			_, err := b.Sandbox(newPod(test.change))
			wantError(t, err, test.reason, "pod shop/web", test.says)
		})
	}
}

func sysctl(p *corev1.Pod, name, value string) {
	p.Spec.SecurityContext = &corev1.PodSecurityContext{Sysctls: []corev1.Sysctl{{Name: name, Value: value}}}
}

func TestSysctls(t *testing.T) {
	b, _ := newBuilderWith(t, newObjects(), func(o *Options) { o.UnsafeSysctls = []string{"net.core.*"} })
	for name, want := range map[string]string{
		"net.core.somaxconn": "net.core.somaxconn", "net/ipv4/tcp_syncookies": "net.ipv4.tcp_syncookies", "kernel.shm_rmid_forced": "kernel.shm_rmid_forced",
	} {
		s, err := b.Sandbox(newPod(func(p *corev1.Pod) { sysctl(p, name, "7") }))
		if err != nil || !maps.Equal(s.Sysctls, map[string]string{want: "7"}) {
			t.Errorf("%s: %v, %v", name, s.Sysctls, err)
		}
	}
}

func TestHostnames(t *testing.T) {
	node, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name   string
		change func(*corev1.Pod)
		want   string
	}{
		{"the pod's name", nil, "web"},
		{"its own", func(p *corev1.Pod) { p.Spec.Hostname = "db-0" }, "db-0"},
		{"cut, without the separator", func(p *corev1.Pod) { p.Name = strings.Repeat("a", 62) + ".b" }, strings.Repeat("a", 62)},
		{"subdomain alone changes nothing", func(p *corev1.Pod) { p.Spec.Subdomain = "db" }, "web"},
		{"whole name", func(p *corev1.Pod) { p.Spec.Subdomain, p.Spec.SetHostnameAsFQDN = "db", new(true) }, "web.db.shop.svc.cluster.local"},
		{"override", func(p *corev1.Pod) { p.Spec.HostnameOverride = new("a.b.example") }, "a.b.example"},
		{"host network", func(p *corev1.Pod) { p.Spec.HostNetwork = true }, node},
	} {
		t.Run(test.name, func(t *testing.T) {
			b, _ := newBuilder(t, newObjects())
			pod := newPod(test.change)
			s, err := b.Sandbox(pod)
			if err != nil || s.Hostname != test.want {
				t.Errorf("hostname %q, %v; want %q", s.Hostname, err, test.want)
			}
			c, err := b.Container(t.Context(), pod, &pod.Spec.Containers[0], facts())
			if err != nil || !slices.Contains(c.Env, "HOSTNAME="+test.want) {
				t.Errorf("environment %q, %v; want HOSTNAME=%s", c.Env, err, test.want)
			}
		})
	}
}

func TestResources(t *testing.T) {
	for _, test := range []struct {
		name             string
		requests, limits corev1.ResourceList
		cpu, shares, mem int64
	}{
		{"nothing", nil, nil, 0, 2, 0},
		{"request alone", list("500m", "64Mi"), nil, 0, 512, 0},
		{"limit alone is the request too", nil, list("2", "64Mi"), 2000, 2048, 64 << 20},
		{"both", list("100m", "32Mi"), list("1", "64Mi"), 1000, 102, 64 << 20},
		{"less than the kernel takes", list("1m", "0"), list("1m", "1Mi"), 10, 2, 1 << 20},
		{"more than the kernel takes", list("1000", "0"), list("1000", "0"), 1000000, 262144, 0},
	} {
		c := corev1.Container{Resources: corev1.ResourceRequirements{Requests: test.requests, Limits: test.limits}}
		got := containerResources(&c)
		if got.CPUMillis != test.cpu || got.CPUShares != test.shares || got.MemoryBytes != test.mem {
			t.Errorf("%s: %+v, want %d, %d, %d", test.name, got, test.cpu, test.shares, test.mem)
		}
	}
	b, _ := newBuilderWith(t, newObjects(), func(o *Options) { o.PodPIDs = 99 })
	two := newPod(func(p *corev1.Pod) {
		p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: "d", Image: "app"})
		p.Spec.Containers[0].Resources.Limits = list("1", "64Mi")
		p.Spec.Containers[1].Resources.Limits = list("500m", "0")
		p.Spec.Containers[1].Resources.Requests = list("250m", "0")
	})
	s, err := b.Sandbox(two)
	if err != nil || s.Resources.CPUMillis != 1500 || s.Resources.MemoryBytes != 0 || s.Resources.PIDs != 99 {
		t.Errorf("a pod whose second container has no memory limit: %+v, %v", s.Resources, err)
	}
}

func list(cpu, memory string) corev1.ResourceList {
	return corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu), corev1.ResourceMemory: resource.MustParse(memory)}
}
