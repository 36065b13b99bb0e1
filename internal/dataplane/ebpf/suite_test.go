package ebpf

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/endpointd/endpointd/internal/dataplane"
	"github.com/endpointd/endpointd/internal/dataplane/dptest"
	"github.com/endpointd/endpointd/internal/dataplane/nftables"
	"github.com/endpointd/endpointd/internal/model"
)

// TestSuite is everybody's suite. Nobody uses eBPF without nftables, which forwards for clients elsewhere, and rejects.
func TestSuite(t *testing.T) {
	dptest.NeedBPF(t)
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	var p *Proxier
	dptest.Run(t, dptest.Options{
		New: func(w *dptest.World) ([]dataplane.Proxier, error) {
			rules, err := nftables.New(nftables.Options{Logger: log, Untracked: true})
			if err != nil {
				return nil, err
			}
			p, err = New(Options{Cgroups: []string{w.Cgroup}, Pins: w.Pins, Namespaces: w.Namespaces, Logger: log, Compare: 1})
			if err != nil {
				return nil, errors.Join(err, rules.Close())
			}
			return []dataplane.Proxier{rules, p}, nil
		},
		Sockets: true,
		Check: func(ctx context.Context, _ *model.Snapshot) error {
			c, err := p.maps.contents(ctx)
			if err == nil && difference(c, p.table).count() > 0 {
				err = errors.New("the maps are not what is in the table")
			}
			return err
		},
		Damage: map[string]func(ctx context.Context) error{
			"a link detached": func(context.Context) error {
				for _, l := range p.attached.links {
					return l.Detach()
				}
				return errors.New("no link")
			},
			"pins removed": func(context.Context) error {
				names, err := pinned(p.options.Pins)
				for _, name := range names {
					err = errors.Join(err, os.Remove(filepath.Join(p.options.Pins, name)))
				}
				return err
			},
			"a member deleted": func(context.Context) error {
				var key programMemberKey
				if err := p.maps.members.NextKey(nil, &key); err != nil {
					return err
				}
				return p.maps.members.Delete(&key)
			},
		},
	})
}
