package podspec

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/resource"
	"sigs.k8s.io/yaml"

	"github.com/endpointd/endpointd/internal/testkit"
)

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
