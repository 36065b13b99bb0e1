package podspec

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/endpointd/endpointd/internal/node/container"
)

// Folders of our own beside a pod's volumes. A volume's name is a DNS label and has no dot.
const (
	etcFolder         = ".etc"
	terminationFolder = ".termination"
)

// maxHosts is how much of the node's hosts file a pod with hostNetwork gets, in bytes.
const maxHosts = 10 << 20

// etcMounts writes the files that each container gets in /etc, and is where they go. One at whose place the container has a
// mount of its own is left out.
func (b *Builder) etcMounts(pod *corev1.Pod, c *corev1.Container, facts Facts) ([]container.Mount, error) {
	dir, err := b.podDir(string(pod.UID))
	if err != nil {
		return nil, err
	}
	dir = filepath.Join(dir, etcFolder)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	resolv, err := b.resolvConf(pod)
	if err != nil {
		return nil, err
	}
	hosts, err := b.hosts(pod, facts.PodIPs)
	if err != nil {
		return nil, err
	}
	host, _, err := b.hostname(pod)
	if err != nil {
		return nil, err
	}
	var mounts []container.Mount
	for _, file := range []struct{ name, text string }{
		{"hosts", hosts}, {"hostname", host + "\n"}, {"resolv.conf", resolv.String()},
	} {
		path, target := filepath.Join(dir, file.name), "/etc/"+file.name
		if err := writeInPlace(path, file.text); err != nil {
			return nil, err
		}
		if !mountsAt(c, target) {
			mounts = append(mounts, container.Mount{Source: path, Target: target, ReadOnly: isTrue(readOnlyRoot(c))})
		}
	}
	return mounts, nil
}

func readOnlyRoot(c *corev1.Container) *bool {
	if c.SecurityContext == nil {
		return nil
	}
	return c.SecurityContext.ReadOnlyRootFilesystem
}

// mountsAt says whether a container has a volume at a path.
func mountsAt(c *corev1.Container, target string) bool {
	for _, m := range c.VolumeMounts {
		if absolute(m.MountPath) == target {
			return true
		}
	}
	return false
}

// absolute is a path in a container; a relative one starts at its root.
func absolute(path string) string { return filepath.Join("/", path) }

// hosts is the pod's hosts file: the node's with hostNetwork, else one of its own; then what the pod adds.
func (b *Builder) hosts(pod *corev1.Pod, ips []netip.Addr) (string, error) {
	var s strings.Builder
	if pod.Spec.HostNetwork {
		text, err := readText("/etc/hosts", maxHosts)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("the node's hosts file: %w", err)
		}
		s.WriteString("# Written by endpointd (host network).\n" + text)
	} else {
		host, domain, err := b.hostname(pod)
		if err != nil {
			return "", err
		}
		names := host
		if domain != "" {
			names = host + "." + domain + "\t" + host
		}
		s.WriteString("# Written by endpointd.\n" +
			"127.0.0.1\tlocalhost\n" +
			"::1\tlocalhost ip6-localhost ip6-loopback\n" +
			"fe00::0\tip6-localnet\n" +
			"fe00::0\tip6-mcastprefix\n" +
			"fe00::1\tip6-allnodes\n" +
			"fe00::2\tip6-allrouters\n")
		for _, ip := range ips {
			s.WriteString(ip.String() + "\t" + names + "\n")
		}
	}
	if len(pod.Spec.HostAliases) > 0 {
		s.WriteString("\n# Entries added by HostAliases.\n")
	}
	for _, alias := range pod.Spec.HostAliases {
		line := alias.IP + "\t" + strings.Join(alias.Hostnames, "\t")
		if strings.ContainsAny(line, "\r\n\x00") {
			return "", fmt.Errorf("spec.hostAliases: %q: a line break would end the entry; remove it", alias.IP)
		}
		s.WriteString(line + "\n")
	}
	return s.String(), nil
}

// writeInPlace has a file say something without being replaced: containers that run have this very file mounted.
func writeInPlace(path, text string) error {
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, []byte(text)) {
		return nil
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		return err
	}
	// Whatever the umask: resolvers of all users read it.
	return os.Chmod(path, 0o644)
}

// maxTermination is how much of a termination message is kept, as the API says.
const maxTermination = 4096

// terminationMount makes the file that a container writes why it ended into, and is where it goes. Of
// attempts before, only the last one's is kept.
func (b *Builder) terminationMount(pod *corev1.Pod, c *corev1.Container, attempt int) (container.Mount, error) {
	path, err := b.terminationPath(string(pod.UID), c.Name, attempt)
	if err != nil {
		return container.Mount{}, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return container.Mount{}, err
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		return container.Mount{}, err
	}
	for _, e := range entries {
		if n, err := strconv.Atoi(e.Name()); err == nil && n < attempt-1 {
			if err := os.Remove(filepath.Join(filepath.Dir(path), e.Name())); err != nil {
				return container.Mount{}, err
			}
		}
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		return container.Mount{}, err
	}
	// Any user of the container may write it, as with the kubelet; the folder around it lets no others near.
	if err := os.Chmod(path, 0o666); err != nil {
		return container.Mount{}, err
	}
	return container.Mount{Source: path, Target: absolute(c.TerminationMessagePath)}, nil
}

func (b *Builder) terminationPath(uid, name string, attempt int) (string, error) {
	dir, err := b.podDir(uid)
	if err != nil {
		return "", err
	}
	if name == "" || name == "." || name == ".." || filepath.Base(name) != name {
		return "", fmt.Errorf("container name %q cannot be the name of a folder", name)
	}
	return filepath.Join(dir, terminationFolder, name, strconv.Itoa(attempt)), nil
}

// TerminationMessage is the end, up to 4096 bytes, of what a container wrote to its terminationMessagePath; "" when there is nothing.
// The policy FallbackToLogsOnError is the caller's.
func (b *Builder) TerminationMessage(uid, name string, attempt int) (string, error) {
	path, err := b.terminationPath(uid, name, attempt)
	if err != nil {
		return "", err
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return "", err
	}
	text := make([]byte, min(info.Size(), maxTermination))
	n, err := f.ReadAt(text, max(info.Size()-maxTermination, 0))
	if n < len(text) && err != nil {
		text = text[:n] // it was cut meanwhile
	}
	return strings.ToValidUTF8(string(text), "?"), nil
}
