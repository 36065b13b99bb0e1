package sliceset

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
)

const v4, v6 = discovery.AddressTypeIPv4, discovery.AddressTypeIPv6

// store is an API server for slices as far as a Set can tell: versions grow,
// updates of an old version conflict.
type store struct {
	rev    int
	slices map[string]*discovery.EndpointSlice
	writes []Write
}

var errConflict = apierrors.NewConflict(schema.GroupResource{Resource: "endpointslices"}, "x", nil)

func (st *store) apply(w Write) (*discovery.EndpointSlice, error) {
	st.writes = append(st.writes, w)
	obj := w.Object.DeepCopy()
	old := st.slices[obj.Name]
	st.rev++
	switch w.Op {
	case Create:
		obj.Name = obj.GenerateName + fmt.Sprintf("%05d", st.rev)
		obj.UID = types.UID(obj.Name)
	case Update, Delete:
		if old == nil {
			return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "endpointslices"}, obj.Name)
		}
		if w.Op == Delete {
			delete(st.slices, obj.Name)
			return nil, nil
		}
		if old.ResourceVersion != obj.ResourceVersion {
			return nil, errConflict
		}
		if old.AddressType != obj.AddressType {
			panic("addressType is immutable")
		}
	}
	obj.ResourceVersion = strconv.Itoa(st.rev)
	st.slices[obj.Name] = obj
	return obj, nil
}

func testMeta(families ...discovery.AddressType) Meta {
	return Meta{
		Namespace: "default", GenerateName: "web-", Labels: map[string]string{discovery.LabelServiceName: "web"},
		Owner: metav1.OwnerReference{APIVersion: "v1", Kind: "Service", Name: "web", UID: "u1"}, Families: families,
		Placeholder: true, MaxEndpoints: 10,
	}
}

func podName(e *discovery.Endpoint) string {
	if e.TargetRef == nil {
		return ""
	}
	return e.TargetRef.Name
}

func nameOf(_ *discovery.EndpointSlice, e *discovery.Endpoint) string { return podName(e) }

func ports(n int32) *PortSet {
	return NewPortSet([]discovery.EndpointPort{{Name: new(""), Protocol: new(corev1.ProtocolTCP), Port: new(n)}})
}

func want(pod string, port int32, ready bool) *Want {
	return &Want{Ports: ports(port), Endpoint: &discovery.Endpoint{
		Addresses:  []string{"10.0.0.1"},
		Conditions: discovery.EndpointConditions{Ready: new(ready)},
		TargetRef:  &corev1.ObjectReference{Kind: "Pod", Name: pod},
	}}
}

func key(pod string) Key { return Key{v4, pod} }

type fixture struct {
	t  *testing.T
	st *store
	s  *Set
}

func newFixture(t *testing.T, m Meta) *fixture {
	f := &fixture{t: t, st: &store{slices: map[string]*discovery.EndpointSlice{}}, s: New(nameOf)}
	f.s.SetMeta(m)
	return f
}

// sync plans and applies, and returns how many writes of each verb that took.
func (f *fixture) sync() (create, update, del int) {
	f.t.Helper()
	for _, w := range f.s.Plan(time.Time{}) {
		got, err := f.st.apply(w)
		if err != nil {
			f.t.Fatalf("%s %s: %v", w.Op, w.Object.Name, err)
		}
		f.s.Done(w, got, err)
		switch w.Op {
		case Create:
			create++
		case Update:
			update++
		case Delete:
			del++
		}
	}
	if again := f.s.Plan(time.Time{}); len(again) != 0 {
		f.t.Fatalf("a second plan writes again: %s %s", again[0].Op, again[0].Object.Name)
	}
	return create, update, del
}

func (f *fixture) wantWrites(create, update, del int) {
	f.t.Helper()
	if c, u, d := f.sync(); c != create || u != update || d != del {
		f.t.Errorf("%d creates, %d updates, %d deletes; want %d, %d, %d", c, u, d, create, update, del)
	}
	f.check()
}

