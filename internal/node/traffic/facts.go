package traffic

import (
	"context"
	"slices"
	"time"

	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/endpointd/endpointd/internal/model"
)

// A fact is what this node knows better than the API about one of its pods.
type fact struct {
	why  model.Reason
	over time.Time // when the pod was forgotten; zero = it was not
}

// How long a fact stays after its pod was forgotten, at least: a slice that names the pod may still be on its way.
const (
	forgetAfter  = time.Minute
	forgetPeriod = 30 * time.Second
)

// Down has no connection led to the pod from now on, whatever the API says: LocalDead, LocalNotReady or LocalDraining. What is said later replaces what
// was said before.
func (t *Traffic) Down(uid string, why model.Reason) {
	t.change(func() {
		t.facts[uid] = fact{why: why}
		t.in = t.in.WithDown(uid, why)
	})
}

// Up takes a Down back: from now on it is as the API says.
func (t *Traffic) Up(uid string) {
	t.change(func() { t.drop(uid) })
}

// drop is Up. t.mu is held.
func (t *Traffic) drop(uid string) {
	delete(t.facts, uid)
	t.in = t.in.WithoutDown(uid)
}

// Forget tells that the pod never comes again. If it was Down it stays so while a slice names it.
func (t *Traffic) Forget(uid string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if f, ok := t.facts[uid]; ok {
		f.over = time.Now()
		t.facts[uid] = f
	}
}

// forget drops facts about pods that are over and that nobody names any more.
func (t *Traffic) forget() {
	t.mu.Lock()
	var over []string
	for uid, f := range t.facts {
		if !f.over.IsZero() && time.Since(f.over) >= forgetAfter && !t.mentioned(uid, func(mention) bool { return true }) {
			over = append(over, uid)
		}
	}
	t.mu.Unlock()
	if len(over) == 0 {
		return
	}
	t.change(func() {
		for _, uid := range over {
			t.drop(uid)
		}
	})
}

// A mention is an endpoint of a slice that is a pod of this node.
type mention struct {
	uid   string
	leads bool   // the API wants new connections there
	since uint64 // of the slice that said first that it does not lead there
}

// mentions are the pods that a slice names on this node, or nowhere: those that model lets a fact be about.
func (t *Traffic) mentions(s *discoveryv1.EndpointSlice) []mention {
	var found []mention
	for i := range s.Endpoints {
		e := &s.Endpoints[i]
		if e.NodeName != nil && *e.NodeName != t.o.Node || e.TargetRef == nil || e.TargetRef.Kind != "Pod" {
			continue
		}
		ready := e.Conditions.Ready == nil || *e.Conditions.Ready
		terminating := e.Conditions.Terminating != nil && *e.Conditions.Terminating
		found = append(found, mention{uid: string(e.TargetRef.UID), leads: ready && !terminating})
	}
	return found
}

// note remembers what a slice of that version says of this node's pods. t.mu is held.
func (t *Traffic) note(key sliceKey, now []mention, version uint64) {
	was := t.own[key]
	if len(was) == 0 && len(now) == 0 {
		return
	}
	for i := range now {
		m := &now[i]
		if m.leads {
			continue
		}
		m.since = version
		if j := slices.IndexFunc(was, func(w mention) bool { return w.uid == m.uid && !w.leads }); j >= 0 {
			m.since = was[j].since
		}
	}
	if len(now) == 0 {
		delete(t.own, key)
	} else {
		t.own[key] = now
	}
	t.turn()
}

// mentioned says whether there is a mention of the pod for which is says so. t.mu is held.
func (t *Traffic) mentioned(uid string, is func(mention) bool) bool {
	for _, mentions := range t.own {
		if slices.ContainsFunc(mentions, func(m mention) bool { return m.uid == uid && is(m) }) {
			return true
		}
	}
	return false
}

// accepted is how long a program gets to accept the last connections that were led to it. Most programs close their listening socket when they are told
// to stop, and the kernel resets what waits there.
const accepted = 100 * time.Millisecond

// Drain returns when new connections are led to a pod of this node no more, from any node, and the last of them had time to be accepted: the API's slices
// say so, and this node and its peers have that in force. It ends with ctx. What this node itself does about the pod is said with Down.
func (t *Traffic) Drain(ctx context.Context, uid string) {
	version, ok := t.awaitLeft(ctx, uid)
	if !ok || version == 0 || t.Acknowledged(ctx, version) != nil {
		return
	}
	if t.o.Peers != nil {
		t.o.Peers(ctx, version)
	}
	timer := time.NewTimer(accepted)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// awaitLeft waits until no slice leads to the pod, and returns the resourceVersion from which on that is so; 0 = no slice names it.
func (t *Traffic) awaitLeft(ctx context.Context, uid string) (version uint64, ok bool) {
	for {
		t.mu.Lock()
		leads := t.mentioned(uid, func(m mention) bool {
			version = max(version, m.since)
			return m.leads
		})
		turned := t.turned
		t.mu.Unlock()
		if !leads {
			return version, true
		}
		select {
		case <-turned:
		case <-ctx.Done():
			return 0, false
		}
	}
}

// Acknowledged returns nil when the data plane of this node has in force what EndpointSlices said up to the resourceVersion, or why ctx ended.
func (t *Traffic) Acknowledged(ctx context.Context, version uint64) error {
	for {
		t.mu.Lock()
		current, built, turned := t.current, t.built, t.turned
		t.mu.Unlock()
		if current != nil && built >= version {
			return t.o.Wait(ctx, current.Revision)
		}
		select {
		case <-turned:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
