package podspec

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/endpointd/endpointd/internal/node/container"
	"github.com/endpointd/endpointd/internal/node/image"
)

// Container is one start of a container of the pod, also of an init container. An ephemeral one is given as the Container
// that it has the fields of. The pod must have been prepared. Its Labels are empty.
func (b *Builder) Container(ctx context.Context, pod *corev1.Pod, c *corev1.Container, facts Facts) (container.Container, error) {
	config, err := b.image(c)
	if err != nil {
		return container.Container{}, err
	}
	out, err := b.container(ctx, pod, c, config, facts)
	if err != nil {
		return container.Container{}, reasoned(ReasonContainerConfig, fmt.Errorf("container %s: %w", c.Name, err))
	}
	return out, nil
}

// image is the configuration of the container's image, or the kubelet's word for why there is none.
func (b *Builder) image(c *corev1.Container) (image.Config, error) {
	config, err := b.options.Images.Lookup(c.Image)
	switch {
	case err == nil:
		return config, nil
	case errors.Is(err, image.ErrName):
		return image.Config{}, refuse(ReasonImageName, "container %s: %w", c.Name, err)
	case c.ImagePullPolicy == corev1.PullNever:
		return image.Config{}, refuse(ReasonImageNeverPull, "container %s: %w", c.Name, err)
	}
	return image.Config{}, refuse(ReasonImagePull, "container %s: %w", c.Name, err)
}