// check compares the store with what is wanted: every endpoint once, equal, in
// a slice of its family and ports, no slice empty but a placeholder.
func (f *fixture) check() {
	f.t.Helper()
	seen := map[Key]bool{}
	perFamily := map[discovery.AddressType]int{}
	for _, sl := range f.st.slices {
		perFamily[sl.AddressType]++
		if !slices.Contains(f.s.meta.Families, sl.AddressType) {
			f.t.Errorf("slice %s of a family that is not served", sl.Name)
		}
		if !maps.Equal(sl.Labels, f.s.meta.Labels) {
			f.t.Errorf("slice %s has labels %v", sl.Name, sl.Labels)
		}
		for i := range sl.Endpoints {
			k := Key{sl.AddressType, podName(&sl.Endpoints[i])}
			w := f.s.want[k]
			switch {
			case w == nil:
				f.t.Errorf("slice %s holds %v, which is not wanted", sl.Name, k)
			case seen[k]:
				f.t.Errorf("%v is there twice", k)
			case PortsKey(sl.Ports) != w.Ports.key:
				f.t.Errorf("%v is in slice %s with other ports", k, sl.Name)
			case !EndpointEqual(&sl.Endpoints[i], w.Endpoint):
				f.t.Errorf("%v is %+v, want %+v", k, sl.Endpoints[i], *w.Endpoint)
			}
			seen[k] = true
		}
	}
	for k := range f.s.want {
		if !seen[k] && slices.Contains(f.s.meta.Families, k.Family) {
			f.t.Errorf("%v is missing", k)
		}
	}
	for _, sl := range f.st.slices {
		if len(sl.Endpoints) == 0 && perFamily[sl.AddressType] > 1 {
			f.t.Errorf("slice %s is empty beside others", sl.Name)
		}
	}
	for _, fam := range f.s.meta.Families {
		if perFamily[fam] == 0 && f.s.meta.Placeholder {
			f.t.Errorf("no slice of family %s", fam)
		}
	}
}

func (f *fixture) put(n int, port int32, ready bool) {
	for i := range n {
		pod := fmt.Sprintf("pod-%03d", i)
		f.s.Want(key(pod), want(pod, port, ready))
	}
}

