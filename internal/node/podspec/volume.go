package podspec

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
)

// supportedKinds is for messages.
const supportedKinds = "configMap, downwardAPI, emptyDir, hostPath, projected and secret"

// Prepare makes the pod's volumes, or brings them up to date. It may be called again, also after an error: what is
// there stays, and what an emptyDir holds too.
func (b *Builder) Prepare(ctx context.Context, pod *corev1.Pod) error {
	dir, err := b.podDir(string(pod.UID))
	if err != nil {
		return refuse(ReasonMount, "pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return refuse(ReasonMount, "pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		if err := b.prepareVolume(ctx, pod, v); err != nil {
			return refuse(ReasonMount, "MountVolume.SetUp failed for volume %q : %w", v.Name, err)
		}
	}
	return nil
}

// Refresh brings the volumes up to date that show objects of the API or the pod's own metadata, and renews tokens. changed
// says whether a container can see anything new. A volume that fails stays as it is; the others are brought up to date.
func (b *Builder) Refresh(ctx context.Context, pod *corev1.Pod) (changed bool, err error) {
	var all []error
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		if !isPayload(v) {
			continue
		}
		wrote, err := b.writePayload(ctx, pod, v)
		changed = changed || wrote
		if err != nil {
			all = append(all, refuse(ReasonMount, "MountVolume.SetUp failed for volume %q : %w", v.Name, err))
		}
	}
	return changed, errors.Join(all...)
}

// Remove takes away everything that belongs to a pod, which must not run any more. Nothing that a hostPath volume leads to is
// touched. A pod that is not there is no error.
func (b *Builder) Remove(uid string) error {
	dir, err := b.podDir(uid)
	if err != nil {
		return err
	}
	b.forgetTokens(uid)
	if err := unmountBelow(dir); err != nil {
		return fmt.Errorf("volumes of pod %s: %w", uid, err)
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("volumes of pod %s: %w", uid, err)
	}
	return nil
}

// UIDs are the pods that have a folder here: after a start of the agent, those to look after or to remove.
func (b *Builder) UIDs() ([]string, error) {
	entries, err := os.ReadDir(b.dir)
	if err != nil {
		return nil, fmt.Errorf("volumes: %w", err)
	}
	var uids []string
	for _, e := range entries {
		if e.IsDir() {
			uids = append(uids, e.Name())
		}
	}
	return uids, nil
}

func (b *Builder) prepareVolume(ctx context.Context, pod *corev1.Pod, v *corev1.Volume) error {
	if wrong := validation.IsDNS1123Label(v.Name); len(wrong) > 0 {
		return fmt.Errorf("its name is not a DNS label: %s", strings.Join(wrong, "; "))
	}
	switch {
	case isPayload(v):
		_, err := b.writePayload(ctx, pod, v)
		return err
	case v.EmptyDir != nil:
		return b.makeEmptyDir(pod, v)
	case v.HostPath != nil:
		return makeHostPath(v.HostPath)
	case v.VolumeSource == (corev1.VolumeSource{}):
		// The API's default of a volume that says nothing.
		return b.makeEmptyDir(pod, &corev1.Volume{Name: v.Name, VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}})
	}
	return fmt.Errorf("volumes of kind %s are not supported here: use %s", kindOf(v), supportedKinds)
}

// kindOf is the kind of a volume as its manifest says it.
func kindOf(v *corev1.Volume) string {
	source := reflect.ValueOf(v.VolumeSource)
	for field, value := range source.Fields() {
		if value.Kind() == reflect.Pointer && !value.IsNil() {
			name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
			return name
		}
	}
	return "unknown"
}

// isPayload says whether the volume's content comes from the API. Such a volume is read-only for containers.
func isPayload(v *corev1.Volume) bool {
	return v.ConfigMap != nil || v.Secret != nil || v.DownwardAPI != nil || v.Projected != nil
}

// volumePath is where a volume of the pod is, without symbolic links.
func (b *Builder) volumePath(pod *corev1.Pod, name string) (string, error) {
	i := slices.IndexFunc(pod.Spec.Volumes, func(v corev1.Volume) bool { return v.Name == name })
	if i < 0 {
		return "", fmt.Errorf("the pod has no volume %q; add it to spec.volumes", name)
	}
	if h := pod.Spec.Volumes[i].HostPath; h != nil {
		if err := makeHostPath(h); err != nil {
			return "", err
		}
		return filepath.EvalSymlinks(h.Path)
	}
	dir, err := b.podDir(string(pod.UID))
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, name)
	if _, err := os.Lstat(path); err != nil {
		return "", fmt.Errorf("volume %s is not there yet: %w", name, err)
	}
	return path, nil
}

// makeHostPath checks that the path is what the volume says, and makes what it says to make.
func makeHostPath(h *corev1.HostPathVolumeSource) error {
	kind := corev1.HostPathUnset
	if h.Type != nil {
		kind = *h.Type
	}
	if !filepath.IsAbs(h.Path) || slices.Contains(strings.Split(h.Path, "/"), "..") {
		return fmt.Errorf("hostPath %q: it must start with / and have no part \"..\"", h.Path)
	}
	info, err := os.Stat(h.Path)
	if errors.Is(err, fs.ErrNotExist) {
		switch kind {
		case corev1.HostPathUnset, corev1.HostPathDirectoryOrCreate:
			return os.MkdirAll(h.Path, 0o755)
		case corev1.HostPathFileOrCreate:
			f, err := os.OpenFile(h.Path, os.O_RDONLY|os.O_CREATE, 0o644)
			if err != nil {
				return fmt.Errorf("hostPath %s: %w; its folder must be there", h.Path, err)
			}
			return f.Close()
		}
		return fmt.Errorf("hostPath type check failed: %s is not there and must be a %s; make it on the node, or take the type DirectoryOrCreate or FileOrCreate", h.Path, kind)
	}
	if err != nil {
		return fmt.Errorf("hostPath: %w", err)
	}
	mode, is := info.Mode(), false
	switch kind {
	case corev1.HostPathUnset:
		is = true
	case corev1.HostPathDirectory, corev1.HostPathDirectoryOrCreate:
		is = mode.IsDir()
	case corev1.HostPathFile, corev1.HostPathFileOrCreate:
		is = mode.IsRegular()
	case corev1.HostPathSocket:
		is = mode&fs.ModeSocket != 0
	case corev1.HostPathCharDev:
		is = mode&fs.ModeCharDevice != 0
	case corev1.HostPathBlockDev:
		is = mode&fs.ModeDevice != 0 && mode&fs.ModeCharDevice == 0
	default:
		return fmt.Errorf("hostPath type %q is unknown", kind)
	}
	if !is {
		return fmt.Errorf("hostPath type check failed: %s is not a %s; correct the path or the type", h.Path, kind)
	}
	return nil
}
