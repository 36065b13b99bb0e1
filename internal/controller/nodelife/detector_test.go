package nodelife

import (
	"slices"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// clock is a detector with agents that renew every half second, by given time.
type clock struct {
	*testing.T
	d      *detector
	now    time.Time
	agents map[string]bool // node → alive
	silent []string        // declared, sorted
	late   []string        // whose time of grace is over
}

func newClock(t *testing.T, nodes ...string) *clock {
	c := &clock{T: t, d: newDetector(), now: time.Unix(1000, 0), agents: map[string]bool{}}
	for _, n := range nodes {
		c.d.nodeSeen(n, false, c.now)
		c.agents[n] = true
	}
	c.renew()
	return c
}

func lease(name string, renewed time.Time, seconds int32) *coordinationv1.Lease {
	return &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-node-lease", Name: name},
		Spec: coordinationv1.LeaseSpec{LeaseDurationSeconds: &seconds, RenewTime: &metav1.MicroTime{Time: renewed}}}
}

func (c *clock) renew() {
	for n, alive := range c.agents {
		if alive {
			c.d.leaseSeen(lease(n, c.now, 1), c.now)
		}
	}
}

// run lets time pass in steps of 50 ms.
func (c *clock) run(d time.Duration) {
	for end := c.now.Add(d); c.now.Before(end); {
		c.now = c.now.Add(50 * time.Millisecond)
		if c.now.UnixMilli()%500 == 0 {
			c.renew()
		}
		suspects, over, wait := c.d.advance(c.now)
		if wait <= 0 || wait > tick {
			c.Errorf("wait %s", wait)
		}
		c.silent = append(c.silent, c.d.declare(suspects, c.now)...)
		c.late = append(c.late, over...)
	}
	slices.Sort(c.silent)
}

func (c *clock) want(when string, silent ...string) {
	c.Helper()
	if !slices.Equal(c.silent, silent) {
		c.Errorf("%s: silent %v, want %v", when, c.silent, silent)
	}
}

func TestOneNodeFallsSilent(t *testing.T) {
	c := newClock(t, "a", "b", "c")
	c.run(time.Minute)
	c.want("all alive")
	c.agents["b"] = false
	c.run(silence - 50*time.Millisecond)
	c.want("a moment before")
	c.run(50 * time.Millisecond)
	c.want("after 2.75 s", "b")
	if v := c.d.verdict("b", c.now); !v.judged || !v.silent || !v.evict {
		t.Errorf("verdict %+v", v)
	}
	c.run(time.Minute)
	c.want("said once", "b")
	c.agents["b"] = true
	c.run(500 * time.Millisecond)
	if v := c.d.verdict("b", c.now); v.silent || v.evict {
		t.Errorf("back: %+v", v)
	}
}

func TestTheOnlyNode(t *testing.T) {
	c := newClock(t, "a")
	c.agents["a"] = false
	c.run(silence)
	c.want("after 2.75 s", "a")
	if v := c.d.verdict("a", c.now); !v.evict {
		t.Errorf("verdict %+v", v)
	}
}

// When nobody is heard of, it takes a second period, and nobody is evicted; who comes back lets the others be evicted
// only after a period more.
func TestFullDisruption(t *testing.T) {
	c := newClock(t, "a", "b", "c")
	c.run(time.Second)
	for n := range c.agents {
		c.agents[n] = false
	}
	c.run(2*silence - 50*time.Millisecond)
	c.want("before two periods")
	c.run(50 * time.Millisecond)
	c.want("after two periods", "a", "b", "c")
	c.run(time.Minute)
	for n := range c.agents {
		if v := c.d.verdict(n, c.now); !v.silent || v.evict {
			t.Errorf("%s in full disruption: %+v", n, v)
		}
	}
	c.agents["a"] = true
	c.run(500 * time.Millisecond)
	back := c.now
	if v := c.d.verdict("b", c.now); !v.silent || v.evict {
		t.Errorf("b when a came back: %+v", v)
	}
	c.agents["b"] = true
	c.run(silence - 50*time.Millisecond)
	if v := c.d.verdict("c", c.now); v.evict || len(c.late) > 0 {
		t.Errorf("c evicted %s after a came back", c.now.Sub(back))
	}
	c.run(50 * time.Millisecond)
	if v := c.d.verdict("c", c.now); !v.evict || !slices.Equal(c.late, []string{"c"}) {
		t.Errorf("c %s after a came back: %+v, told of %v", c.now.Sub(back), v, c.late)
	}
	if v := c.d.verdict("b", c.now); v.silent {
		t.Errorf("b: %+v", v)
	}
}

