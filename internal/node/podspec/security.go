package podspec

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/endpointd/endpointd/internal/node/container"
	"github.com/endpointd/endpointd/internal/node/image"
)

// defaultCapabilities are what a container has when it says nothing: containerd's set, which is Docker's.
func defaultCapabilities() []string {
	return []string{
		"CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_MKNOD",
		"CAP_NET_BIND_SERVICE", "CAP_NET_RAW", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT",
	}
}

// allCapabilities are all that Linux has (capabilities(7)).
func allCapabilities() []string {
	return []string{
		"CAP_AUDIT_CONTROL", "CAP_AUDIT_READ", "CAP_AUDIT_WRITE", "CAP_BLOCK_SUSPEND", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
		"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_IPC_LOCK", "CAP_IPC_OWNER",
		"CAP_KILL", "CAP_LEASE", "CAP_LINUX_IMMUTABLE", "CAP_MAC_ADMIN", "CAP_MAC_OVERRIDE", "CAP_MKNOD", "CAP_NET_ADMIN",
		"CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_RAW", "CAP_PERFMON", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP",
		"CAP_SETUID", "CAP_SYSLOG", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_CHROOT", "CAP_SYS_MODULE", "CAP_SYS_NICE",
		"CAP_SYS_PACCT", "CAP_SYS_PTRACE", "CAP_SYS_RAWIO", "CAP_SYS_RESOURCE", "CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_WAKE_ALARM",
	}
}

// allOfThem names every capability in a pod spec.
const allOfThem = "ALL"

// capabilities are those that a container may have at most. drop goes before add for ALL and after it for single ones.
func capabilities(c *corev1.Capabilities) ([]string, error) {
	set := map[string]bool{}
	put := func(names []string, have bool) {
		for _, name := range names {
			set[name] = have
		}
	}
	put(defaultCapabilities(), true)
	if c == nil {
		c = &corev1.Capabilities{}
	}
	add, err := capabilityNames("add", c.Add)
	if err != nil {
		return nil, err
	}
	drop, err := capabilityNames("drop", c.Drop)
	if err != nil {
		return nil, err
	}
	if slices.Contains(add, allOfThem) {
		put(allCapabilities(), true)
	}
	if slices.Contains(drop, allOfThem) {
		clear(set)
	}
	put(add, true)
	put(drop, false)
	delete(set, allOfThem)
	var names []string
	for _, name := range allCapabilities() {
		if set[name] {
			names = append(names, name)
		}
	}
	return names, nil
}

// capabilityNames are the kernel's names for those of a pod spec, which has them without CAP_.
func capabilityNames(field string, list []corev1.Capability) ([]string, error) {
	known := allCapabilities()
	names := make([]string, len(list))
	for i, c := range list {
		name := strings.ToUpper(string(c))
		if name != allOfThem {
			name = "CAP_" + strings.TrimPrefix(name, "CAP_")
			if !slices.Contains(known, name) {
				return nil, fmt.Errorf("securityContext.capabilities.%s: unknown capability %q; capabilities(7) has the names, without CAP_", field, c)
			}
		}
		names[i] = name
	}
	return names, nil
}

// supportedProfiles refuses profiles that would have to be loaded, and Windows. Unconfined and RuntimeDefault are the same here: the
// runtime confines by capabilities and namespaces. SELinux labels are as on a machine without SELinux: not looked at.
func supportedProfiles(field string, seccomp *corev1.SeccompProfile, apparmor *corev1.AppArmorProfile, windows *corev1.WindowsSecurityContextOptions) error {
	switch {
	case seccomp != nil && seccomp.Type == corev1.SeccompProfileTypeLocalhost:
		return fmt.Errorf("%s.seccompProfile.type is Localhost: profiles are not loaded here; use RuntimeDefault or Unconfined", field)
	case apparmor != nil && apparmor.Type == corev1.AppArmorProfileTypeLocalhost:
		return fmt.Errorf("%s.appArmorProfile.type is Localhost: profiles are not loaded here; use RuntimeDefault or Unconfined", field)
	case windows != nil && isTrue(windows.HostProcess):
		return fmt.Errorf("%s.windowsOptions.hostProcess: this node runs linux; give the pod a node with Windows", field)
	}
	return nil
}

