package dptest

import (
	"context"
	"encoding/binary"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"github.com/endpointd/endpointd/internal/dataplane"
	"github.com/endpointd/endpointd/internal/model"
)

// A saboteur is a data plane that is wrong in one way, and the rows that must notice.
type saboteur struct {
	name   string
	lie    func(patch, endpoints string) (string, string)
	wrap   func(dataplane.Proxier) dataplane.Proxier
	harm   func() error // to Node's nftables
	fails  []string     // nil = all rows but those that expect nothing
	passes []string     // rows that it gets right, so that the others fail for the reason meant
	alone  bool         // another row would help
}

func endpointsLie(f func(endpoints string) string) func(string, string) (string, string) {
	return func(patch, endpoints string) (string, string) { return patch, f(endpoints) }
}

func patchLie(old, replacement string) func(string, string) (string, string) {
	return func(patch, endpoints string) (string, string) {
		return strings.ReplaceAll(patch, old, replacement), endpoints
	}
}

// withoutWords removes what is said of endpoints, if it begins with one of these.
func withoutWords(prefixes ...string) func(string, string) (string, string) {
	return endpointsLie(func(endpoints string) string {
		var kept []string
		for word := range strings.FieldsSeq(endpoints) {
			name, rest, _ := strings.Cut(word, ":")
			more := slices.DeleteFunc(strings.Split(rest, ","), func(s string) bool {
				return s == "" || slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(s, p) })
			})
			if len(more) > 0 {
				name += ":" + strings.Join(more, ",")
			}
			kept = append(kept, name)
		}
		return strings.Join(kept, " ")
	})
}

func saboteurs() []saboteur {
	const (
		everywhere = "every frontend leads to all endpoints, from everywhere"
		unready    = "an endpoint that is not ready gets nothing"
		none       = "no endpoints: refused at once"
		local      = "external policy Local: clients from outside reach endpoints here, with their own address"
	)
	return []saboteur{
		{name: "does nothing", wrap: func(p dataplane.Proxier) dataplane.Proxier { return idle{p} }},
		{
			name: "leads everything to one endpoint", passes: []string{none},
			lie: endpointsLie(func(endpoints string) string {
				first, _, _ := strings.Cut(endpoints, " ")
				return first
			}),
			fails: []string{everywhere, "the choice is fair", "endpoints come and go", "internal policy Local: only endpoints on this node"},
		},
		{
			name: "takes no notice of conditions", lie: withoutWords("notready", "terminating", "gone"), passes: []string{everywhere},
			fails: []string{
				unready, "a terminating endpoint gets nothing while another is ready", "serving terminating endpoints are used when none is ready",
				none, "affinity: it ends when the endpoint is not ready, and only then",
			},
		},
		{
			name: "takes no notice of policies", lie: patchLie("TrafficPolicy: Local", "TrafficPolicy: Cluster"), passes: []string{everywhere},
			fails: []string{
				local, "internal policy Local: only endpoints on this node", "internal policy Local, no endpoint here: dropped",
				"external policy Local, no endpoint here: dropped", "both policies Local", "a policy changes while there are clients",
			},
		},
		{
			name: "takes no notice of hints", lie: withoutWords("zones", "nodes"), passes: []string{everywhere},
			fails: []string{
				"zone hints keep traffic in the zone", "node hints keep traffic on the node",
				"node hints that leave nobody for this node: zone hints", "hints and external policy Local",
			},
		},
		{
			name: "has no affinity", lie: patchLie("sessionAffinity: ClientIP", "sessionAffinity: None"), passes: []string{everywhere},
			fails: []string{
				"affinity: a client stays with its endpoint", "affinity: it ends when the endpoint is not ready, and only then",
				"affinity: switched on and off while there are clients", "affinity and external policy Local",
			},
		},
		{
			name: "has affinity that never ends", lie: patchLie("timeoutSeconds: 1}", "timeoutSeconds: 100}"), passes: []string{everywhere},
			fails: []string{"affinity: it ends when the client has made no connection for so long"},
		},
		{
			name: "takes no notice of source ranges", lie: patchLie("loadBalancerSourceRanges", "loadBalancerClass: x/y, x"), passes: []string{everywhere},
			fails: []string{"source ranges: others get no answer from the load balancer's address", "source ranges and external policy Local"},
		},
		{
			name: "drops instead of refusing", passes: []string{everywhere},
			lie: func(patch, endpoints string) (string, string) {
				if endpoints == "" {
					return "spec: {internalTrafficPolicy: Local, externalTrafficPolicy: Local}", "x"
				}
				return patch, endpoints
			},
			fails: []string{none, "internal policy Local, no endpoint at all: refused", "external policy Local, no endpoint at all: refused"},
		},
		{
			name: "refuses instead of dropping", passes: []string{everywhere},
			lie: func(patch, endpoints string) (string, string) {
				if strings.Contains(patch, "Local") && endpoints == "x y" {
					endpoints = ""
				}
				return patch, endpoints
			},
			fails: []string{"internal policy Local, no endpoint here: dropped", "external policy Local, no endpoint here: dropped"},
		},
		{
			name: "always masquerades", harm: func() error {
				return chain("masquerade", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, &expr.Masq{})
			},
			fails: []string{everywhere, local, "both policies Local"}, passes: []string{"internal policy Local, no endpoint at all: refused"},
		},
		{
			name: "lags behind", wrap: func(p dataplane.Proxier) dataplane.Proxier { return &late{Proxier: p} }, alone: true,
			fails: []string{unready, "endpoints come and go", "frontends come and go", "a policy changes while there are clients"},
		},
	}
}

