package nodelife

import (
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
)

const (
	// silence is how long a Lease of a second may go without renewal: the agent renews twice a second, and what follows
	// from its silence is to be done within three seconds.
	silence = 2750 * time.Millisecond
	// tick is the longest sleep of the detector; when one took longer by more than maxLag, it did not run itself.
	tick   = 250 * time.Millisecond
	maxLag = time.Second
)

// silenceOf is the bound for a Lease: a kubelet's, of 40 s, gets the 50 s that Kubernetes' node controller gives it.
func silenceOf(lease *coordinationv1.Lease) time.Duration {
	if s := lease.Spec.LeaseDurationSeconds; s != nil {
		return max(silence, time.Duration(*s)*time.Second*5/4)
	}
	return silence
}

// detector decides which nodes are silent. Time is always given, by this machine's monotonic clock; what Leases say about
// time is only compared with itself. It is not safe for concurrent use.
type detector struct {
	nodes map[string]*health
	slept time.Time // when advance was called last; zero: never
	// extended: nobody was heard of, and everybody was given one period more.
	extended bool
}

// health is what is known of one node.
type health struct {
	exists  bool                  // there is a Node
	lease   *coordinationv1.Lease // newest version; nil: none was ever seen, which leaves the node alone
	heard   time.Time             // when the last renewal was seen, or the benefit of a doubt was given
	silent  bool                  // declared so
	spared  time.Time             // its pods are not evicted before
	waiting bool                  // the end of spared is to be told
}

func newDetector() *detector { return &detector{nodes: map[string]*health{}} }

func (d *detector) node(name string) *health {
	h := d.nodes[name]
	if h == nil {
		h = &health{}
		d.nodes[name] = h
	}
	return h
}

// judged says that the node is the detector's business: an agent was heard of.
func (h *health) judged() bool { return h != nil && h.exists && h.lease != nil }

// nodeSeen tells of a new Node. One that an earlier detector called silent is so until it renews.
func (d *detector) nodeSeen(name string, unreachable bool, now time.Time) {
	h := d.node(name)
	if !h.exists {
		h.exists, h.silent, h.heard = true, unreachable, now
	}
}

func (d *detector) nodeGone(name string) {
	if h := d.nodes[name]; h != nil {
		h.exists = false
		d.drop(name, h)
	}
}

// leaseGone: of a node that exists that is silence.
func (d *detector) leaseGone(name string) {
	if h := d.nodes[name]; h != nil && !h.exists {
		h.lease = nil
		d.drop(name, h)
	}
}

func (d *detector) drop(name string, h *health) {
	if !h.exists && h.lease == nil {
		delete(d.nodes, name)
	}
}

// leaseSeen takes in a version of a Lease and says whether the node is back with it. The first one is no renewal: it may be
// old.
func (d *detector) leaseSeen(lease *coordinationv1.Lease, now time.Time) (back bool) {
	h := d.node(lease.Name)
	first := h.lease == nil
	renewed := !first && !lease.Spec.RenewTime.Equal(h.lease.Spec.RenewTime)
	h.lease = lease
	if first || renewed {
		h.heard = now
	}
	if !renewed {
		return false
	}
	disrupted := d.disrupted()
	d.extended = false
	if back = h.silent; back {
		h.silent, h.waiting = false, false
		if disrupted {
			d.spare(now)
		}
	}
	return back
}

// spare gives the nodes that are still silent time to come back, too, before their pods are evicted.
func (d *detector) spare(now time.Time) {
	for _, h := range d.nodes {
		if h.judged() && h.silent {
			h.spared, h.waiting = now.Add(silenceOf(h.lease)), true
		}
	}
}

// disrupted says that all nodes are silent, and there are several: then it is rather the network or the API.
func (d *detector) disrupted() bool {
	leased := 0
	for _, h := range d.nodes {
		if !h.judged() {
			continue
		}
		leased++
		if !h.silent {
			return false
		}
	}
	return leased > 1
}

// advance gives the nodes that may be silent, to be confirmed with declare or denied with doubt; those whose time of grace
// is over; and when to call it again at the latest.
func (d *detector) advance(now time.Time) (suspects, graceOver []string, wait time.Duration) {
	if !d.slept.IsZero() && now.Sub(d.slept) > tick+maxLag {
		d.doubt(now)
	}
	d.slept = now
	wait = tick
	for name, h := range d.nodes {
		switch {
		case !h.judged():
		case h.waiting && !now.Before(h.spared):
			h.waiting = false
			graceOver = append(graceOver, name)
		case h.waiting:
			wait = min(wait, h.spared.Sub(now))
		case h.silent:
		default:
			left := h.heard.Add(silenceOf(h.lease)).Sub(now)
			if left <= 0 {
				suspects = append(suspects, name)
			} else {
				wait = min(wait, left)
			}
		}
	}
	return suspects, graceOver, wait
}

// doubt says that nothing heard, or not heard, until now counts: every node gets a fresh period.
func (d *detector) doubt(now time.Time) {
	for _, h := range d.nodes {
		h.heard = now
	}
}

// declare makes the suspects silent that were not heard of since, and gives them. When that leaves nobody of several who was
// heard of lately, everybody gets one more period first: a stall of the API must not look like the death of all.
func (d *detector) declare(suspects []string, now time.Time) (silent []string) {
	if len(suspects) == 0 {
		return nil
	}
	if !d.extended && d.nobody(now) {
		d.extended = true
		d.doubt(now)
		return nil
	}
	for _, name := range suspects {
		h := d.nodes[name]
		if !h.judged() || h.silent || now.Before(h.heard.Add(silenceOf(h.lease))) {
			continue
		}
		h.silent = true
		silent = append(silent, name)
	}
	return silent
}

// nobody says that there are several nodes and none was heard of in the last half of its period.
func (d *detector) nobody(now time.Time) bool {
	leased := 0
	for _, h := range d.nodes {
		if !h.judged() {
			continue
		}
		leased++
		if !h.silent && now.Sub(h.heard) < silenceOf(h.lease)/2 {
			return false
		}
	}
	return leased > 1
}

// verdict is what follows for a node. A node without a Lease is not judged.
type verdict struct {
	judged, silent bool
	evict          bool // its pods may be
}

func (d *detector) verdict(name string, now time.Time) verdict {
	h := d.nodes[name]
	if !h.judged() {
		return verdict{}
	}
	return verdict{judged: true, silent: h.silent, evict: h.silent && !now.Before(h.spared) && !d.disrupted()}
}