func (b *Builder) container(ctx context.Context, pod *corev1.Pod, c *corev1.Container, config image.Config, facts Facts) (container.Container, error) {
	out := container.Container{
		Pod: string(pod.UID), Name: c.Name, Attempt: facts.Attempt,
		Rootfs: config.Rootfs, WorkingDir: c.WorkingDir,
		Stdin: c.Stdin, StdinOnce: c.StdinOnce, TTY: c.TTY,
		Resources: containerResources(c),
	}
	if out.WorkingDir == "" {
		out.WorkingDir = config.WorkingDir
	}
	if err := supportedContainer(c); err != nil {
		return container.Container{}, err
	}
	home, err := applySecurity(pod, c, config, &out)
	if err != nil {
		return container.Container{}, fmt.Errorf("pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	env, err := b.environment(ctx, pod, c, facts)
	if err != nil {
		return container.Container{}, err
	}
	out.Args = config.Argv(expandAll(c.Command, env.lookup), expandAll(c.Args, env.lookup))
	if len(out.Args) == 0 || out.Args[0] == "" {
		return container.Container{}, refuse(ReasonContainer, "container %s: no command specified: give it a command, or the image %s an entrypoint in the image table", c.Name, config.Name)
	}
	if i := slices.IndexFunc(out.Args, func(a string) bool { return strings.ContainsRune(a, 0) }); i >= 0 {
		return container.Container{}, fmt.Errorf("argument %d has a NUL byte in it, which no program can be given; remove it", i)
	}
	host, err := b.ownHostname(pod)
	if err != nil {
		return container.Container{}, err
	}
	if out.Env, err = withDefaults(env, config.Env, c.TTY, host, home).list(); err != nil {
		return container.Container{}, err
	}
	out.Mounts, err = b.mounts(pod, c, env, facts)
	return out, err
}

// ownHostname is what the container sees as its host's name.
func (b *Builder) ownHostname(pod *corev1.Pod) (string, error) {
	if isTrue(pod.Spec.SetHostnameAsFQDN) && !pod.Spec.HostNetwork {
		return b.fqdn(pod)
	}
	host, _, err := b.hostname(pod)
	return host, err
}

// withDefaults is the whole environment: what a runtime adds, what the image says and, before both, what the pod says.
func withDefaults(pod *environment, fromImage []string, tty bool, host, home string) *environment {
	all := &environment{}
	all.set("PATH", defaultPath)
	all.set("HOSTNAME", host)
	if home == "" {
		home = "/"
	}
	all.set("HOME", home)
	if tty {
		all.set("TERM", "xterm")
	}
	for _, v := range fromImage {
		name, value, _ := strings.Cut(v, "=")
		all.set(name, value)
	}
	for _, name := range pod.names {
		all.set(name, pod.values[name])
	}
	return all
}

// supportedContainer refuses what a container asks for and would silently not get.
func supportedContainer(c *corev1.Container) error {
	switch {
	case len(c.VolumeDevices) > 0:
		return fmt.Errorf("volumeDevices: %s: block volumes are not supported here; mount a hostPath volume of type BlockDevice instead", c.VolumeDevices[0].Name)
	case len(c.Resources.Claims) > 0:
		return fmt.Errorf("resources.claims: %s: devices are not assigned here; remove the claim", c.Resources.Claims[0].Name)
	}
	return nil
}

// mounts are the container's: files of our own first, then volumes, those higher in the tree before those within.
func (b *Builder) mounts(pod *corev1.Pod, c *corev1.Container, env *environment, facts Facts) ([]container.Mount, error) {
	mounts, err := b.etcMounts(pod, c, facts)
	if err != nil {
		return nil, err
	}
	if c.TerminationMessagePath != "" && !mountsAt(c, absolute(c.TerminationMessagePath)) {
		m, err := b.terminationMount(pod, c, facts.Attempt)
		if err != nil {
			return nil, fmt.Errorf("terminationMessagePath: %w", err)
		}
		mounts = append(mounts, m)
	}
	for i := range c.VolumeMounts {
		m, err := b.volumeMount(pod, &c.VolumeMounts[i], env)
		if err != nil {
			return nil, fmt.Errorf("volumeMount %s: %w", c.VolumeMounts[i].Name, err)
		}
		mounts = append(mounts, m)
	}
	slices.SortStableFunc(mounts, func(a, b container.Mount) int {
		return strings.Count(filepath.Clean(a.Target), "/") - strings.Count(filepath.Clean(b.Target), "/")
	})
	return mounts, nil
}

// volumeMount is one volume, or a path in it, at its place.
func (b *Builder) volumeMount(pod *corev1.Pod, vm *corev1.VolumeMount, env *environment) (container.Mount, error) {
	i := slices.IndexFunc(pod.Spec.Volumes, func(v corev1.Volume) bool { return v.Name == vm.Name })
	if i < 0 {
		return container.Mount{}, errors.New("the pod has no volume of this name; add it to spec.volumes")
	}
	v := &pod.Spec.Volumes[i]
	target := absolute(vm.MountPath)
	if target == "/" {
		return container.Mount{}, errors.New("mountPath is the container's root; give it a folder of its own")
	}
	if len(vm.BindMountOptions) > 0 {
		return container.Mount{}, fmt.Errorf("bindMountOptions %s: mount options are not supported here; leave them out", strings.Join(vm.BindMountOptions, ","))
	}
	dir, err := b.volumePath(pod, v.Name)
	if err != nil {
		return container.Mount{}, err
	}
	m := container.Mount{Target: target, ReadOnly: vm.ReadOnly || isPayload(v)}
	if vm.MountPropagation != nil && *vm.MountPropagation != corev1.MountPropagationNone {
		m.Propagate = string(*vm.MountPropagation)
	}
	path := vm.SubPath
	if vm.SubPathExpr != "" {
		if path, err = expandStrictly(vm.SubPathExpr, env); err != nil {
			return container.Mount{}, err
		}
	}
	m.Source, err = subPath(v, dir, path)
	return m, err
}

// expandStrictly is expand where each name must be known and something must come of it.
func expandStrictly(text string, env *environment) (string, error) {
	var unknown []string
	path := expand(text, func(name string) (string, bool) {
		value, ok := env.lookup(name)
		if !ok {
			unknown = append(unknown, name)
		}
		return value, ok
	})
	if len(unknown) > 0 {
		return "", fmt.Errorf("subPathExpr %q: the container has no variable %s; add it to env", text, strings.Join(unknown, ", "))
	}
	if path == "" {
		return "", fmt.Errorf("subPathExpr %q: nothing is left of it; give its variables values", text)
	}
	return path, nil
}

// subPath is where a path within a volume is now, without symbolic links. Missing folders are made, except in volumes
// whose content comes from the API.
func subPath(v *corev1.Volume, dir, path string) (string, error) {
	if path == "" {
		return dir, nil
	}
	if filepath.IsAbs(path) || slices.Contains(strings.Split(path, "/"), "..") {
		return "", fmt.Errorf("subPath %q: it must lie within the volume: not start with / and have no part \"..\"", path)
	}
	if info, err := os.Stat(dir); err == nil && !info.IsDir() {
		return "", fmt.Errorf("subPath %q: the volume is a file; leave subPath out", path)
	}
	source, err := resolveBeneath(dir, path, !isPayload(v))
	switch {
	case errors.Is(err, os.ErrNotExist):
		return "", fmt.Errorf("subPath %q: the volume has no such key; add it to the object, or take another: %w", path, err)
	case err != nil:
		return "", fmt.Errorf("subPath %q: %w", path, err)
	}
	return source, nil
}