// TestSuiteCanFail holds that wrong data planes are found out.
func TestSuiteCanFail(t *testing.T) {
	t.Parallel()
	byName := map[string]testCase{}
	for _, row := range table() {
		byName[row.name] = row
	}
	for _, sab := range saboteurs() {
		t.Run(sab.name, func(t *testing.T) {
			t.Parallel()
			s := NewSuite(t, Options{New: func(w *World) ([]dataplane.Proxier, error) {
				if sab.harm != nil {
					if err := sab.harm(); err != nil {
						return nil, err
					}
				}
				p, err := newNFTables(w)
				if err == nil && sab.wrap != nil {
					p = sab.wrap(p)
				}
				return []dataplane.Proxier{p}, err
			}})
			s.lie = sab.lie
			if sab.fails == nil {
				sab.fails = slices.Collect(maps.Keys(byName))
				sab.fails = slices.DeleteFunc(sab.fails, func(name string) bool { return name == "a headless Service has no frontends" })
			}
			var rows []testCase
			for _, name := range slices.Concat(sab.fails, sab.passes) {
				if byName[name].run == nil {
					t.Fatalf("no row %q", name)
				}
				rows = append(rows, byName[name])
			}
			atOnce := abreast
			if sab.alone {
				atOnce = 1
			}
			results := s.runAll(t.Context(), rows, atOnce, func(row testCase) time.Duration {
				if slices.Contains(sab.fails, row.name) {
					return 200 * time.Millisecond
				}
				return patience
			})
			for i, failures := range results {
				if must := i < len(sab.fails); must != (len(failures) > 0) {
					t.Errorf("%s: %q: must it fail? %v; failures: %q", sab.name, rows[i].name, must, failures)
				}
			}
		})
	}
}

// idle is a Proxier that does nothing.
type idle struct{ dataplane.Proxier }

func (idle) Sync(context.Context, *model.Snapshot) error { return nil }

// late syncs the Snapshot before.
type late struct {
	dataplane.Proxier
	was *model.Snapshot
}

func (l *late) Sync(ctx context.Context, s *model.Snapshot) error {
	was := l.was
	l.was = s
	if was == nil {
		return nil
	}
	return l.Proxier.Sync(ctx, was)
}

// chain makes a table with one chain and one rule.
func chain(name string, kind nftables.ChainType, hook *nftables.ChainHook, do ...expr.Any) error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: name})
	before := nftables.ChainPriority(*nftables.ChainPriorityNATSource - 1)
	at := c.AddChain(&nftables.Chain{Name: name, Table: table, Type: kind, Hooknum: hook, Priority: &before})
	c.AddRule(&nftables.Rule{Table: table, Chain: at, Exprs: do})
	return c.Flush()
}

// TestLifeCanFail holds the same of what is no row of the table: restarts, damage, needless writes.
func TestLifeCanFail(t *testing.T) {
	t.Parallel()
	restartRow := aloneRows()[0]
	cases := map[string]struct {
		wrap func(dataplane.Proxier) dataplane.Proxier
		try  func(s *Suite) error
	}{
		"takes its rules with it": {
			wrap: func(p dataplane.Proxier) dataplane.Proxier { return leaver{p} },
			try:  func(s *Suite) error { return failed(s.runCase(t.Context(), 1, restartRow, time.Second)) },
		},
		"writes at each Sync": {
			wrap: func(p dataplane.Proxier) dataplane.Proxier { return writer{p} },
			try:  func(s *Suite) error { return s.quiet(t.Context()) },
		},
		"sees no damage": {
			wrap: func(p dataplane.Proxier) dataplane.Proxier { return blind{p} },
			try: func(s *Suite) error {
				row := damageRow("table", func(context.Context) error { return deleteTable() })
				return failed(s.runCase(t.Context(), 1, row, time.Second))
			},
		},
		"leads at random": {
			wrap: func(p dataplane.Proxier) dataplane.Proxier { return p },
			try: func(s *Suite) error {
				to := netip.AddrPortFrom(Numbered(230).ClusterIP(false), Port)
				stop, err := s.Place("y").Serve(walker(0).Target())
				if err != nil {
					return nil
				}
				defer func() { _ = stop() }()
				err = s.Change(t.Context(), func(o *Objects) error { return o.Put(s.World, 230, plain, "x") })
				if err != nil {
					return nil
				}
				told := s.snapshot
				if err := s.Change(t.Context(), func(o *Objects) error { return o.Put(s.World, 230, plain, "y") }); err != nil {
					return nil
				}
				return s.follows(told, s.Outside, model.TCP, to) // it is not what was told that is in force
			},
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := NewSuite(t, Options{New: func(w *World) ([]dataplane.Proxier, error) {
				p, err := newNFTables(w)
				if err != nil {
					return nil, err
				}
				return []dataplane.Proxier{c.wrap(p)}, nil
			}})
			if c.try(s) == nil {
				t.Error("nobody noticed")
			}
		})
	}
}

func failed(failures []string) error {
	if len(failures) == 0 {
		return nil
	}
	return errors.New(failures[0])
}

// leaver takes its rules with it.
type leaver struct{ dataplane.Proxier }

func (l leaver) Close() error { return errors.Join(l.Remove(context.Background()), l.Proxier.Close()) }

// writer writes at each Sync.
type writer struct{ dataplane.Proxier }

func (w writer) Sync(ctx context.Context, s *model.Snapshot) error {
	return errors.Join(w.Proxier.Sync(ctx, s), chain("needless", nftables.ChainTypeFilter, nftables.ChainHookInput, &expr.Immediate{
		Register: 1, Data: binary.BigEndian.AppendUint32(nil, 1),
	}))
}

// blind sees no damage.
type blind struct{ dataplane.Proxier }

func (blind) Verify(context.Context) (bool, error) { return false, nil }
