package ebpf

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/endpointd/endpointd/internal/dataplane/slots"
	"github.com/endpointd/endpointd/internal/model"
)

// left says of which protocols endpoints left pools, or the Snapshot.
type left struct{ udp, tcp bool }

func everythingLeft() left { return left{udp: true, tcp: true} }

func (l left) or(other left) left { return left{udp: l.udp || other.udp, tcp: l.tcp || other.tcp} }

// whatLeft follows from a change of slots. An endpoint may leave the Snapshot long after its pool.
func whatLeft(c *slots.Change, was, now *model.Snapshot) left {
	var l left
	for _, s := range c.Slots {
		if s.Was.IsValid() {
			l = l.or(left{udp: s.Protocol == model.UDP, tcp: s.Protocol == model.TCP})
		}
	}
	for key := range now.Changed(was) {
		if l.tcp {
			break
		}
		l.tcp = hasLost(was.Service(key), now.Service(key))
	}
	return l
}

// hasLost says whether a Service had an endpoint of TCP that it has no more. Either may be nil.
func hasLost(was, now *model.Service) bool {
	if was == nil {
		return false
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
			return true
		}
	}
	return false
}

// compareEndpoints is the order of [model.Service.Endpoints].
func compareEndpoints(a, b *model.Endpoint) int {
	return cmp.Or(strings.Compare(a.PortName, b.PortName), cmp.Compare(a.Protocol, b.Protocol), a.AddrPort.Compare(b.AddrPort))
}

// endpointKey has the address, protocol and port of an endpoint.
func endpointKey(e *model.Endpoint) model.FrontendKey {
	return model.FrontendKey{Addr: e.Addr(), Protocol: e.Protocol, Port: e.Port()}
}

// Looks for sockets to be closed: at once, and then after each of pauses, because a connect() that chose its endpoint just before the maps
// changed may be seen only later, and one that sent its first packet to nobody sends it again after a second. Then until the next
// change. They never take more than a tenth of the time.
const restFactor = 9

func pauses() []time.Duration {
	return []time.Duration{50 * time.Millisecond, 200 * time.Millisecond, 1100 * time.Millisecond}
}

// A closer closes sockets that were led to an endpoint that is gone: UDP when it has left its pool, TCP when it is in the Snapshot no more, or has left its
// pool and does not even answer the first packet. Whoever connects to an endpoint directly is left alone.
type closer struct {
	log        *slog.Logger
	own        *os.File // network namespace in which it was made
	namespaces func() []string
	memory     memory

	wake   chan struct{} // holds one token if there is something in wanted
	cancel context.CancelFunc
	done   chan struct{} // closed when run has returned

	mu       sync.Mutex // guards what follows
	wanted   left
	snapshot *model.Snapshot
}

// memory is what the maps know.
type memory interface {
	// isMember says whether an endpoint is one of a pool.
	isMember(key programMemberKey) (bool, error)
	// connection is where a socket of UDP was led to; the zero value if it was not.
	connection(cookie uint64) (programConnection, error)
	// records lends the map of what sockets were told, as a file descriptor.
	records(use func(fd int) error) error
}

// newCloser starts one; close ends it.
func newCloser(o Options, m memory) (*closer, error) {
	own, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, fmt.Errorf("open the network namespace: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	c := &closer{
		log: o.Logger, own: own, namespaces: o.Namespaces, memory: m,
		wake: make(chan struct{}, 1), cancel: cancel, done: make(chan struct{}),
	}
	go c.run(ctx)
	return c, nil
}

func (c *closer) close() {
	c.cancel()
	<-c.done
	_ = c.own.Close()
}

// look has it look for sockets soon. The maps must be right already.
func (c *closer) look(s *model.Snapshot, l left) {
	c.mu.Lock()
	c.snapshot = s
	c.wanted = c.wanted.or(l)
	c.mu.Unlock()
	if l == (left{}) {
		return
	}
	select {
	case c.wake <- struct{}{}:
	default: // one look sees both
	}
}

func (c *closer) take() (*model.Snapshot, left) {
	c.mu.Lock()
	defer c.mu.Unlock()
	l := c.wanted
	c.wanted = left{}
	return c.snapshot, l
}

func (c *closer) run(ctx context.Context) {
	defer close(c.done)
	var current left
	var rested time.Time // when it may look again
	rounds := pauses()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.wake:
			rounds = pauses()
			timer.Reset(time.Until(rested))
			continue
		case <-timer.C:
		}
		s, more := c.take()
		current = current.or(more)
		start := time.Now()
		closed, err := c.sweep(ctx, s, current)
		if err != nil && ctx.Err() == nil {
			c.log.Error("sockets to endpoints that are gone may stay open", "component", "ebpf", "err", err)
		}
		if closed > 0 {
			c.log.Info("closed sockets whose endpoint is gone", "component", "ebpf", "sockets", closed)
		}
		took := time.Since(start)
		rested = time.Now().Add(restFactor * took)
		if len(rounds) == 0 {
			current = left{}
			continue
		}
		timer.Reset(max(rounds[0], restFactor*took))
		rounds = rounds[1:]
	}
}

