package model_test

import (
	"fmt"
	"sync"
	"testing"

	"github.com/endpointd/endpointd/internal/model"
)

// Many goroutines go on from one Input and one Snapshot, each its own way; none sees another's.
func TestInputIsShared(t *testing.T) {
	t.Parallel()
	in := aCluster(50, 1, 3)
	was := model.Build(in, nil)
	before := model.Text(was)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			mine, now := in, was
			for n := range 50 {
				mine = mine.WithSlice(aSlice(n, 0, 3, n%8 != i)).WithDown(fmt.Sprintf("pod-%d", i), model.LocalDead)
				if n%5 == i%5 {
					mine = mine.WithoutService(model.ServiceKey{Namespace: fmt.Sprintf("ns-%d", n), Name: fmt.Sprintf("service-%d", n)})
				}
				now = model.Build(mine, now)
			}
			if text, anew := model.Text(now), model.Text(model.Build(mine, nil)); text != anew {
				t.Errorf("goroutine %d:\n%s\nfrom nothing:\n%s", i, text, anew)
			}
		})
	}
	wg.Wait()
	if text := model.Text(was); text != before {
		t.Errorf("the Snapshot that all went on from became\n%s\nwas\n%s", text, before)
	}
}

// What is no object of the API, and what is not there, changes nothing.
func TestNoSuchObject(t *testing.T) {
	t.Parallel()
	in := aCluster(2, 1, 1)
	service, slice := aService(7), aSlice(7, 0, 1, true)
	for _, name := range []string{"", "a\x00b"} {
		service.Name, slice.Name = name, name
		if !model.SameInput(in, in.WithService(service)) || !model.SameInput(in, in.WithSlice(slice)) {
			t.Errorf("an object with the name %q is taken", name)
		}
	}
	none := in.WithoutService(model.ServiceKey{Namespace: "ns-1", Name: "none"}).WithoutSlice("ns-1", "none").WithoutDown("none").
		WithDown("", model.LocalDead).WithDown("pod", model.NotReady)
	if !model.SameInput(in, none) {
		t.Error("to take away what is not there gives another Input")
	}
}

// More happens than anybody remembers: a Snapshot that is far behind is still brought up to date, and who asks what changed is told all.
func TestFarBehind(t *testing.T) {
	t.Parallel()
	in := aCluster(4, 1, 2)
	old := model.Build(in, nil)
	now := old
	for i := range 10_000 {
		in = in.WithSlice(aSlice(0, 0, 2, i%2 == 1))
		now = model.Build(in, now)
	}
	in = in.WithoutService(model.ServiceKey{Namespace: "ns-1", Name: "service-1"}).WithSlice(aSlice(2, 0, 2, false))
	now = model.Build(in, now)
	late, anew := model.Build(in, old), model.Build(in, nil)
	if a, b, c := model.Text(now), model.Text(late), model.Text(anew); a != b || a != c {
		t.Errorf("step by step:\n%s\nat once:\n%s\nfrom nothing:\n%s", a, b, c)
	}
	all := 0
	for range now.Changed(nil) {
		all++
	}
	if all != now.Len() {
		t.Errorf("%d of %d Services are there now and were not when there was nothing", all, now.Len())
	}
	for _, s := range []*model.Snapshot{now, late} {
		got := map[string]bool{}
		for key := range s.Changed(old) {
			if got[key.String()] {
				t.Errorf("%s changed twice", key)
			}
			got[key.String()] = true
		}
		// service-0 is as it was, and nothing happened to service-3.
		if len(got) != 2 || !got["ns-1/service-1"] || !got["ns-2/service-2"] {
			t.Errorf("changed: %v", got)
		}
	}
}

// A fact about a pod that was nobody's when it came counts as soon as the node has the pod's name of it, also if that was its name before.
func TestFactBeforeName(t *testing.T) {
	t.Parallel()
	in := aCluster(1, 1, 2)
	was := model.Build(in, nil)
	service := was.Service(model.ServiceKey{Namespace: "ns-0", Name: "service-0"})
	var local *model.Endpoint
	for _, e := range service.Endpoints {
		if e.Local {
			local = e
		}
	}
	network := was.Network
	network.Node = "elsewhere"
	in = in.WithNetwork(network).WithDown(local.Target.UID, model.LocalDead).WithNetwork(was.Network)
	if got, want := model.Text(model.Build(in, was)), model.Text(model.Build(in, nil)); got != want {
		t.Errorf("built from the Snapshot before:\n%s\nfrom nothing:\n%s", got, want)
	}
}

func TestReasonsHaveWords(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for r := model.None; r <= model.HeadlessSlice; r++ {
		if text := r.String(); text == "" || r.Explain() == "" || seen[text] {
			t.Errorf("reason %d is called %q: %s", r, text, r.Explain())
		}
		seen[r.String()] = true
	}
	if text := model.Reason(200).String(); text != "reason 200" {
		t.Errorf("an unknown reason is called %q", text)
	}
}
