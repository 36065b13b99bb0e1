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

// tracked is a Proxier that tells conntrack, as an agent does.
type tracked struct {
	dataplane.Proxier
	tracker *conntrack.Tracker
}

func (t *tracked) Sync(ctx context.Context, s *model.Snapshot) error {
	t.tracker.Expect(s)
	err := t.Proxier.Sync(ctx, s)
	if err == nil {
		t.tracker.Applied(nil, s)
	}
	return err
}

func (t *tracked) Close() error { return errors.Join(t.Proxier.Close(), t.tracker.Close()) }

// withConntrack adds it to options whose first Proxier is nftables.
func withConntrack(o Options) Options {
	make := o.New
	var tracker *conntrack.Tracker
	o.New = func(w *World) ([]dataplane.Proxier, error) {
		all, err := make(w)
		if err != nil {
			return nil, err
		}
		if tracker, err = conntrack.New(conntrack.Options{}); err != nil {
			return nil, err
		}
		all[0] = &tracked{all[0], tracker}
		return all, nil
	}
	o.Conntrack = func(ctx context.Context) error {
		_, err := tracker.Reconcile(ctx)
		return err
	}
	return o
}

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
	t.Parallel()
	Run(t, withConntrack(Options{New: compose(newNFTables), Damage: damage()}))
}

// TestSockets is the data plane with eBPF.
func TestSockets(t *testing.T) {
	t.Parallel()
	Run(t, withConntrack(Options{New: compose(newNFTables, newEBPF), Sockets: true, Damage: damage()}))
}
