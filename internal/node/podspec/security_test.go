package podspec

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/endpointd/endpointd/internal/node/container"
)

func TestUsers(t *testing.T) {
	strict := corev1.SupplementalGroupsPolicyStrict
	tests := []struct {
		name, image string
		pod         corev1.PodSecurityContext
		own         corev1.SecurityContext
		want        string // uid:gid groups home
	}{
		{"nobody says anything", "app", corev1.PodSecurityContext{}, corev1.SecurityContext{}, "0:0 [] /root"},
		{"the image's, by name", "named", corev1.PodSecurityContext{}, corev1.SecurityContext{}, "1000:1000 [29 50] /home/worker"},
		{"the image's, with a group", "grouped", corev1.PodSecurityContext{}, corev1.SecurityContext{}, "1000:50 [] /home/worker"},
		{"a number that is in no file", "numbered", corev1.PodSecurityContext{}, corev1.SecurityContext{}, "4242:0 [] /"},
		{"the pod's", "named", corev1.PodSecurityContext{RunAsUser: new(int64(7))}, corev1.SecurityContext{}, "7:0 [] /"},
		{"the container's before the pod's", "app", corev1.PodSecurityContext{RunAsUser: new(int64(7)), RunAsGroup: new(int64(8))}, corev1.SecurityContext{RunAsUser: new(int64(1000))}, "1000:8 [29 50 1000] /home/worker"},
		{"the pod's user is in the files", "grouped", corev1.PodSecurityContext{RunAsUser: new(int64(1000))}, corev1.SecurityContext{}, "1000:1000 [29 50] /home/worker"},
		{"groups add up", "named", corev1.PodSecurityContext{SupplementalGroups: []int64{9, 50}, FSGroup: new(int64(3))}, corev1.SecurityContext{}, "1000:1000 [3 9 29 50] /home/worker"},
		{"strictly the pod's groups", "named", corev1.PodSecurityContext{SupplementalGroups: []int64{9}, SupplementalGroupsPolicy: &strict}, corev1.SecurityContext{}, "1000:1000 [9] /home/worker"},
		{"not root, by a number", "numbered", corev1.PodSecurityContext{RunAsNonRoot: new(true)}, corev1.SecurityContext{}, "4242:0 [] /"},
		{"the container may be root", "app", corev1.PodSecurityContext{RunAsNonRoot: new(true)}, corev1.SecurityContext{RunAsNonRoot: new(false)}, "0:0 [] /root"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c, err := secured(t, test.image, test.pod, test.own)
			if err != nil {
				t.Fatal(err)
			}
			i := slices.IndexFunc(c.Env, func(v string) bool { return strings.HasPrefix(v, "HOME=") })
			got := fmt.Sprintf("%d:%d %v %s", c.User.UID, c.User.GID, c.User.Groups, strings.TrimPrefix(c.Env[i], "HOME="))
			if got != test.want {
				t.Errorf("got %s, want %s", got, test.want)
			}
		})
	}
}

func secured(t *testing.T, image string, pod corev1.PodSecurityContext, own corev1.SecurityContext) (container.Container, error) {
	t.Helper()
	b, _ := newBuilder(t, newObjects())
	p := newPod(func(p *corev1.Pod) {
		p.Spec.SecurityContext = &pod
		p.Spec.Containers[0].Image = image
		p.Spec.Containers[0].SecurityContext = &own
	})
	return b.Container(t.Context(), p, &p.Spec.Containers[0], facts())
}

func TestRefusedUsers(t *testing.T) {
	tests := []struct {
		name, image string
		own         corev1.SecurityContext
		says        string
	}{
		{"root by the pod", "app", corev1.SecurityContext{RunAsNonRoot: new(true), RunAsUser: new(int64(0))}, "container's runAsUser breaks non-root policy"},
		{"root by the image", "app", corev1.SecurityContext{RunAsNonRoot: new(true)}, "container has runAsNonRoot and image will run as root"},
		{"root by another zero", "zero", corev1.SecurityContext{RunAsNonRoot: new(true)}, "container has runAsNonRoot and image will run as root"},
		{"a name may be root", "named", corev1.SecurityContext{RunAsNonRoot: new(true)}, "image has non-numeric user (worker), cannot verify user is non-root"},
		{"a name that nobody knows", "nobody-knows", corev1.SecurityContext{}, `user "stranger" of the image is not in`},
		{"a negative number", "app", corev1.SecurityContext{RunAsUser: new(int64(-1))}, "user"},
		{"a number that is too great", "app", corev1.SecurityContext{RunAsGroup: new(int64(1 << 31))}, "between 0 and 2147483647"},
		{"Windows", "app", corev1.SecurityContext{WindowsOptions: &corev1.WindowsSecurityContextOptions{HostProcess: new(true)}}, "windowsOptions"},
		{"AppArmor", "app", corev1.SecurityContext{AppArmorProfile: &corev1.AppArmorProfile{Type: corev1.AppArmorProfileTypeLocalhost}}, "appArmorProfile"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, err := secured(t, test.image, corev1.PodSecurityContext{}, test.own)
			wantError(t, err, ReasonContainerConfig, test.says)
		})
	}
}

