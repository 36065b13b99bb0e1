package podspec

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// defaultPath is what a container searches for programs when neither the pod nor the image says it, as with other runtimes.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// environment is an ordered list of variables, each once.
type environment struct {
	names  []string
	values map[string]string
}

func (e *environment) set(name, value string) {
	if e.values == nil {
		e.values = map[string]string{}
	}
	if _, there := e.values[name]; !there {
		e.names = append(e.names, name)
	}
	e.values[name] = value
}

func (e *environment) lookup(name string) (string, bool) {
	value, ok := e.values[name]
	return value, ok
}

// list is NAME=value for each. It refuses what the kernel cannot hand to a program, and does not say values: one may be secret.
func (e *environment) list() ([]string, error) {
	list := make([]string, len(e.names))
	for i, name := range e.names {
		if name == "" || strings.ContainsAny(name, "=\x00") {
			return nil, fmt.Errorf("environment variable %q: a name is not empty and has no \"=\" in it; rename it", name)
		}
		if strings.ContainsRune(e.values[name], 0) {
			return nil, fmt.Errorf("environment variable %s: its value has a NUL byte, which no program can be given; mount it as a file", name)
		}
		list[i] = name + "=" + e.values[name]
	}
	return list, nil
}

// environment is what the pod says of a container's variables, as the kubelet resolves it: those of envFrom, then env,
// then those of Services that are not set yet.
func (b *Builder) environment(ctx context.Context, pod *corev1.Pod, c *corev1.Container, facts Facts) (*environment, error) {
	services, err := b.serviceVariables(pod)
	if err != nil {
		return nil, err
	}
	env := &environment{}
	refs := references{builder: b, pod: pod}
	for i := range c.EnvFrom {
		data, err := refs.all(ctx, &c.EnvFrom[i])
		if err != nil {
			return nil, err
		}
		for _, key := range slices.Sorted(maps.Keys(data)) {
			env.set(c.EnvFrom[i].Prefix+key, data[key])
		}
	}
	lookup := func(name string) (string, bool) {
		if value, ok := env.lookup(name); ok {
			return value, true
		}
		value, ok := services[name]
		return value, ok
	}
	for i := range c.Env {
		v := &c.Env[i]
		value, there := expand(v.Value, lookup), true
		if v.Value == "" && v.ValueFrom != nil {
			if value, there, err = refs.one(ctx, c, v.ValueFrom, facts); err != nil {
				return nil, fmt.Errorf("env %s: %w", v.Name, err)
			}
		}
		if there {
			env.set(v.Name, value)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(services)) {
		if _, there := env.lookup(name); !there {
			env.set(name, services[name])
		}
	}
	return env, nil
}

// references resolves the references of one container.
type references struct {
	builder *Builder
	pod     *corev1.Pod
}

// all is every key of what envFrom names.
func (r references) all(ctx context.Context, from *corev1.EnvFromSource) (map[string]string, error) {
	switch {
	case from.ConfigMapRef != nil:
		cm, err := r.builder.configMap(ctx, r.pod.Namespace, from.ConfigMapRef.Name, from.ConfigMapRef.Optional)
		if err != nil || cm == nil {
			return nil, err
		}
		return cm.Data, nil
	case from.SecretRef != nil:
		s, err := r.builder.secret(ctx, r.pod.Namespace, from.SecretRef.Name, from.SecretRef.Optional)
		if err != nil || s == nil {
			return nil, err
		}
		data := make(map[string]string, len(s.Data))
		for key, value := range s.Data {
			data[key] = string(value)
		}
		return data, nil
	}
	return nil, nil
}

// one is a single value; there is false when it may be missing and is.
func (r references) one(ctx context.Context, c *corev1.Container, from *corev1.EnvVarSource, facts Facts) (value string, there bool, err error) {
	switch {
	case from.FieldRef != nil:
		value, err = fieldValue(r.pod, from.FieldRef.FieldPath, &facts)
		return value, true, err
	case from.ResourceFieldRef != nil:
		value, err = r.builder.resourceValue(r.pod, c, from.ResourceFieldRef)
		return value, true, err
	case from.ConfigMapKeyRef != nil:
		ref := from.ConfigMapKeyRef
		cm, err := r.builder.configMap(ctx, r.pod.Namespace, ref.Name, ref.Optional)
		if err != nil || cm == nil {
			return "", false, err
		}
		value, there = cm.Data[ref.Key]
		return value, there, noKey(there, ref.Optional, ref.Key, "configmap", r.pod.Namespace, ref.Name)
	case from.SecretKeyRef != nil:
		ref := from.SecretKeyRef
		s, err := r.builder.secret(ctx, r.pod.Namespace, ref.Name, ref.Optional)
		if err != nil || s == nil {
			return "", false, err
		}
		data, there := s.Data[ref.Key]
		return string(data), there, noKey(there, ref.Optional, ref.Key, "secret", r.pod.Namespace, ref.Name)
	case from.FileKeyRef != nil:
		return r.file(from.FileKeyRef)
	}
	return "", true, nil
}

func noKey(there bool, optional *bool, key, kind, namespace, name string) error {
	if there || isTrue(optional) {
		return nil
	}
	return fmt.Errorf("couldn't find key %s in %s %s/%s; add it, or mark the reference optional", key, kind, namespace, name)
}

// maxEnvFile is how much of an environment file is read, in bytes.
const maxEnvFile = 1 << 20

// file is a value from a file that another container of the pod wrote into a volume (KEP-3721).
func (r references) file(ref *corev1.FileKeySelector) (value string, there bool, err error) {
	dir, err := r.builder.volumePath(r.pod, ref.VolumeName)
	if err != nil {
		return "", false, err
	}
	data, err := readBeneath(dir, ref.Path, maxEnvFile)
	if errors.Is(err, fs.ErrNotExist) && isTrue(ref.Optional) {
		return "", false, nil
	}
	if err != nil {
		return "", false, fmt.Errorf("fileKeyRef: volume %s: %w", ref.VolumeName, err)
	}
	value, there, err = envFileValue(string(data), ref.Key)
	if err != nil {
		return "", false, fmt.Errorf("fileKeyRef: volume %s, file %s: %w", ref.VolumeName, ref.Path, err)
	}
	if !there && !isTrue(ref.Optional) {
		return "", false, fmt.Errorf("fileKeyRef: volume %s, file %s has no key %s; have it written, or mark the reference optional", ref.VolumeName, ref.Path, ref.Key)
	}
	return value, there, nil
}

// envFileValue is the value of a key in an environment file: lines of NAME='value', in which a value may span lines and
// nothing in it has a meaning (KEP-3721). Messages name lines, not what is in them.
func envFileValue(text, key string) (value string, there bool, err error) {
	line := 1
	for text != "" {
		text = strings.TrimLeft(text, " \t")
		if text == "" {
			break
		}
		if text[0] == '\n' || text[0] == '#' {
			_, text, _ = strings.Cut(text, "\n")
			line++
			continue
		}
		name, rest, ok := strings.Cut(text, "='")
		if !ok || name == "" || strings.ContainsAny(name, " \t\n='") {
			return "", false, fmt.Errorf("line %d: it is not NAME='value', without spaces around \"=\"", line)
		}
		found, rest, ok := strings.Cut(rest, "'")
		if !ok {
			return "", false, fmt.Errorf("line %d: the quote is not closed", line)
		}
		tail, next, _ := strings.Cut(rest, "\n")
		if tail = strings.TrimSpace(tail); tail != "" && tail[0] != '#' {
			return "", false, fmt.Errorf("line %d: something follows the closing quote", line)
		}
		if name == key {
			return found, true, nil
		}
		line += strings.Count(found, "\n") + 1
		text = next
	}
	return "", false, nil
}