func TestWritesAreMinimal(t *testing.T) {
	tests := []struct {
		name                string
		before              func(*fixture)
		change              func(*fixture)
		create, update, del int
	}{
		{"nothing wanted: a placeholder", nil, nil, 1, 0, 0},
		{"a placeholder in each family", nil, func(f *fixture) { f.s.SetMeta(testMeta(v4, v6)) }, 2, 0, 0},
		{"first endpoints reuse the placeholder", func(*fixture) {}, func(f *fixture) { f.put(3, 80, true) }, 0, 1, 0},
		{"25 endpoints in slices of 10", func(*fixture) {}, func(f *fixture) { f.put(25, 80, true) }, 2, 1, 0},
		{"a readiness flip among 25 is one update",
			func(f *fixture) { f.put(25, 80, true) }, func(f *fixture) { f.s.Want(key("pod-012"), want("pod-012", 80, false)) }, 0, 1, 0},
		{"the same again is nothing",
			func(f *fixture) { f.put(25, 80, true) }, func(f *fixture) { f.put(25, 80, true) }, 0, 0, 0},
		{"a flip and back before the plan is nothing",
			func(f *fixture) { f.put(25, 80, true) }, func(f *fixture) { f.put(25, 80, false); f.put(25, 80, true) }, 0, 0, 0},
		{"one goes and one comes: one update",
			func(f *fixture) { f.put(20, 80, true) }, func(f *fixture) {
				f.s.Want(key("pod-003"), nil)
				f.s.Want(key("new"), want("new", 80, true))
			}, 0, 1, 0},
		{"one more goes where it fits",
			func(f *fixture) { f.put(25, 80, true) }, func(f *fixture) { f.s.Want(key("new"), want("new", 80, true)) }, 0, 1, 0},
		{"six more do not fit in the five left: one create, no update",
			func(f *fixture) { f.put(25, 80, true) }, func(f *fixture) {
				for i := range 6 {
					n := fmt.Sprint("new-", i)
					f.s.Want(key(n), want(n, 80, true))
				}
			}, 1, 0, 0},
		{"the last endpoint goes: its slice becomes the placeholder",
			func(f *fixture) { f.put(1, 80, true) }, func(f *fixture) { f.s.Want(key("pod-000"), nil) }, 0, 1, 0},
		{"all of 25 go: one placeholder stays",
			func(f *fixture) { f.put(25, 80, true) }, func(f *fixture) {
				for i := range 25 {
					f.s.Want(key(fmt.Sprintf("pod-%03d", i)), nil)
				}
			}, 0, 1, 2},
		{"another port for all: slices are reused",
			func(f *fixture) { f.put(25, 80, true) }, func(f *fixture) { f.put(25, 8080, true) }, 0, 3, 0},
		{"one endpoint with another port: a slice of its own",
			func(f *fixture) { f.put(5, 80, true) }, func(f *fixture) { f.s.Want(key("pod-001"), want("pod-001", 8080, true)) }, 1, 1, 0},
		{"labels change: every slice once",
			func(f *fixture) { f.put(25, 80, true) }, func(f *fixture) {
				m := testMeta(v4)
				m.Labels["team"] = "a"
				f.s.SetMeta(m)
			}, 0, 3, 0},
		{"a family is added: nothing of the other is written",
			func(f *fixture) { f.put(5, 80, true) }, func(f *fixture) { f.s.SetMeta(testMeta(v4, v6)) }, 1, 0, 0},
		{"no family any more: all are deleted",
			func(f *fixture) { f.put(25, 80, true) }, func(f *fixture) { f.s.SetMeta(testMeta()) }, 0, 0, 3},
		{"another Service of the same name: old slices go, new ones come",
			func(f *fixture) { f.put(15, 80, true) }, func(f *fixture) {
				m := testMeta(v4)
				m.Owner.UID = "u2"
				f.s.SetMeta(m)
			}, 2, 0, 2},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, testMeta(v4))
			if tc.before != nil {
				tc.before(f)
				f.sync()
			}
			if tc.change != nil {
				tc.change(f)
			}
			f.wantWrites(tc.create, tc.update, tc.del)
		})
	}
}

