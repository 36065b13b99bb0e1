package model_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/endpointd/endpointd/internal/model"
)

// TestWalk takes random steps, some of them back to an Input or a Snapshot of long ago, and compares each Build with one from nothing.
func TestWalk(t *testing.T) {
	t.Parallel()
	for i := range 12 {
		seed := rand.Uint64()
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			t.Logf("seed %d", seed)
			stroll(t, &dice{rand: rand.New(rand.NewPCG(seed, 0)), wild: i%2 == 0}, 60)
		})
	}
}

// FuzzBuild does what TestWalk does with the fuzzer's choice of steps and values.
func FuzzBuild(f *testing.F) {
	for i := range 16 {
		source := rand.NewChaCha8([32]byte{byte(i)})
		data := make([]byte, 600)
		_, _ = source.Read(data) // it has no end
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		stroll(t, &dice{data: data, wild: true}, min(len(data)/16, 40))
	})
}

// A place is an Input and the objects that it should be worth.
type place struct {
	in       model.Input
	network  model.Network
	services map[string]*corev1.Service
	slices   map[string]*discoveryv1.EndpointSlice
	down     map[string]model.Reason
}

type visit struct {
	place
	snapshot *model.Snapshot
	text     string
}

func stroll(t *testing.T, d *dice, steps int) {
	at := place{services: map[string]*corev1.Service{}, slices: map[string]*discoveryv1.EndpointSlice{}, down: map[string]model.Reason{}}
	past := []visit{{}}
	for range steps {
		for range d.intN(4) {
			at = at.step(t, d)
		}
		was := past[len(past)-1]
		switch d.intN(12) {
		case 0: // the state of another chain
			was = past[d.intN(len(past))]
		case 1: // go back and on from there
			if back := past[d.intN(len(past))]; back.snapshot != nil {
				at = back.place.clone()
			}
		}
		now := model.Build(at.in, was.snapshot)
		v := visit{place: at.clone(), snapshot: now, text: model.Text(now)}
		v.compare(t, &was)
		check(t, now)
		at.leads(t)
		past = append(past, v)
		if t.Failed() {
			t.Logf("before:\n%s\nnow:\n%s", was.text, v.text)
			return
		}
	}
	for _, v := range past[1:] {
		if text := model.Text(v.snapshot); text != v.text {
			t.Errorf("a Snapshot became another:\n%s\nwas:\n%s", text, v.text)
		}
		if text := model.Text(model.Build(v.in, nil)); text != v.text {
			t.Errorf("an Input became another:\n%s\nwas:\n%s", text, v.text)
		}
	}
}

func (p place) clone() place {
	p.services, p.slices, p.down = maps.Clone(p.services), maps.Clone(p.slices), maps.Clone(p.down)
	return p
}

// step changes p's own maps too, which nobody else has.
func (p place) step(t *testing.T, d *dice) place {
	name := "ns/" + d.text("a", "b", "c", "d", "s1", "s2", "s3")
	switch d.intN(10) {
	case 0, 1, 2:
		object := d.service()
		before := hash(object)
		p.in = p.in.WithService(object)
		if !model.SameInput(p.in.WithService(object.DeepCopy()), p.in) {
			t.Errorf("the same Service again gives another Input: %s", before)
		}
		if hash(object) != before {
			t.Errorf("WithService modified %s", before)
		}
		if named(object.Name) {
			p.services["ns/"+object.Name] = object
		}
	case 3, 4, 5, 6:
		object := d.slice()
		before := hash(object)
		p.in = p.in.WithSlice(object)
		if !model.SameInput(p.in.WithSlice(object.DeepCopy()), p.in) {
			t.Errorf("the same slice again gives another Input: %s", before)
		}
		if hash(object) != before {
			t.Errorf("WithSlice modified %s", before)
		}
		if named(object.Name) {
			p.slices["ns/"+object.Name] = object
		}
	case 7:
		delete(p.services, name)
		p.in = p.in.WithoutService(model.ServiceKey{Namespace: "ns", Name: name[3:]})
		delete(p.slices, name)
		p.in = p.in.WithoutSlice("ns", name[3:])
	case 8:
		p.network = d.network()
		p.in = p.in.WithNetwork(p.network)
	case 9:
		uid := d.text("p1", "p2", "p3")
		if fact := d.fact(); d.one(2) {
			delete(p.down, uid)
			p.in = p.in.WithoutDown(uid)
		} else {
			p.in = p.in.WithDown(uid, fact)
			if uid != "" && (fact == model.LocalDead || fact == model.LocalNotReady || fact == model.LocalDraining) {
				p.down[uid] = fact
			}
		}
	}
	return p
}