// A stall of the API that is over before the second period ends hurts nobody.
func TestStallOfAll(t *testing.T) {
	c := newClock(t, "a", "b")
	c.agents["a"], c.agents["b"] = false, false
	c.run(5 * time.Second)
	c.agents["a"], c.agents["b"] = true, true
	c.run(time.Minute)
	c.want("after a stall of 5 s")
	// The next one has its second period again.
	c.agents["a"], c.agents["b"] = false, false
	c.run(5 * time.Second)
	c.want("in a second stall")
}

// A detector that was frozen believes nothing of before.
func TestFrozenDetector(t *testing.T) {
	c := newClock(t, "a", "b", "c")
	c.run(time.Second)
	c.agents["b"] = false
	c.now = c.now.Add(10 * time.Second)
	c.d.leaseSeen(lease("a", c.now, 1), c.now) // the first event to be handled
	c.run(silence - 100*time.Millisecond)
	c.want("after it woke")
	c.run(150 * time.Millisecond)
	c.want("a period later", "b")
}

func TestWhoIsNotJudged(t *testing.T) {
	c := newClock(t, "a", "b")
	c.d.nodeSeen("by-hand", false, c.now)
	c.d.leaseSeen(lease("no-node", c.now, 1), c.now)
	c.d.leaseSeen(lease("kubelet", c.now, 40), c.now)
	c.d.nodeSeen("kubelet", false, c.now)
	c.run(49 * time.Second)
	c.want("after 49 s")
	for _, n := range []string{"by-hand", "no-node", "unheard-of"} {
		if v := c.d.verdict(n, c.now); v != (verdict{}) {
			t.Errorf("%s: %+v", n, v)
		}
	}
	c.run(time.Second)
	c.want("a kubelet has 50 s", "kubelet")
	c.d.leaseGone("no-node")
	c.d.nodeGone("by-hand")
	c.d.nodeGone("kubelet")
	c.d.leaseGone("kubelet")
	if len(c.d.nodes) != 2 {
		t.Errorf("%d nodes are remembered, want 2", len(c.d.nodes))
	}
}

// A new term begins with what the last one said, and the first sight of a Lease is no renewal.
func TestNewTerm(t *testing.T) {
	d, now := newDetector(), time.Unix(1000, 0)
	old := now.Add(-time.Hour)
	d.leaseSeen(lease("dead", old, 1), now)
	d.nodeSeen("dead", true, now)
	d.nodeSeen("fine", false, now)
	d.leaseSeen(lease("fine", old, 1), now)
	if v := d.verdict("dead", now); !v.silent || !v.evict {
		t.Errorf("dead: %+v", v)
	}
	if suspects, _, wait := d.advance(now); len(suspects) > 0 || wait != tick {
		t.Errorf("suspects %v, wait %s", suspects, wait)
	}
	if back := d.leaseSeen(lease("dead", now, 1), now); !back || d.verdict("dead", now).silent {
		t.Error("it renewed, and is still silent")
	}
	same := lease("fine", old, 1)
	same.Labels = map[string]string{"touched": "by somebody"}
	later := now.Add(silence)
	d.leaseSeen(same, later.Add(-time.Second))
	if suspects, _, _ := d.advance(now.Add(tick)); len(suspects) > 0 {
		t.Errorf("suspects %v", suspects)
	}
	for at := now.Add(2 * tick); at.Before(later); at = at.Add(tick) {
		d.advance(at)
	}
	if suspects, _, _ := d.advance(later); !slices.Contains(suspects, "fine") {
		t.Errorf("a Lease that somebody touched counts as renewed")
	}
}