// applySecurity fills in who the container is and what it may do, from the pod's and the container's security context:
// the container's goes first, field by field.
func applySecurity(pod *corev1.Pod, c *corev1.Container, config image.Config, out *container.Container) (home string, err error) {
	podContext, own := pod.Spec.SecurityContext, c.SecurityContext
	if podContext == nil {
		podContext = &corev1.PodSecurityContext{}
	}
	if own == nil {
		own = &corev1.SecurityContext{}
	}
	if err := supportedProfiles("securityContext", own.SeccompProfile, own.AppArmorProfile, own.WindowsOptions); err != nil {
		return "", err
	}
	wanted := identity{
		uid: first(own.RunAsUser, podContext.RunAsUser), gid: first(own.RunAsGroup, podContext.RunAsGroup),
		user: config.User, machine: config.Rootfs == "",
		strict: podContext.SupplementalGroupsPolicy != nil && *podContext.SupplementalGroupsPolicy == corev1.SupplementalGroupsPolicyStrict,
	}
	if isTrue(first(own.RunAsNonRoot, podContext.RunAsNonRoot)) {
		if err := wanted.nonRoot(); err != nil {
			return "", err
		}
	}
	accounts, err := readAccounts(config.Rootfs)
	if err != nil {
		return "", err
	}
	out.User, home, err = wanted.resolve(accounts)
	if err != nil {
		return "", err
	}
	groups := podContext.SupplementalGroups
	if podContext.FSGroup != nil {
		groups = append(slices.Clone(groups), *podContext.FSGroup)
	}
	for _, g := range groups {
		id, err := validID("group", g)
		if err != nil {
			return "", err
		}
		if !slices.Contains(out.User.Groups, id) {
			out.User.Groups = append(out.User.Groups, id)
		}
	}
	slices.Sort(out.User.Groups)
	out.Privileged = isTrue(own.Privileged)
	out.ReadOnlyRootfs = isTrue(own.ReadOnlyRootFilesystem)
	out.NoNewPrivileges = own.AllowPrivilegeEscalation != nil && !*own.AllowPrivilegeEscalation
	if out.Privileged {
		out.Capabilities = allCapabilities()
		return home, nil
	}
	out.Capabilities, err = capabilities(own.Capabilities)
	return home, err
}

// first is the one that is set.
func first[T any](a, b *T) *T {
	if a != nil {
		return a
	}
	return b
}

// idMax is the greatest number of a user or group that the API takes.
const idMax = 1<<31 - 1

func validID(what string, id int64) (uint32, error) {
	if id < 0 || id > idMax {
		return 0, fmt.Errorf("%s %d: it must be between 0 and %d", what, id, idMax)
	}
	return uint32(id), nil
}

// identity is who a container asks to be.
type identity struct {
	uid, gid *int64 // of the pod spec
	user     string // of the image: NAME or number, with an optional :GROUP
	machine  bool   // it sees the machine's files
	strict   bool   // groups of the image are not added
}

// nonRoot refuses root, and a name of which nobody can say that it is not root.
func (i identity) nonRoot() error {
	switch user, _, _ := strings.Cut(i.user, ":"); {
	case i.uid != nil && *i.uid == 0:
		return errors.New("container's runAsUser breaks non-root policy; give it a runAsUser above 0, or leave runAsNonRoot out")
	case i.uid != nil:
		return nil
	case user == "":
		return errors.New("container has runAsNonRoot and image will run as root; give it a runAsUser, or the image a user in the image table")
	case !isNumber(user):
		return fmt.Errorf("container has runAsNonRoot and image has non-numeric user (%s), cannot verify user is non-root; give the user as a number", user)
	case strings.TrimLeft(user, "0") == "":
		return errors.New("container has runAsNonRoot and image will run as root; give it a runAsUser, or the image another user")
	}
	return nil
}

// resolve looks the rest up in the container's own files: the group, the groups that the user is a member of, its home.
func (i identity) resolve(accounts accounts) (user container.User, home string, err error) {
	name, group, _ := strings.Cut(i.user, ":")
	if i.uid != nil {
		// The image's group is that of the image's user.
		name, group = fmt.Sprint(*i.uid), ""
	}
	entry, known := accounts.user(name)
	switch {
	case name == "":
		entry, _ = accounts.user("0")
	case !known && !isNumber(name):
		return container.User{}, "", fmt.Errorf("user %q of the image is not in %s; name it as a number, or add it", name, accounts.passwdPath)
	case !known:
		if entry.uid, err = parseID("user", name); err != nil {
			return container.User{}, "", err
		}
	}
	user = container.User{UID: entry.uid, GID: entry.gid}
	switch {
	case i.gid != nil:
		if user.GID, err = validID("runAsGroup", *i.gid); err != nil {
			return container.User{}, "", err
		}
	case group != "":
		if user.GID, err = accounts.group(group); err != nil {
			return container.User{}, "", err
		}
	}
	// Without a root of its own, the groups are the machine's, and no image gave the user any.
	if !i.strict && group == "" && !i.machine {
		user.Groups = accounts.memberships(entry.name, user.GID)
	}
	return user, entry.home, nil
}