func named(name string) bool { return name != "" && !strings.Contains(name, "\x00") }

func hash(object any) string {
	text, err := json.Marshal(object)
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// again is the Input that one gets who sees the objects now, in another order.
func (p place) again() model.Input {
	in := model.Input{}
	for _, uid := range slices.Sorted(maps.Keys(p.down)) {
		in = in.WithDown(uid, p.down[uid])
	}
	for _, name := range slices.Sorted(maps.Keys(p.slices)) {
		in = in.WithSlice(p.slices[name])
	}
	for _, name := range slices.Sorted(maps.Keys(p.services)) {
		in = in.WithService(p.services[name])
	}
	return in.WithNetwork(p.network)
}

// compare holds a Snapshot against one from nothing, and against the one that it was built from.
func (v *visit) compare(t *testing.T, was *visit) {
	t.Helper()
	if anew := model.Text(model.Build(v.again(), nil)); anew != v.text {
		t.Errorf("step by step:\n%s\nfrom nothing:\n%s", v.text, anew)
	}
	if same := v.text == was.text && was.snapshot != nil; same != (v.snapshot == was.snapshot) {
		t.Errorf("same text as before: %v, same Snapshot: %v", same, !same)
	}
	if was.snapshot != nil && v.snapshot != was.snapshot && v.snapshot.Revision != was.snapshot.Revision+1 {
		t.Errorf("revision %d comes after %d", v.snapshot.Revision, was.snapshot.Revision)
	}
	before, after := blocks(was.text), blocks(v.text)
	var want, got []string
	for key := range after {
		if after[key] != before[key] {
			want = append(want, key)
		}
	}
	for key := range before {
		if _, ok := after[key]; !ok {
			want = append(want, key)
		}
	}
	for key := range v.snapshot.Changed(was.snapshot) {
		got = append(got, key.String())
	}
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("Changed says %q, and what differs is %q", got, want)
	}
	if was.snapshot == nil {
		return
	}
	for s := range v.snapshot.Services() {
		key := s.Key.String()
		if old := was.snapshot.Service(s.Key); after[key] == before[key] && old != s {
			t.Errorf("%s did not change and is another pointer", key)
		}
	}
}

// blocks is the text of each Service.
func blocks(text string) map[string]string {
	all := map[string]string{}
	for i, block := range strings.Split(text, "\n\nservice ") {
		if i > 0 {
			all[keyOf(block)] = strings.TrimSuffix(block, "\n")
		}
	}
	return all
}

// keyOf is the key that a block begins with. In this world, namespaces are plain.
func keyOf(block string) string {
	namespace, rest, _ := strings.Cut(block, "/")
	quoted, err := strconv.QuotedPrefix(rest)
	if err != nil {
		name, _, _ := strings.Cut(rest, " ")
		return namespace + "/" + name
	}
	name, _ := strconv.Unquote(quoted) // it is a QuotedPrefix
	return namespace + "/" + name
}

// leads holds Leads against the objects.
func (p place) leads(t *testing.T) {
	t.Helper()
	for _, uid := range []string{"p1", "p2", "p3"} {
		want := false
		for _, s := range p.slices {
			if s.AddressType != discoveryv1.AddressTypeIPv4 && s.AddressType != discoveryv1.AddressTypeIPv6 {
				continue
			}
			for _, e := range s.Endpoints {
				mine := e.NodeName == nil || *e.NodeName == "" || *e.NodeName == p.network.Node
				ready := e.Conditions.Ready == nil || *e.Conditions.Ready
				terminating := e.Conditions.Terminating != nil && *e.Conditions.Terminating
				usable := len(e.Addresses) > 0 && strings.HasPrefix(e.Addresses[0], map[bool]string{true: "10.1.", false: "fd02::"}[s.AddressType == discoveryv1.AddressTypeIPv4])
				want = want || e.TargetRef != nil && string(e.TargetRef.UID) == uid && mine && ready && !terminating && usable
			}
		}
		if got := p.in.Leads(uid); got != want {
			t.Errorf("Leads(%s) = %v, want %v", uid, got, want)
		}
	}
}
