package manifest

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"
)

// maxSize of a manifest in bytes; etcd takes no larger object either.
const maxSize = 3 << 20

// file is one manifest.
type file struct {
	content []byte        // as understood last
	pods    []*corev1.Pod // of content
	kept    bool          // whether content is in Options.Keep
}

// errFresh is a file that was written a moment ago: whoever writes it may not be done.
var errFresh = errors.New("still being written")

// load reads the file again. Where it fails, the file keeps what it had.
func (f *file) load(path, node string) error {
	if info, err := os.Stat(path); err == nil && time.Since(info.ModTime()).Abs() < settle {
		return errFresh
	}
	content, err := read(path)
	if err != nil {
		return err
	}
	if f.content != nil && bytes.Equal(content, f.content) {
		return nil
	}
	pods, err := parse(content, node)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	f.content, f.pods, f.kept = content, pods, false
	return nil
}

func read(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("read a manifest: %w", err)
	}
	if !info.Mode().IsRegular() { // a pipe would hold everything up
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	r, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read a manifest: %w", err)
	}
	defer func() { _ = r.Close() }()
	content, err := io.ReadAll(io.LimitReader(r, maxSize+1))
	if err != nil {
		return nil, fmt.Errorf("read a manifest: %w", err)
	}
	if len(content) > maxSize {
		return nil, fmt.Errorf("%s is larger than %d MiB: split it", path, maxSize>>20)
	}
	return content, nil
}

// parse makes static pods of a file's documents. One that is refused refuses the file, so that nobody runs half of it.
func parse(content []byte, node string) ([]*corev1.Pod, error) {
	docs := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(content)))
	var pods []*corev1.Pod
	for n := 1; ; n++ {
		doc, err := docs.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("document %d: %w", n, err)
		}
		if empty(doc) {
			continue
		}
		p, err := decode(doc, node)
		if err != nil {
			return nil, fmt.Errorf("document %d: %w", n, err)
		}
		pods = append(pods, p)
	}
	if len(pods) == 0 {
		// A file that is being written is empty for a moment.
		return nil, errors.New("it holds no Pod; delete the file to end its pods")
	}
	return pods, nil
}

// empty says whether a document holds nothing but comments.
func empty(doc []byte) bool {
	for line := range bytes.Lines(doc) {
		line = bytes.TrimSpace(line)
		if len(line) > 0 && line[0] != '#' && !bytes.Equal(line, []byte("---")) {
			return false
		}
	}
	return true
}

func decode(doc []byte, node string) (*corev1.Pod, error) {
	var kind metav1.TypeMeta
	if err := yaml.Unmarshal(doc, &kind); err != nil {
		return nil, fmt.Errorf("not YAML: %w", err)
	}
	if kind.APIVersion != "v1" || kind.Kind != "Pod" {
		return nil, fmt.Errorf("kind %q of %q: only a Pod of v1 can be run from a file; create others with kubectl apply", kind.Kind, kind.APIVersion)
	}
	p := &corev1.Pod{}
	if err := yaml.UnmarshalStrict(doc, p); err != nil {
		return nil, fmt.Errorf("not a Pod: %w", err)
	}
	p.Status = corev1.PodStatus{}
	if p.Spec.NodeName != "" && p.Spec.NodeName != node {
		return nil, fmt.Errorf("pod %s: spec.nodeName is %s, but this is node %s: leave it out", p.Name, p.Spec.NodeName, node)
	}
	return static(p, node)
}

// static makes a static pod of what was written.
func static(p *corev1.Pod, node string) (*corev1.Pod, error) {
	p.ObjectMeta = metav1.ObjectMeta{
		Name: p.Name, Namespace: p.Namespace, Labels: p.Labels, Annotations: p.Annotations,
	}
	if p.Name == "" {
		return nil, errors.New("metadata.name is missing")
	}
	if p.Namespace == "" {
		p.Namespace = metav1.NamespaceDefault
	}
	p.Name += "-" + strings.ToLower(node)
	p.Spec.NodeName = node
	content, err := json.Marshal(p) // maps are sorted, and a comment is not in it
	if err != nil {
		return nil, fmt.Errorf("pod %s: %w", p.Name, err)
	}
	sum := sha256.Sum256(content)
	p.UID = types.UID(hex.EncodeToString(sum[:16]))
	if p.Annotations == nil {
		p.Annotations = map[string]string{}
	}
	p.Annotations[AnnotationSource] = "file"
	p.Annotations[AnnotationHash] = string(p.UID)
	delete(p.Annotations, AnnotationMirror)
	delete(p.Annotations, AnnotationSeen)
	setDefaults(&p.Spec)
	p.Status.Phase = corev1.PodPending
	if err := validate(p); err != nil {
		return nil, fmt.Errorf("pod %s: %w", p.Name, err)
	}
	return p, nil
}
