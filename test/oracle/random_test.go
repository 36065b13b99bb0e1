package oracle

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/endpointd/endpointd/internal/dataplane"
	"github.com/endpointd/endpointd/internal/dataplane/dptest"
	"github.com/endpointd/endpointd/internal/dataplane/nftables"
	"github.com/endpointd/endpointd/internal/model"
)

// Sizes of the comparison: rounds, Services, and probes in each round.
const rounds, services, probes = 8, 8, 48

// A probe is a client that dials a frontend of a Service, more than once.
type probe struct {
	client, frontend string
	service          dptest.Numbered
	protocol         model.Protocol
	v6               bool
	patch, endpoints string
}

func (p probe) String() string {
	return fmt.Sprintf("protocol %d, IPv6 %v, from %s to %s of {%s} with endpoints %s", p.protocol, p.v6, p.client, p.frontend, p.patch, p.endpoints)
}

func (p probe) to() (netip.AddrPort, error) { return p.service.Frontend(p.frontend, p.v6) }

// here says whether the client is a pod of this node.
func (p probe) here() bool { return slices.Contains([]string{"a", "b", "c"}, p.client) }

// elsewhere says whether it is a pod of another node.
func (p probe) elsewhere() bool { return slices.Contains([]string{"x", "y", "z"}, p.client) }

// A difference is one that is meant.
type difference struct {
	reason string
	covers func(p probe, ours, theirs *outcome) bool
}

func differences() []difference {
	external := func(p probe) bool { return p.frontend != "cluster" }
	return []difference{
		{
			"kube-proxy masquerades what goes to external addresses, also from this node's pods, whose answers come back through the node anyway",
			func(p probe, ours, theirs *outcome) bool {
				return p.here() && external(p) && ours.same(theirs) && ours.seen["own"] && !ours.seen["node"] && theirs.seen["node"]
			},
		},
		{
			"other nodes' pods are outside to a kube-proxy that detects local traffic by NodeCIDR; with ClusterCIDR they would not be masqueraded and get no answer",
			func(p probe, _, _ *outcome) bool {
				return p.elsewhere() && external(p) && strings.Contains(p.patch, "externalTrafficPolicy: Local")
			},
		},
	}
}

func covered(p probe, ours, theirs *outcome) bool {
	return slices.ContainsFunc(differences(), func(d difference) bool { return d.covers(p, ours, theirs) })
}

// An outcome is what came of a probe so far.
type outcome struct {
	verdict string          // "answered", "refused" or "dropped"
	servers map[string]bool // who answered
	seen    map[string]bool // "own" and "node": the address that they saw
}

func (o *outcome) String() string {
	return fmt.Sprintf("%s by %v, seen as %v", o.verdict, slices.Sorted(maps.Keys(o.servers)), slices.Sorted(maps.Keys(o.seen)))
}

// same says whether the same was reached.
func (o *outcome) same(other *outcome) bool {
	return o.verdict == other.verdict && maps.Equal(o.servers, other.servers)
}

// dial adds one connection. No answer before patience ends is "dropped".
func (o *outcome) dial(w *dptest.World, p probe, patience time.Duration) error {
	to, err := p.to()
	if err != nil {
		return err
	}
	client := w.Place(p.client)
	answer, err := client.Ask(p.protocol, to, patience)
	verdict := "answered"
	switch {
	case errors.Is(err, unix.ECONNREFUSED):
		verdict = "refused"
	case errors.Is(err, os.ErrDeadlineExceeded):
		verdict = "dropped"
	case err != nil:
		return err
	default:
		o.servers[answer.Server] = true
		seen := "node"
		if answer.Seen.Addr() == client.Addr(p.v6) {
			seen = "own"
		}
		if answer.Server != p.client && answer.Server != w.Node.Name { // a pod that reaches itself may see either; to the node, nobody masquerades
			o.seen[seen] = true
		}
	}
	if o.verdict != "" && o.verdict != verdict {
		return fmt.Errorf("%s, then %s", o.verdict, verdict)
	}
	o.verdict = verdict
	return nil
}

const (
	silence  = 250 * time.Millisecond
	patience = 20 * time.Second
	fewest   = 12  // connections that have to agree
	most     = 400 // connections until both have reached every endpoint
)