// The machine's own groups are no image's: a container that sees the machine's files gets none of them for its number.
func TestMachineGroupsAreNotInherited(t *testing.T) {
	a := accounts{
		users:  []account{{name: "op", uid: 1000, gid: 1000, home: "/home/op"}},
		groups: []accountGroup{{name: "disk", gid: 6, members: []string{"op"}}},
	}
	for machine, want := range map[bool]string{true: "{1000 1000 []}", false: "{1000 1000 [6]}"} {
		user, home, err := identity{uid: new(int64(1000)), machine: machine}.resolve(a)
		if got := fmt.Sprint(user); err != nil || got != want || home != "/home/op" {
			t.Errorf("machine's files %v: %s %s, %v; want %s", machine, got, home, err, want)
		}
	}
	for image, machine := range map[string]bool{"app": false, "machine": true} {
		c, err := secured(t, image, corev1.PodSecurityContext{}, corev1.SecurityContext{})
		if err != nil || (c.Rootfs == "") != machine {
			t.Errorf("%s: root %q, %v", image, c.Rootfs, err)
		}
	}
}

// A root's passwd may be a link: it starts at that root, and cannot read the machine's files.
func TestAccountsStayInTheirRoot(t *testing.T) {
	root := t.TempDir()
	must(t, os.MkdirAll(filepath.Join(root, "etc"), 0o755))
	must(t, os.MkdirAll(filepath.Join(root, "usr/lib"), 0o755))
	writeText(t, filepath.Join(root, "usr/lib/passwd"), "own:x:77:78::/own:\n")
	must(t, os.Symlink("/usr/lib/passwd", filepath.Join(root, "etc/passwd")))
	must(t, os.Symlink("../../../../../../../../etc/group", filepath.Join(root, "etc/group")))
	a, err := readAccounts(root)
	if err == nil {
		t.Fatalf("a link to itself is read: %+v", a.groups)
	}
	must(t, os.Remove(filepath.Join(root, "etc/group")))
	a, err = readAccounts(root)
	if err != nil || len(a.groups) != 0 {
		t.Fatalf("%+v, %v", a, err)
	}
	if u, ok := a.user("own"); !ok || u.uid != 77 || u.gid != 78 || u.home != "/own" {
		t.Errorf("user %+v, %v", u, ok)
	}
	if _, ok := a.user("root"); ok {
		t.Error("the machine's users are there")
	}
}

func TestCapabilities(t *testing.T) {
	without := func(list []string, name string) []string {
		return slices.DeleteFunc(list, func(s string) bool { return s == name })
	}
	for _, test := range []struct {
		name      string
		add, drop []corev1.Capability
		want      []string
	}{
		{"nothing", nil, nil, defaultCapabilities()},
		{"drop all", nil, []corev1.Capability{"ALL"}, nil},
		{"all but one", []corev1.Capability{"all"}, []corev1.Capability{"SYS_ADMIN"}, without(allCapabilities(), "CAP_SYS_ADMIN")},
		{"one alone", []corev1.Capability{"NET_BIND_SERVICE"}, []corev1.Capability{"ALL"}, []string{"CAP_NET_BIND_SERVICE"}},
		{"one less", nil, []corev1.Capability{"CAP_NET_RAW"}, without(defaultCapabilities(), "CAP_NET_RAW")},
		{"lower case", []corev1.Capability{"net_admin"}, []corev1.Capability{"ALL"}, []string{"CAP_NET_ADMIN"}},
		{"both: dropped", []corev1.Capability{"NET_ADMIN"}, []corev1.Capability{"ALL", "NET_ADMIN"}, nil},
	} {
		got, err := capabilities(&corev1.Capabilities{Add: test.add, Drop: test.drop})
		if err != nil || !slices.Equal(got, test.want) {
			t.Errorf("%s: %q, %v; want %q", test.name, got, err, test.want)
		}
	}
	if !slices.IsSorted(allCapabilities()) || !slices.IsSorted(defaultCapabilities()) {
		t.Error("the lists are not sorted")
	}
	for _, name := range defaultCapabilities() {
		if !slices.Contains(allCapabilities(), name) {
			t.Errorf("%s is no capability", name)
		}
	}
}
