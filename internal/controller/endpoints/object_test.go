package endpoints

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/endpointd/endpointd/internal/controller/sliceset"
)

func onePort(n int32) *sliceset.PortSet {
	return sliceset.NewPortSet([]discovery.EndpointPort{{Name: new(fmt.Sprint("p", n)), Port: &n, Protocol: new(corev1.ProtocolTCP)}})
}

func address(i int) *corev1.EndpointAddress {
	return &corev1.EndpointAddress{IP: fmt.Sprintf("10.0.%d.%d", i/250, i%250), TargetRef: &corev1.ObjectReference{Kind: "Pod", Name: fmt.Sprint("pod-", i), UID: types.UID(fmt.Sprint("u", i))}}
}

func fill(o *object, from, n int, ready bool, ports *sliceset.PortSet) {
	for i := from; i < from+n; i++ {
		o.set(fmt.Sprint("pod-", i), address(i), ready, ports)
	}
}

func TestTruncate(t *testing.T) {
	type count struct{ ready, notReady int }
	tests := []struct {
		name  string
		fill  func(*object)
		want  []count // by subset, in order of its port
		annot bool
	}{
		{"at the limit", func(o *object) { fill(o, 0, 600, true, onePort(1)); fill(o, 600, 400, false, onePort(1)) }, []count{{600, 400}}, false},
		{"one above: unready ones go", func(o *object) { fill(o, 0, 600, true, onePort(1)); fill(o, 600, 401, false, onePort(1)) }, []count{{600, 400}}, true},
		{"ready ones alone are too many", func(o *object) { fill(o, 0, 1500, true, onePort(1)); fill(o, 1500, 100, false, onePort(1)) }, []count{{1000, 0}}, true},
		{"in proportion, rounded up until full", func(o *object) {
			fill(o, 0, 1000, true, onePort(1))
			fill(o, 1000, 500, true, onePort(2))
		}, []count{{667, 0}, {333, 0}}, true},
		{"unready ones in proportion", func(o *object) {
			fill(o, 0, 500, true, onePort(1))
			fill(o, 500, 400, false, onePort(1))
			fill(o, 900, 400, false, onePort(2))
		}, []count{{500, 250}, {0, 250}}, true},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			o := newObject()
			tc.fill(o)
			ep, _ := o.plan(&corev1.Service{}, nil, time.Time{})
			var got []count
			for _, s := range ep.Subsets {
				got = append(got, count{len(s.Addresses), len(s.NotReadyAddresses)})
			}
			if fmt.Sprint(got) != fmt.Sprint(tc.want) {
				t.Errorf("addresses by subset %v, want %v", got, tc.want)
			}
			if (ep.Annotations[corev1.EndpointsOverCapacity] == "truncated") != tc.annot {
				t.Errorf("annotations %v", ep.Annotations)
			}
		})
	}
}

// Among more addresses than are shown, a change of one that is not shown is no
// write, and back under the limit the annotation goes.
func TestTruncatedObjectIsWrittenOnlyWhenWhatItShowsChanges(t *testing.T) {
	o := newObject()
	fill(o, 0, 3000, true, onePort(1))
	version := 0
	write := func() bool {
		ep, holds := o.plan(&corev1.Service{}, map[string]string{}, time.Time{})
		if ep == nil {
			return false
		}
		version++
		ep.ResourceVersion = fmt.Sprint(version)
		o.wrote(ep, holds)
		return true
	}
	if !write() {
		t.Fatal("nothing to write at first")
	}
	shown := o.seen.Subsets[0].Addresses
	isShown := map[string]bool{}
	for _, a := range shown {
		isShown[a.IP] = true
	}
	for i := range 3000 {
		a := address(i)
		o.set(a.TargetRef.Name, address(i), false, onePort(1))
		if got := write(); got != isShown[a.IP] {
			t.Fatalf("unready %s: written %v, shown %v", a.IP, got, isShown[a.IP])
		}
		o.set(a.TargetRef.Name, address(i), true, onePort(1))
		if got := write(); got != isShown[a.IP] {
			t.Fatalf("ready again %s: written %v, shown %v", a.IP, got, isShown[a.IP])
		}
	}
	for i := 1000; i < 3000; i++ {
		o.set(fmt.Sprint("pod-", i), nil, false, nil)
	}
	write()
	if overCapacity(o.seen) || len(o.seen.Subsets[0].Addresses) != 1000 {
		t.Errorf("under the limit again: %v, %d addresses", o.seen.Annotations, len(o.seen.Subsets[0].Addresses))
	}
}

// However an object came about, it is the same as one made from scratch.
func FuzzObject(f *testing.F) {
	for i := range uint64(20) {
		f.Add(i)
	}
	f.Fuzz(func(t *testing.T, seed uint64) {
		r := rand.New(rand.NewPCG(seed, 5))
		o := newObject()
		version := 0
		for range 100 {
			i := r.IntN(20)
			if r.IntN(3) == 0 {
				o.set(fmt.Sprint("pod-", i), nil, false, nil)
			} else {
				o.set(fmt.Sprint("pod-", i), address(i), r.IntN(2) == 0, onePort(int32(1+r.IntN(2))))
			}
			if r.IntN(3) == 0 {
				if ep, holds := o.plan(&corev1.Service{}, map[string]string{}, time.Time{}); ep != nil {
					version++
					ep.ResourceVersion = fmt.Sprint(version)
					o.wrote(ep, holds)
				}
			}
		}
		fresh := newObject()
		for name, m := range o.members {
			fresh.set(name, m.address, m.ready, m.group.ports)
		}
		if ep, _ := o.plan(&corev1.Service{}, map[string]string{}, time.Time{}); ep != nil {
			o.wrote(ep, nil)
		}
		want, _ := fresh.plan(&corev1.Service{}, map[string]string{}, time.Time{})
		var got []corev1.EndpointSubset
		if o.seen != nil {
			got = o.seen.Subsets
		}
		if !equalSubsets(got, want.Subsets) {
			t.Errorf("got %v\nwant %v", got, want.Subsets)
		}
	})
}