// candidate is a socket whose endpoint has left its pool.
type candidate struct {
	socket
	namespace *os.File
}

// sweep looks once, and returns how many sockets it has closed. What goes wrong in one namespace does not keep it from the others.
func (c *closer) sweep(ctx context.Context, s *model.Snapshot, l left) (closed int, err error) {
	namespaces, errs := c.open()
	defer func() {
		for _, ns := range namespaces {
			_ = ns.Close()
		}
	}()
	known := map[programMemberKey]bool{}
	var found []candidate
	for _, ns := range namespaces {
		if ctx.Err() != nil {
			return 0, context.Cause(ctx)
		}
		sockets, err := c.suspects(ns, l, known)
		errs = append(errs, err)
		for _, socket := range sockets {
			found = append(found, candidate{socket: socket, namespace: ns})
		}
	}
	if len(found) == 0 {
		return 0, errors.Join(errs...)
	}
	alive := endpointsOf(s, found)
	for _, f := range found {
		if f.protocol == uint8(model.TCP) && alive[f.remote] && (f.state != stateSynSent || f.retries == 0) {
			continue
		}
		if err := destroy(f); err != nil {
			errs = append(errs, err)
			continue
		}
		closed++
	}
	return closed, errors.Join(errs...)
}

// open opens the namespaces, each once.
func (c *closer) open() (namespaces []*os.File, errs []error) {
	paths := []string{fmt.Sprintf("/proc/self/fd/%d", c.own.Fd())}
	if c.namespaces != nil {
		paths = append(paths, c.namespaces()...)
	}
	seen := map[uint64]bool{} // by inode
	for _, path := range paths {
		ns, err := os.Open(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		var s unix.Stat_t
		if err := unix.Fstat(int(ns.Fd()), &s); err != nil || seen[s.Ino] {
			errs = append(errs, err, ns.Close())
			continue
		}
		seen[s.Ino] = true
		namespaces = append(namespaces, ns)
	}
	return namespaces, errs
}

// suspects are the sockets of a namespace whose endpoint has left the pool that they were led to. known is what was found out about endpoints.
func (c *closer) suspects(ns *os.File, l left, known map[programMemberKey]bool) ([]socket, error) {
	d, err := diagnose(ns)
	if err != nil {
		return nil, err
	}
	defer d.close()
	var found []socket
	for _, protocol := range []model.Protocol{model.TCP, model.UDP} {
		if (protocol == model.TCP && !l.tcp) || (protocol == model.UDP && !l.udp) {
			continue
		}
		for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
			var sockets []socket
			err := c.memory.records(func(fd int) (err error) {
				sockets, err = d.connected(family, uint8(protocol), fd)
				return err
			})
			if err != nil {
				return found, err
			}
			for _, s := range sockets {
				right, err := c.isRight(&s, known)
				if err != nil {
					return found, err
				}
				if !right {
					found = append(found, s)
				}
			}
		}
	}
	return found, nil
}

// isRight says whether a socket was not translated, or to an endpoint that is still in the pool.
func (c *closer) isRight(s *socket, known map[programMemberKey]bool) (bool, error) {
	if s.protocol == uint8(model.UDP) {
		to, err := c.memory.connection(s.cookie())
		if err != nil {
			return false, err
		}
		if to.Endpoint == s.remote {
			s.pool = to.Pool
		}
	}
	if s.pool == 0 {
		return true, nil
	}
	key := programMemberKey{Pool: s.pool, Endpoint: s.remote}
	member, ok := known[key]
	if !ok {
		var err error
		if member, err = c.memory.isMember(key); err != nil {
			return false, err
		}
		known[key] = member
	}
	return member, nil
}

// endpointsOf are those of the sockets' TCP endpoints that are somewhere in the Snapshot.
func endpointsOf(s *model.Snapshot, found []candidate) map[programAddrPort]bool {
	alive := map[programAddrPort]bool{}
	wanted := map[model.FrontendKey]programAddrPort{}
	for _, f := range found {
		if f.protocol == uint8(model.TCP) {
			at := fromKernel(f.remote)
			wanted[model.FrontendKey{Addr: at.Addr(), Protocol: model.TCP, Port: at.Port()}] = f.remote
		}
	}
	if len(wanted) == 0 || s == nil {
		return alive
	}
	for service := range s.Services() {
		for _, e := range service.Endpoints {
			if k, ok := wanted[endpointKey(e)]; ok {
				alive[k] = true
			}
		}
	}
	return alive
}

func destroy(f candidate) error {
	d, err := diagnose(f.namespace)
	if err != nil {
		return err
	}
	defer d.close()
	return d.destroy(f.socket)
}
