package ebpf

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/endpointd/endpointd/internal/model"
)

// left says what went, and so may have left sockets behind.
type left struct {
	members []programMemberKey // of pools
	lost    []programAddrPort  // endpoints of TCP that some Service has no more
	learn   bool               // if it is not noted of every socket where it was led to, that is to be made up for
}

func (l left) none() bool { return len(l.members)+len(l.lost) == 0 && !l.learn }

func (l left) or(other left) left {
	return left{
		members: append(slices.Clip(l.members), other.members...),
		lost:    append(slices.Clip(l.lost), other.lost...),
		learn:   l.learn || other.learn,
	}
}

// whatLeft follows from a change of the maps. An endpoint may leave the Snapshot long after its pool.
func whatLeft(w *writes, was, now *model.Snapshot) left {
	l := left{members: w.members.gone}
	for key := range now.Changed(was) {
		l.lost = appendLost(l.lost, was.Service(key), now.Service(key))
	}
	return l
}

// appendLost appends the endpoints of TCP that a Service had and has no more. Either may be nil.
func appendLost(lost []programAddrPort, was, now *model.Service) []programAddrPort {
	if was == nil {
		return lost
	}
	var has []*model.Endpoint
	if now != nil {
		has = now.Endpoints
	}
	for _, e := range was.Endpoints { // both are sorted
		for len(has) > 0 && has[0] != e && compareEndpoints(has[0], e) < 0 {
			has = has[1:]
		}
		if len(has) > 0 && (has[0] == e || compareEndpoints(has[0], e) == 0) {
			has = has[1:]
		} else if e.Protocol == model.TCP {
			lost = append(lost, toKernel(e.AddrPort))
		}
	}
	return lost
}

// compareEndpoints is the order of [model.Service.Endpoints].
func compareEndpoints(a, b *model.Endpoint) int {
	return cmp.Or(strings.Compare(a.PortName, b.PortName), cmp.Compare(a.Protocol, b.Protocol), a.AddrPort.Compare(b.AddrPort))
}

// parted is an endpoint that left its pool, and to which a client may have been led before.
type parted struct {
	protocol model.Protocol // 0 as long as no client is known
	until    time.Time      // when the last look for its sockets is due
	waits    bool           // sockets are left that may stay; nothing more is done until the endpoint leaves the Snapshot, or Verify asks
}

// A farewell is what the closer remembers from one look to the next. It belongs to one goroutine.
type farewell struct {
	lastLook time.Duration // from the first look for what left to the last
	parted   map[programMemberKey]parted
	all      bool // not every socket's endpoint is noted, so everything is looked at
	allUntil time.Time
	learning bool // what is seen meanwhile is noted
}

func newFarewell(pauses []time.Duration) *farewell {
	f := &farewell{parted: map[programMemberKey]parted{}}
	for _, pause := range pauses {
		f.lastLook += pause
	}
	return f
}

// add has what left be looked for, from now on and a last time after lastLook.
func (f *farewell) add(l left, now time.Time, m memory) error {
	until := now.Add(f.lastLook)
	for _, key := range l.members {
		f.parted[key] = parted{protocol: f.parted[key].protocol, until: until}
	}
	if len(l.lost) > 0 {
		lost := make(map[programAddrPort]bool, len(l.lost))
		for _, endpoint := range l.lost {
			lost[endpoint] = true
		}
		for key, p := range f.parted {
			if p.protocol == model.TCP && lost[key.Endpoint] {
				f.parted[key] = parted{protocol: p.protocol, until: until}
			}
		}
	}
	if l.none() {
		return nil
	}
	complete, err := m.isComplete()
	if complete {
		return nil
	}
	f.all, f.allUntil = true, until
	if err == nil && l.learn {
		err = m.learn()
		f.learning = err == nil
	}
	return unlessFull(err)
}

// wanted says sockets of which protocols must be looked at.
func (f *farewell) wanted(m memory) (tcp, udp bool, err error) {
	for key, p := range f.parted {
		if p.waits {
			continue
		}
		member, err := m.isMember(key)
		if err != nil {
			return false, false, err
		}
		if member { // it is back
			delete(f.parted, key)
			continue
		}
		if p.protocol == 0 {
			if p.protocol, err = m.noted(key); err != nil {
				return false, false, err
			}
			f.parted[key] = p
		}
		tcp, udp = tcp || p.protocol == model.TCP, udp || p.protocol == model.UDP
	}
	return tcp || f.all, udp || f.all, nil
}

// end is told what a look that began then came to: whose sockets stay open, and whether it saw all. It returns the endpoints whose last look it was and
// to which no socket is open: they need not be noted any more.
func (f *farewell) end(began time.Time, stay map[programMemberKey]model.Protocol, ok bool, m memory) (done []programMemberKey, err error) {
	for key, protocol := range stay {
		p, known := f.parted[key]
		p.protocol, p.waits = protocol, p.waits || !known
		f.parted[key] = p
	}
	for key, p := range f.parted {
		if p.waits || began.Before(p.until) {
			continue
		}
		if _, stays := stay[key]; p.protocol != 0 && (stays || !ok) {
			p.waits = true
			f.parted[key] = p
			continue
		}
		delete(f.parted, key)
		if p.protocol != 0 {
			done = append(done, key)
		}
	}
	f.learning = f.learning && ok
	if f.all && !began.Before(f.allUntil) {
		if f.learning {
			err = unlessFull(m.learned())
		}
		f.all, f.learning = false, false
	}
	return done, err
}

// round looks once for what is to be looked for, and returns how many sockets it has closed. It looks at no socket if nobody was led there.
func (c *closer) round(ctx context.Context, f *farewell) (closed int, err error) {
	began := time.Now()
	s, more := c.take()
	err = f.add(more, began, c.memory)
	w := newSweep(c)
	if err == nil {
		w.tcp, w.udp, err = f.wanted(c.memory)
	}
	if err != nil {
		f.learning = false
		return 0, err
	}
	w.learning = f.learning
	if w.tcp || w.udp {
		closed, err = w.run(ctx, s)
	}
	f.learning = w.learning
	done, ended := f.end(began, w.stay, err == nil, c.memory)
	c.finish(done)
	return closed, errors.Join(err, ended)
}

// finish publishes what takeDone returns; but not what has left again meanwhile.
func (c *closer) finish(done []programMemberKey) {
	if len(done) == 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, key := range done {
		c.done[key] = true
	}
	for _, key := range c.wanted.members {
		delete(c.done, key)
	}
}

// takeDone returns endpoints that have left, and no socket with them, once.
func (c *closer) takeDone() []programMemberKey {
	c.mu.Lock()
	defer c.mu.Unlock()
	done := slices.Collect(maps.Keys(c.done))
	clear(c.done)
	return done
}

// unlessFull is nil if an error only says that notes are not complete: no room, or the programs found none.
func unlessFull(err error) error {
	if errors.Is(err, unix.E2BIG) || errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil
	}
	return err
}
