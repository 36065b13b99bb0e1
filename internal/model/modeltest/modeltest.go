// Package modeltest makes Inputs of package model from text, for tests.
//
// What it is: [Apply], which reads Services and EndpointSlices from YAML, as kubectl does. The packages that may not know Kubernetes, the data
// planes and DNS, test with it against Snapshots that came about as in life.
//
// In: YAML, strictly read: a field that does not exist is an error. Out: an Input.
//
// Invariants: nothing is defaulted, so that a test sees what it wrote.
//
// It refuses to be used outside tests, and to know other kinds.
//
// How to test: go test ./internal/model, whose scripts are read by it.
package modeltest

import (
	"bytes"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"sigs.k8s.io/yaml"

	"github.com/endpointd/endpointd/internal/model"
)

// Apply adds or replaces the Services and EndpointSlices of a text, with --- in between.
func Apply(in model.Input, text string) (model.Input, error) {
	for doc := range bytes.SplitSeq([]byte("\n"+text), []byte("\n---\n")) {
		if len(bytes.TrimSpace(doc)) == 0 {
			continue
		}
		next, err := apply(in, doc)
		if err != nil {
			return in, fmt.Errorf("%w in:\n%s", err, bytes.TrimSpace(doc))
		}
		in = next
	}
	return in, nil
}

func apply(in model.Input, doc []byte) (model.Input, error) {
	var kind struct{ Kind string }
	if err := yaml.Unmarshal(doc, &kind); err != nil {
		return in, err
	}
	switch kind.Kind {
	case "Service":
		var object corev1.Service
		err := yaml.UnmarshalStrict(doc, &object)
		return in.WithService(&object), err
	case "EndpointSlice":
		var object discoveryv1.EndpointSlice
		err := yaml.UnmarshalStrict(doc, &object)
		return in.WithSlice(&object), err
	}
	return in, errors.New("the kind is neither Service nor EndpointSlice")
}