// compare probes both until they agree, or until chance is no explanation any more.
func compare(ours, theirs *dptest.World, p probe) error {
	worlds := []*dptest.World{ours, theirs}
	var result [2]*outcome
	for _, wait := range []time.Duration{silence, patience} {
		for i, w := range worlds {
			result[i] = &outcome{servers: map[string]bool{}, seen: map[string]bool{}}
			if err := result[i].dial(w, p, wait); err != nil && wait == patience {
				return err
			}
		}
		if result[0].verdict == result[1].verdict && result[0].verdict != "" {
			break // silence may only be slowness if it is not mutual
		}
		if covered(p, result[0], result[1]) {
			return nil
		}
	}
	sticky := strings.Contains(p.patch, "ClientIP")
	for n := 1; n < most && result[0].verdict == "answered" && result[1].verdict == "answered"; n++ {
		if n >= fewest && (sticky || result[0].same(result[1])) {
			break
		}
		for i, w := range worlds {
			if err := result[i].dial(w, p, patience); err != nil {
				return err
			}
		}
	}
	if sticky && result[0].verdict == "answered" && result[1].verdict == "answered" {
		for i := range result {
			if len(result[i].servers) != 1 {
				return fmt.Errorf("not sticky: %v", result)
			}
			result[i].servers = nil // another choice
		}
		if len(result[0].seen) != len(result[1].seen) {
			return nil // led to itself in one of the Worlds
		}
	}
	if result[0].same(result[1]) && maps.Equal(result[0].seen, result[1].seen) || covered(p, result[0], result[1]) {
		return nil
	}
	return fmt.Errorf("ours: %s; kube-proxy: %s", result[0], result[1])
}

// TestRandom puts the same random Services into two Worlds and compares.
func TestRandom(t *testing.T) {
	kubeProxyPath(t)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	ours := dptest.NewSuite(t, dptest.Options{New: func(*dptest.World) ([]dataplane.Proxier, error) {
		p, err := nftables.New(nftables.Options{Untracked: true})
		return []dataplane.Proxier{p}, err
	}})
	theirs := dptest.NewSuite(t, options(t))
	serveAll(t, ours.World)
	serveAll(t, theirs.World)
	for round := range rounds {
		patches, endpoints := map[dptest.Numbered]string{}, map[dptest.Numbered]string{}
		for n := dptest.Numbered(1); n <= services; n++ {
			patches[n], endpoints[n] = dptest.RandomService(random, n), dptest.RandomEndpoints(random)
		}
		for _, s := range []*dptest.Suite{ours, theirs} {
			err := s.Change(t.Context(), func(o *dptest.Objects) error {
				var errs []error
				for n := range patches {
					errs = append(errs, o.Put(s.World, n, patches[n], endpoints[n]))
				}
				return errors.Join(errs...)
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		var wg sync.WaitGroup
		asked := map[probe]bool{} // two at once would be two clients to affinity, which remembers the last choice
		for range probes {
			p := probe{
				client:   []string{"a", "b", "x", "y", "node", "peer", "outside"}[random.IntN(7)],
				frontend: []string{"cluster", "nodeport", "external", "lb", "cluster:81", "extra"}[random.IntN(6)],
				service:  dptest.Numbered(1 + random.IntN(services)),
				protocol: []model.Protocol{model.TCP, model.UDP}[random.IntN(2)],
				v6:       random.IntN(2) == 1,
			}
			key := p
			key.frontend = ""
			if asked[key] {
				continue
			}
			asked[key] = true
			p.patch, p.endpoints = patches[p.service], endpoints[p.service]
			wg.Go(func() {
				if err := compare(ours.World, theirs.World, p); err != nil {
					t.Errorf("seed %d, round %d, %s: %v", seed, round, p, err)
				}
			})
		}
		wg.Wait()
		if t.Failed() {
			return
		}
	}
}

// serveAll has everybody answer on the ports of all Services.
func serveAll(t *testing.T, w *dptest.World) {
	for n := dptest.Numbered(1); n <= services; n++ {
		for _, place := range append(slices.Clone(w.Pods), w.Node, w.Peer) {
			stop, err := place.Serve(n.Target())
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := stop(); err != nil {
					t.Error(err)
				}
			})
		}
	}
}
