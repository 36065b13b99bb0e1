package ebpf

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/endpointd/endpointd/internal/model"
)

// Looks for sockets to be closed: at once, and then after each of pauses, because a connect() that chose its endpoint just before the maps
// changed may be seen only later, and one that sent its first packet to nobody sends it again after a second. Then until the next
// change. They never take more than a tenth of the time.
const restFactor = 9

func defaultPauses() []time.Duration {
	return []time.Duration{50 * time.Millisecond, 200 * time.Millisecond, 1100 * time.Millisecond}
}

// A closer closes sockets that were led to an endpoint that is gone: UDP when it has left its pool, TCP when it is in the Snapshot no more, or has left its
// pool and does not even answer the first packet. Whoever connects to an endpoint directly is left alone.
type closer struct {
	log        *slog.Logger
	own        *os.File // network namespace in which it was made
	namespaces func() []string
	memory     memory
	pauses     []time.Duration // between looks

	wake   chan struct{} // holds one token if there is something in wanted
	cancel context.CancelFunc
	ended  chan struct{} // closed when run has returned

	mu       sync.Mutex // guards what follows
	wanted   left
	snapshot *model.Snapshot
	done     map[programMemberKey]bool // endpoints that need not be noted any more
	busy     bool                      // a look is due
}

// memory is what the maps know. It is for several goroutines.
type memory interface {
	// isMember says whether an endpoint is one of a pool.
	isMember(key programMemberKey) (bool, error)
	// connection is where a socket of UDP was led to; the zero value if it was not.
	connection(cookie uint64) (programConnection, error)
	// noted is of which protocol an endpoint of a pool is to which clients were led; 0 if that is not noted.
	noted(key programMemberKey) (model.Protocol, error)
	// note notes it.
	note(key programMemberKey, protocol model.Protocol) error
	// isComplete says whether every socket that was led somewhere has its endpoint noted.
	isComplete() (bool, error)
	// learn must be called before what is missing is noted, and learned when nothing is missing any more. That fails if programs found no room meanwhile.
	learn() error
	learned() error
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
		log: o.Logger, own: own, namespaces: o.Namespaces, memory: m, pauses: o.pauses,
		wake: make(chan struct{}, 1), cancel: cancel, ended: make(chan struct{}),
		done: map[programMemberKey]bool{},
	}
	go c.run(ctx)
	return c, nil
}

func (c *closer) close() {
	c.cancel()
	<-c.ended
	_ = c.own.Close()
}

// look has it look for sockets soon. The maps must be right already.
func (c *closer) look(s *model.Snapshot, l left) {
	c.mu.Lock()
	c.snapshot = s
	c.wanted = c.wanted.or(l)
	for _, key := range l.members {
		delete(c.done, key)
	}
	c.busy = c.busy || !l.none()
	c.mu.Unlock()
	if l.none() {
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
	defer close(c.ended)
	f := newFarewell(c.pauses)
	var rested time.Time // when it may look again
	rounds := c.pauses
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.wake:
			rounds = c.pauses
			timer.Reset(time.Until(rested))
			continue
		case <-timer.C:
		}
		start := time.Now()
		closed, err := c.round(ctx, f)
		if err != nil && ctx.Err() == nil {
			c.log.Error("sockets to endpoints that are gone may stay open", "component", "ebpf", "err", err)
		}
		if closed > 0 {
			c.log.Info("closed sockets whose endpoint is gone", "component", "ebpf", "sockets", closed)
		}
		took := time.Since(start)
		rested = time.Now().Add(restFactor * took)
		if len(rounds) == 0 {
			c.rest()
			continue
		}
		timer.Reset(max(rounds[0], restFactor*took))
		rounds = rounds[1:]
	}
}

// rest notes that nothing is due, if that is so.
func (c *closer) rest() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.busy = !c.wanted.none()
}
