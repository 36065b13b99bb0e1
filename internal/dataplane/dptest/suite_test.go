package dptest

import (
	"context"
	"errors"
	"log/slog"
	"testing"

	nft "github.com/google/nftables"

	"github.com/endpointd/endpointd/internal/dataplane"
	"github.com/endpointd/endpointd/internal/dataplane/conntrack"
	"github.com/endpointd/endpointd/internal/dataplane/ebpf"
	"github.com/endpointd/endpointd/internal/dataplane/nftables"
	"github.com/endpointd/endpointd/internal/model"
)

func TestMain(m *testing.M) { Main(m, true) }

func newNFTables(*World) (dataplane.Proxier, error) { return nftables.New(nftables.Options{}) }

// newEBPF knows all namespaces of pods, as an agent does of its own.
func newEBPF(w *World) (dataplane.Proxier, error) {
	return ebpf.New(ebpf.Options{
		Cgroups: []string{w.Cgroup}, Pins: w.Pins, Logger: slog.New(slog.DiscardHandler),
		Namespaces: w.Namespaces,
	})
}

// tracked is a Proxier that keeps conntrack right, as an agent does.
type tracked struct {
	dataplane.Proxier
	tracker *conntrack.Tracker
}

func newTracked(w *World) (dataplane.Proxier, error) {
	p, err := newNFTables(w)
	if err != nil {
		return nil, err
	}
	tracker, err := conntrack.New(conntrack.Options{})
	if err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return &tracked{p, tracker}, nil
}

func (t *tracked) Sync(ctx context.Context, s *model.Snapshot) error {
	t.tracker.Expect(s)
	if err := t.Proxier.Sync(ctx, s); err != nil {
		return err
	}
	t.tracker.Applied(nil, s)
	_, err := t.tracker.Reconcile(ctx)
	return err
}

func (t *tracked) Close() error { return errors.Join(t.Proxier.Close(), t.tracker.Close()) }

func compose(makers ...func(w *World) (dataplane.Proxier, error)) func(w *World) ([]dataplane.Proxier, error) {
	return func(w *World) ([]dataplane.Proxier, error) {
		var all []dataplane.Proxier
		for _, make := range makers {
			p, err := make(w)
			if err != nil {
				for _, p := range all {
					err = errors.Join(err, p.Close())
				}
				return nil, err
			}
			all = append(all, p)
		}
		return all, nil
	}
}

func deleteTable() error {
	c, err := nft.New()
	if err != nil {
		return err
	}
	c.DelTable(&nft.Table{Family: nft.TableFamilyINet, Name: nftables.DefaultTable})
	return c.Flush()
}

func damage() map[string]func(ctx context.Context) error {
	return map[string]func(ctx context.Context) error{
		"the table is deleted": func(context.Context) error { return deleteTable() },
		"everything is deleted": func(context.Context) error {
			c, err := nft.New()
			if err != nil {
				return err
			}
			c.FlushRuleset()
			return c.Flush()
		},
	}
}

// TestPackets is the data plane without eBPF.
func TestPackets(t *testing.T) {
	Run(t, Options{New: compose(newTracked), Conntrack: true, Damage: damage()})
}

// TestSockets is the data plane with eBPF.
func TestSockets(t *testing.T) {
	Run(t, Options{New: compose(newTracked, newEBPF), Sockets: true, Conntrack: true, Damage: damage()})
}
