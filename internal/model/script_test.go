package model_test

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
	"sigs.k8s.io/yaml"

	"github.com/endpointd/endpointd/internal/model"
	"github.com/endpointd/endpointd/internal/model/modeltest"
	"github.com/endpointd/endpointd/internal/testkit"
)

// TestScripts runs every testdata/*.txtar. A script is steps in order:
//
//	network  YAML of a model.Network
//	apply    YAML of Services and EndpointSlices to create or replace
//	delete   a line an object: kind namespace/name
//	down     a line a pod: UID dead|not-ready|draining
//	up       a line a pod: UID
//	want     which Services differ from the last want, and the Snapshot that must come of it
func TestScripts(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			t.Parallel()
			archive, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			s := &script{t: t}
			for i := range archive.Files {
				s.step(&archive.Files[i])
			}
			testkit.Golden(t, filepath.Base(file), txtar.Format(archive))
		})
	}
}

// A script is where one has got to.
type script struct {
	t   testing.TB
	in  model.Input
	was *model.Snapshot
}

func (s *script) step(step *txtar.File) {
	switch step.Name {
	case "network":
		var network model.Network
		if err := yaml.UnmarshalStrict(step.Data, &network); err != nil {
			s.t.Fatalf("%v in:\n%s", err, step.Data)
		}
		s.in = s.in.WithNetwork(network)
	case "apply":
		in, err := modeltest.Apply(s.in, string(step.Data))
		if err != nil {
			s.t.Fatal(err)
		}
		s.in = in
	case "delete":
		for _, f := range fields(step.Data, 2) {
			namespace, name, _ := strings.Cut(f[1], "/")
			if f[0] == "Service" {
				s.in = s.in.WithoutService(model.ServiceKey{Namespace: namespace, Name: name})
			} else {
				s.in = s.in.WithoutSlice(namespace, name)
			}
		}
	case "down":
		facts := map[string]model.Reason{"dead": model.LocalDead, "not-ready": model.LocalNotReady, "draining": model.LocalDraining}
		for _, f := range fields(step.Data, 2) {
			s.in = s.in.WithDown(f[0], facts[f[1]])
		}
	case "up":
		for _, f := range fields(step.Data, 1) {
			s.in = s.in.WithoutDown(f[0])
		}
	case "want":
		step.Data = []byte(s.build())
	default:
		s.t.Fatalf("unknown step %q", step.Name)
	}
}

func fields(data []byte, n int) [][]string {
	var all [][]string
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) == n {
			all = append(all, f)
		}
	}
	return all
}

// build returns the text of the Snapshot, which must be that of one from nothing.
func (s *script) build() string {
	s.t.Helper()
	now := model.Build(s.in, s.was)
	var keys []string
	for key := range now.Changed(s.was) {
		keys = append(keys, key.String())
	}
	slices.Sort(keys)
	text := model.Text(now)
	if anew := model.Text(model.Build(s.in, nil)); anew != text {
		s.t.Errorf("built from the Snapshot before:\n%s\nbuilt from nothing:\n%s", text, anew)
	}
	s.was = now
	return strings.TrimSpace("changed: "+strings.Join(keys, " ")) + "\n" + text
}