// What somebody does to our slices by hand is put right.
func TestEditsByOthers(t *testing.T) {
	tests := []struct {
		name                string
		edit                func(*discovery.EndpointSlice)
		create, update, del int
	}{
		{"an endpoint is removed", func(s *discovery.EndpointSlice) { s.Endpoints = s.Endpoints[1:] }, 0, 1, 0},
		{"all endpoints are removed", func(s *discovery.EndpointSlice) { s.Endpoints = nil }, 0, 1, 0},
		{"an endpoint is changed", func(s *discovery.EndpointSlice) { s.Endpoints[1].Conditions.Ready = new(false) }, 0, 1, 0},
		{"a stranger is added", func(s *discovery.EndpointSlice) {
			s.Endpoints = append(s.Endpoints, discovery.Endpoint{Addresses: []string{"10.9.9.9"}})
		}, 0, 1, 0},
		{"a pod that is not ours is added", func(s *discovery.EndpointSlice) {
			s.Endpoints = append(s.Endpoints, discovery.Endpoint{Addresses: []string{"10.9.9.9"}, TargetRef: &corev1.ObjectReference{Kind: "Pod", Name: "alien"}})
		}, 0, 1, 0},
		{"an endpoint is doubled", func(s *discovery.EndpointSlice) { s.Endpoints = append(s.Endpoints, s.Endpoints[0]) }, 0, 1, 0},
		{"ports are changed", func(s *discovery.EndpointSlice) { s.Ports[0].Port = new(int32(1)) }, 0, 1, 0},
		{"a label is added", func(s *discovery.EndpointSlice) { s.Labels["x"] = "y" }, 0, 1, 0},
		{"labels are removed", func(s *discovery.EndpointSlice) { s.Labels = nil }, 0, 1, 0},
		{"the owner is removed", func(s *discovery.EndpointSlice) { s.OwnerReferences = nil }, 1, 0, 1},
		{"an annotation is added", func(s *discovery.EndpointSlice) { s.Annotations = map[string]string{"a": "b"} }, 0, 0, 0},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, testMeta(v4))
			f.put(5, 80, true)
			f.sync()
			for name, sl := range f.st.slices {
				edited := sl.DeepCopy()
				tc.edit(edited)
				f.st.rev++
				edited.ResourceVersion = strconv.Itoa(f.st.rev)
				f.st.slices[name] = edited
				if !f.s.Observe(edited) {
					t.Fatal("a newer version is no news")
				}
			}
			f.wantWrites(tc.create, tc.update, tc.del)
		})
	}
	t.Run("the slice is deleted", func(t *testing.T) {
		f := newFixture(t, testMeta(v4))
		f.put(5, 80, true)
		f.sync()
		for name := range f.st.slices {
			delete(f.st.slices, name)
			if !f.s.ObserveDelete(name) {
				t.Fatal("a deletion is no news")
			}
		}
		f.wantWrites(1, 0, 0)
	})
}

func TestEchoAndStaleVersionsAreNoNews(t *testing.T) {
	f := newFixture(t, testMeta(v4))
	f.put(5, 80, true)
	f.sync()
	var first *discovery.EndpointSlice
	for _, first = range f.st.slices {
	}
	f.put(5, 80, false)
	f.sync()
	if f.s.Observe(first) {
		t.Error("an older version is taken for news")
	}
	if f.s.Observe(f.st.slices[first.Name].DeepCopy()) {
		t.Error("the echo of an own write is taken for news")
	}
	// Deleted by us; what the watch still has to tell of it must not revive it.
	last := f.st.slices[first.Name]
	f.s.SetMeta(testMeta())
	f.sync()
	if f.s.Observe(last) || f.s.Slices() != 0 {
		t.Error("a late event revives a slice that was deleted")
	}
	if f.s.ObserveDelete(last.Name) {
		t.Error("the echo of an own delete is taken for news")
	}
}

// What an admission webhook makes of a slice is put right like any edit.
func TestRewrittenByTheServer(t *testing.T) {
	for name, rewrite := range map[string]func(*discovery.EndpointSlice){
		"one is dropped": func(s *discovery.EndpointSlice) { s.Endpoints = s.Endpoints[1:] },
		"one is added": func(s *discovery.EndpointSlice) {
			s.Endpoints = append(s.Endpoints, *want("alien", 80, true).Endpoint)
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t, testMeta(v4))
			f.put(5, 80, true)
			w := f.s.Plan(time.Time{})[0]
			got, err := f.st.apply(w)
			rewrite(got)
			f.s.Done(w, got, err)
			f.wantWrites(0, 1, 0)
		})
	}
}

// A random walk over wants, foreign edits, failures and conflicts always ends
// in a store that holds exactly what is wanted.
func TestRandomWalk(t *testing.T) {
	for range 200 {
		seed := rand.Uint64()
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) { walk(t, seed) })
	}
}

func FuzzWalk(f *testing.F) {
	for i := range uint64(8) {
		f.Add(i)
	}
	f.Fuzz(walk)
}

