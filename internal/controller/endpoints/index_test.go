package endpoints

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"k8s.io/apimachinery/pkg/types"
)

func FuzzIndex(f *testing.F) {
	for i := range uint64(20) {
		f.Add(i)
	}
	f.Fuzz(checkIndex)
}

// checkIndex makes random changes and compares every answer with a search of
// everything.
func checkIndex(t *testing.T, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 7))
	x := newIndex()
	type pod struct {
		labels map[string]string
		node   string
	}
	services, pods := map[types.NamespacedName]map[string]string{}, map[types.NamespacedName]pod{}
	random := func(most int) map[string]string {
		m := map[string]string{}
		for range r.IntN(most + 1) {
			m[fmt.Sprint("k", r.IntN(3))] = fmt.Sprint("v", r.IntN(2))
		}
		return m
	}
	name := func(kind string) types.NamespacedName {
		return types.NamespacedName{Namespace: fmt.Sprint("ns", r.IntN(2)), Name: fmt.Sprint(kind, r.IntN(6))}
	}
	selecting := func(ns string, labels map[string]string) map[types.NamespacedName]bool {
		out := map[types.NamespacedName]bool{}
		for k, sel := range services {
			if k.Namespace == ns && selects(sel, labels) {
				out[k] = true
			}
		}
		return out
	}
	for range 200 {
		touched := map[types.NamespacedName]bool{}
		touch := func(svc types.NamespacedName) { touched[svc] = true }
		switch p := name("p"); r.IntN(4) {
		case 0:
			svc, sel := name("s"), random(3)
			services[svc] = sel
			x.setService(svc, sel)
			got := map[string]bool{}
			x.podsOf(svc.Namespace, sel, func(name string) { got[name] = true })
			want := map[string]bool{}
			for k, p := range pods {
				if k.Namespace == svc.Namespace && selects(sel, p.labels) {
					want[k.Name] = true
				}
			}
			if !maps.Equal(got, want) {
				t.Fatalf("selector %v selects %v, want %v", sel, got, want)
			}
		case 1:
			want := selecting(p.Namespace, pods[p].labels)
			x.deletePod(p, touch)
			delete(pods, p)
			if !maps.Equal(touched, want) {
				t.Fatalf("deleting %v touches %v, want %v", p, touched, want)
			}
		default:
			want := selecting(p.Namespace, pods[p].labels)
			next := pod{random(3), []string{"", "n0", "n1"}[r.IntN(3)]}
			maps.Copy(want, selecting(p.Namespace, next.labels))
			x.setPod(p, next.labels, next.node, touch)
			pods[p] = next
			if !maps.Equal(touched, want) {
				t.Fatalf("%v with labels %v touches %v, want %v", p, next.labels, touched, want)
			}
		}
		got, want := map[string]bool{}, map[string]bool{}
		x.servicesOnNode("n0", func(svc types.NamespacedName, pod string) { got[svc.String()+" "+pod] = true })
		for k, p := range pods {
			for svc := range selecting(k.Namespace, p.labels) {
				if p.node == "n0" {
					want[svc.String()+" "+k.Name] = true
				}
			}
		}
		if !maps.Equal(got, want) {
			t.Fatalf("on node n0: %v, want %v", got, want)
		}
	}
	empty(t, x, slices.Collect(maps.Keys(services)), slices.Collect(maps.Keys(pods)))
}

// empty takes everything out and checks that nothing is left behind.
func empty(t *testing.T, x *index, services, pods []types.NamespacedName) {
	t.Helper()
	for _, svc := range services {
		x.setService(svc, nil)
	}
	for _, p := range pods {
		x.deletePod(p, func(types.NamespacedName) {})
	}
	if n := len(x.services) + len(x.pods) + len(x.byPivot) + len(x.byLabel) + len(x.byNode); n != 0 {
		t.Fatalf("an emptied index holds %d entries", n)
	}
}

// A label that all Services share must not make every pod a candidate of all.
func TestPivotIsTheRarestLabel(t *testing.T) {
	x := newIndex()
	for i := range 100 {
		x.setService(types.NamespacedName{Namespace: "d", Name: fmt.Sprint("s", i)}, map[string]string{"env": "prod", "app": fmt.Sprint(i)})
	}
	if n := len(x.byPivot[label{"d", "env", "prod"}]); n > 1 {
		t.Errorf("%d Services are filed under the label they share", n)
	}
	var got []string
	x.servicesOf("d", map[string]string{"env": "prod", "app": "42"}, func(svc types.NamespacedName) { got = append(got, svc.Name) })
	if !slices.Equal(got, []string{"s42"}) {
		t.Errorf("found %v", got)
	}
}
