package dptest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/endpointd/endpointd/internal/dataplane"
	"github.com/endpointd/endpointd/internal/model"
)

// Options say what is tested.
type Options struct {
	// New makes the proxiers for w.Node, in the order in which they are to be synced. It is called again after all of them were closed, for an
	// agent that starts again. It and their methods run on a thread that is in w.Node's namespace; threads of their own are not.
	New func(w *World) ([]dataplane.Proxier, error)
	// Sockets: clients on this node are translated when they connect, and connections to what is gone are closed. Needs [BPF].
	Sockets bool
	// Conntrack, if not nil, brings what conntrack remembers to what is in force, as New is run; then packets of UDP clients that keep their port go to
	// endpoints that are there. It is called where that is tested, because it costs 40 ms and more on a machine with a big table.
	Conntrack func(ctx context.Context) error
	// Objects, if not nil, is told of objects that changed, as JSON, before a Sync: name → object, nil for one that is gone.
	Objects func(changed map[ObjectName][]byte)
	// AnySource: it doesn't matter which clients are masqueraded, but for those that must not be.
	AnySource bool
	// Check, if not nil, says how what is in the kernel differs from s, as New is run.
	Check func(ctx context.Context, s *model.Snapshot) error
	// Damage is what others may do to what is in the kernel, by name; Verify is to find and repair it. They run as New does.
	Damage map[string]func(ctx context.Context) error
}

// patience is how long anything may take that must happen.
const patience = 20 * time.Second

// A Suite is proxiers in a World, and the objects of the cases.
type Suite struct {
	*World
	options Options
	// lie is what the proxiers are told instead, in tests of the suite itself.
	lie func(patch, endpoints string) (string, string)

	mu       sync.Mutex // guards what follows: one Sync at a time
	proxiers []dataplane.Proxier
	in       model.Input
	snapshot *model.Snapshot // of the last Sync
}

// NewSuite starts the proxiers. They are removed with the test.
func NewSuite(t testing.TB, o Options) *Suite {
	t.Helper()
	if o.Sockets {
		NeedBPF(t)
	}
	s := &Suite{World: NewWorld(t), options: o}
	s.in = s.in.WithNetwork(Network())
	if err := s.open(); err != nil {
		t.Fatalf("start: %v", err)
	}
	t.Cleanup(func() {
		if err := s.remove(); err != nil {
			t.Errorf("remove: %v", err)
		}
	})
	return s
}

func (s *Suite) open() error {
	return s.Node.Enter(func() (err error) {
		s.proxiers, err = s.options.New(s.World)
		return err
	})
}

func (s *Suite) remove() error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.Node.Enter(func() error {
		var errs []error
		for _, p := range s.proxiers {
			errs = append(errs, p.Remove(ctx), p.Close())
		}
		return errors.Join(errs...)
	})
}

// sync is called with mu held.
func (s *Suite) sync(ctx context.Context) error {
	snapshot := model.Build(s.in, s.snapshot)
	s.snapshot = snapshot
	return s.Node.Enter(func() error {
		for _, p := range s.proxiers {
			if err := p.Sync(ctx, snapshot); err != nil {
				return fmt.Errorf("sync: %w", err)
			}
		}
		return nil
	})
}

// Restart closes the proxiers and starts them again, as an agent that was killed: what is in the kernel stays.
func (s *Suite) Restart(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.Node.Enter(func() error {
		var errs []error
		for _, p := range s.proxiers {
			errs = append(errs, p.Close())
		}
		return errors.Join(errs...)
	})
	if err != nil {
		return fmt.Errorf("close: %w", err)
	}
	if err := s.open(); err != nil {
		return fmt.Errorf("start again: %w", err)
	}
	s.snapshot = nil // another process
	return s.sync(ctx)
}

// quiet syncs once more, which must write nothing, and compares what is in the kernel with the Snapshot.
func (s *Suite) quiet(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	before, err := s.generation()
	if err != nil {
		return err
	}
	if err := s.sync(ctx); err != nil {
		return err
	}
	after, err := s.generation()
	if err != nil {
		return err
	}
	if before != after {
		return fmt.Errorf("a second Sync of the same Snapshot wrote to nftables: generation %d, then %d", before, after)
	}
	return s.Node.Enter(func() error {
		for _, p := range s.proxiers {
			repaired, err := p.Verify(ctx)
			if err == nil && repaired {
				err = errors.New("it repaired something that nobody had touched")
			}
			if err != nil {
				return fmt.Errorf("verify: %w", err)
			}
		}
		if s.options.Check != nil {
			return s.options.Check(ctx, s.snapshot)
		}
		return nil
	})
}

// verify repairs; it says whether there was anything to.
func (s *Suite) verify(ctx context.Context) (repaired bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	err = s.Node.Enter(func() error {
		for _, p := range s.proxiers {
			one, err := p.Verify(ctx)
			if err != nil {
				return fmt.Errorf("verify: %w", err)
			}
			repaired = repaired || one
		}
		return nil
	})
	return repaired, err
}

// generation counts the transactions of nftables in Node.
func (s *Suite) generation() (uint32, error) {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: int(s.Node.NetNS())})
	if err != nil {
		return 0, fmt.Errorf("open netlink: %w", err)
	}
	defer func() { _ = c.Close() }()
	answers, err := c.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETGEN, Flags: netlink.Request},
		Data:   make([]byte, nfgenmsg),
	})
	if err != nil {
		return 0, fmt.Errorf("generation of nftables: %w", err)
	}
	for _, answer := range answers {
		attributes, err := netlink.NewAttributeDecoder(answer.Data[nfgenmsg:])
		if err != nil {
			return 0, err
		}
		attributes.ByteOrder = binary.BigEndian
		for attributes.Next() {
			if attributes.Type() == unix.NFTA_GEN_ID {
				return attributes.Uint32(), nil
			}
		}
	}
	return 0, errors.New("generation of nftables: the kernel does not say")
}

// nfgenmsg is the size of the header of nfnetlink messages.
const nfgenmsg = 4