func walk(t *testing.T, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 1))
	f := newFixture(t, testMeta(v4))
	var unseen []*discovery.EndpointSlice // edits that the watch has yet to show
	for range 60 {
		for range r.IntN(12) {
			fam := v4
			if r.IntN(3) == 0 {
				fam = v6
			}
			pod := fmt.Sprintf("pod-%02d", r.IntN(40))
			if r.IntN(3) == 0 {
				f.s.Want(Key{fam, pod}, nil)
			} else {
				f.s.Want(Key{fam, pod}, want(pod, 80+r.Int32N(2), r.IntN(2) == 0))
			}
		}
		switch r.IntN(8) {
		case 0:
			m := testMeta([][]discovery.AddressType{{v4}, {v6}, {v4, v6}, {}}[r.IntN(4)]...)
			m.Labels["n"] = fmt.Sprint(r.IntN(3))
			m.Owner.UID = types.UID(fmt.Sprint("u", r.IntN(2)))
			f.s.SetMeta(m)
		case 1, 2:
			unseen = append(unseen, f.vandalise(r)...)
		case 3, 4:
			for _, sl := range unseen {
				f.observe(sl.Name)
			}
			unseen = nil
		}
		for _, w := range f.s.Plan(time.Time{}) {
			if r.IntN(6) == 0 {
				f.s.Done(w, nil, errConflict)
				continue
			}
			got, err := f.st.apply(w)
			f.s.Done(w, got, err)
		}
	}
	for _, sl := range unseen {
		f.observe(sl.Name)
	}
	f.sync()
	f.check()
}

// vandalise edits or deletes a random slice behind the Set's back.
func (f *fixture) vandalise(r *rand.Rand) (changed []*discovery.EndpointSlice) {
	names := slices.Sorted(maps.Keys(f.st.slices))
	if len(names) == 0 {
		return nil
	}
	sl := f.st.slices[names[r.IntN(len(names))]].DeepCopy()
	f.st.rev++
	sl.ResourceVersion = strconv.Itoa(f.st.rev)
	switch n := len(sl.Endpoints); r.IntN(5) {
	case 0:
		delete(f.st.slices, sl.Name)
		return []*discovery.EndpointSlice{sl}
	case 1:
		sl.Endpoints = sl.Endpoints[:r.IntN(n+1)]
	case 2:
		sl.Endpoints = append(sl.Endpoints, discovery.Endpoint{Addresses: []string{"1.2.3.4"}})
	case 3:
		if n > 0 {
			sl.Endpoints = append(sl.Endpoints, sl.Endpoints[r.IntN(n)])
		}
	case 4:
		sl.Labels = nil
	}
	f.st.slices[sl.Name] = sl
	return []*discovery.EndpointSlice{sl}
}

func (f *fixture) observe(name string) {
	if now := f.st.slices[name]; now != nil {
		f.s.Observe(now)
	} else {
		f.s.ObserveDelete(name)
	}
}

// BenchmarkFlip is the price of planning one readiness flip in a Service of
// 10,000 pods.
func BenchmarkFlip(b *testing.B) {
	st := &store{slices: map[string]*discovery.EndpointSlice{}}
	s := New(nameOf)
	m := testMeta(v4)
	m.MaxEndpoints = 100
	s.SetMeta(m)
	names := make([]string, 10_000)
	for i := range names {
		names[i] = fmt.Sprintf("pod-%05d", i)
		s.Want(key(names[i]), want(names[i], 80, true))
	}
	for _, w := range s.Plan(time.Time{}) {
		got, err := st.apply(w)
		s.Done(w, got, err)
	}
	flips := [2][]*Want{}
	for j := range flips {
		for _, n := range names {
			flips[j] = append(flips[j], want(n, 80, j == 1))
		}
	}
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		pod := i % len(names)
		s.Want(key(names[pod]), flips[(i/len(names))%2][pod])
		writes := s.Plan(time.Time{})
		if len(writes) != 1 {
			b.Fatalf("%d writes for a flip", len(writes))
		}
		b.StopTimer()
		got, err := st.apply(writes[0])
		b.StartTimer()
		s.Done(writes[0], got, err)
		i++
	}
}
