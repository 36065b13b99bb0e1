package podspec

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// payload is what a volume shows: path within it → file.
type payload map[string]payloadFile

type payloadFile struct {
	data []byte
	mode os.FileMode
	uid  int64 // -1 = the agent's
	gid  int64 // -1 = the agent's
}

// Modes of a volume's files that the API has as defaults.
const (
	defaultFileMode = 0o644
	tokenMode       = 0o600 // of a token that belongs to one user or group
)

// writePayload has the volume show what it should, and says whether that is something new.
func (b *Builder) writePayload(ctx context.Context, pod *corev1.Pod, v *corev1.Volume) (changed bool, err error) {
	content, err := b.payload(ctx, pod, v)
	if err != nil {
		return false, err
	}
	if err := content.check(); err != nil {
		return false, err
	}
	if group := fsGroup(pod); group != nil {
		for path, f := range content {
			f.gid = *group
			f.mode |= 0o440
			content[path] = f
		}
	}
	dir, err := b.podDir(string(pod.UID))
	if err != nil {
		return false, err
	}
	return writeAtomically(filepath.Join(dir, v.Name), content, fsGroup(pod), b.options.Now())
}

// check refuses paths that a volume cannot have, alone or together.
func (p payload) check() error {
	for path := range p {
		if err := validPath(path); err != nil {
			return err
		}
		for dir := filepath.Dir(path); dir != "."; dir = filepath.Dir(dir) {
			if _, file := p[dir]; file {
				return fmt.Errorf("path %q: %q is a file of the same volume and cannot be a folder too; rename one of them", path, dir)
			}
		}
	}
	return nil
}

// payload is what the volume should show.
func (b *Builder) payload(ctx context.Context, pod *corev1.Pod, v *corev1.Volume) (payload, error) {
	content := payload{}
	switch {
	case v.ConfigMap != nil:
		s := v.ConfigMap
		return content, b.addConfigMap(ctx, pod, content, s.Name, s.Items, modeOr(s.DefaultMode), s.Optional)
	case v.Secret != nil:
		s := v.Secret
		return content, b.addSecret(ctx, pod, content, s.SecretName, s.Items, modeOr(s.DefaultMode), s.Optional)
	case v.DownwardAPI != nil:
		return content, b.addDownward(pod, content, v.DownwardAPI.Items, modeOr(v.DownwardAPI.DefaultMode))
	}
	mode := modeOr(v.Projected.DefaultMode)
	var all []error
	for i := range v.Projected.Sources {
		all = append(all, b.addProjected(ctx, pod, content, &v.Projected.Sources[i], mode, v.Name))
	}
	return content, errors.Join(all...)
}

func (b *Builder) addProjected(ctx context.Context, pod *corev1.Pod, content payload, s *corev1.VolumeProjection, mode os.FileMode, volume string) error {
	switch {
	case s.ConfigMap != nil:
		return b.addConfigMap(ctx, pod, content, s.ConfigMap.Name, s.ConfigMap.Items, mode, s.ConfigMap.Optional)
	case s.Secret != nil:
		return b.addSecret(ctx, pod, content, s.Secret.Name, s.Secret.Items, mode, s.Secret.Optional)
	case s.DownwardAPI != nil:
		return b.addDownward(pod, content, s.DownwardAPI.Items, mode)
	case s.ServiceAccountToken != nil:
		return b.addToken(ctx, pod, content, s.ServiceAccountToken, mode, volume)
	case s.ClusterTrustBundle != nil:
		return errors.New("projected clusterTrustBundle is not supported here: put the certificates into a configMap")
	case s.PodCertificate != nil:
		return errors.New("projected podCertificate is not supported here: put the certificate into a secret")
	}
	return nil
}

func (b *Builder) addConfigMap(ctx context.Context, pod *corev1.Pod, content payload, name string, items []corev1.KeyToPath, mode os.FileMode, optional *bool) error {
	cm, err := b.configMap(ctx, pod.Namespace, name, optional)
	if err != nil || cm == nil {
		return err
	}
	data := make(map[string][]byte, len(cm.Data)+len(cm.BinaryData))
	for key, value := range cm.Data {
		data[key] = []byte(value)
	}
	maps.Copy(data, cm.BinaryData)
	return content.addKeys(fmt.Sprintf("configmap %s/%s", pod.Namespace, name), data, items, mode, optional)
}

func (b *Builder) addSecret(ctx context.Context, pod *corev1.Pod, content payload, name string, items []corev1.KeyToPath, mode os.FileMode, optional *bool) error {
	s, err := b.secret(ctx, pod.Namespace, name, optional)
	if err != nil || s == nil {
		return err
	}
	return content.addKeys(fmt.Sprintf("secret %s/%s", pod.Namespace, name), s.Data, items, mode, optional)
}

// addKeys adds all keys of an object, or those that items name.
func (p payload) addKeys(object string, data map[string][]byte, items []corev1.KeyToPath, mode os.FileMode, optional *bool) error {
	if len(items) == 0 {
		for key, value := range data {
			p[key] = payloadFile{data: value, mode: mode, uid: -1, gid: -1}
		}
		return nil
	}
	for _, item := range items {
		value, there := data[item.Key]
		if !there {
			if isTrue(optional) {
				continue
			}
			return fmt.Errorf("%s: references non-existent key: %s; add it, or mark the volume optional", object, item.Key)
		}
		f := payloadFile{data: value, mode: mode, uid: -1, gid: -1}
		if item.Mode != nil {
			f.mode = fileMode(*item.Mode)
		}
		p[clean(item.Path)] = f
	}
	return nil
}

func (b *Builder) addDownward(pod *corev1.Pod, content payload, items []corev1.DownwardAPIVolumeFile, mode os.FileMode) error {
	for i := range items {
		item := &items[i]
		var value string
		var err error
		switch {
		case item.FieldRef != nil:
			value, err = fieldValue(pod, item.FieldRef.FieldPath, nil)
		case item.ResourceFieldRef != nil:
			value, err = b.resourceValue(pod, nil, item.ResourceFieldRef)
		}
		if err != nil {
			return fmt.Errorf("downwardAPI %s: %w", item.Path, err)
		}
		f := payloadFile{data: []byte(value), mode: mode, uid: -1, gid: -1}
		if item.Mode != nil {
			f.mode = fileMode(*item.Mode)
		}
		content[clean(item.Path)] = f
	}
	return nil
}

// clean is a path as the API allows it to be written: "./a" and "a//b" are a and a/b. What leads out stays to be refused.
func clean(path string) string {
	if path == "" || strings.HasPrefix(path, "/") {
		return path
	}
	return filepath.Clean(path)
}

// modeOr is the mode of files that have none of their own.
func modeOr(mode *int32) os.FileMode {
	if mode == nil {
		return defaultFileMode
	}
	return fileMode(*mode)
}
