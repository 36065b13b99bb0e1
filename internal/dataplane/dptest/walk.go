package dptest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/endpointd/endpointd/internal/model"
)

// Sizes of the random walk: Services, steps, and connections after each step.
const walkers, steps, tries = 6, 40, 8

// walk takes Services from state to state at random. After each step, a second Sync must write nothing, what is in the kernel must be what the
// Snapshot says, and connections must go where it says.
func (s *Suite) walk(ctx context.Context, t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	var stops []func() error
	defer func() {
		for _, stop := range stops {
			if err := stop(); err != nil {
				t.Error(err)
			}
		}
	}()
	for number := range walkers {
		for _, place := range append(s.Pods, s.Node, s.Peer) {
			stop, err := place.Serve(walker(number).Target())
			if err != nil {
				t.Fatal(err)
			}
			stops = append(stops, stop)
		}
	}
	for step := range steps {
		if err := s.step(ctx, random); err != nil {
			t.Fatalf("seed %d, step %d: %v", seed, step, err)
		}
	}
	err := s.Change(ctx, func(o *Objects) error {
		for number := range walkers {
			o.Delete(walker(number))
		}
		return nil
	})
	if err != nil {
		t.Errorf("remove all: %v", err)
	}
}

func walker(number int) Numbered { return Numbered(230 + number) }

func (s *Suite) step(ctx context.Context, random *rand.Rand) error {
	var story []string
	err := s.Change(ctx, func(o *Objects) error {
		for range 1 + random.IntN(3) {
			n := walker(random.IntN(walkers))
			patch, endpoints := RandomService(random, n), RandomEndpoints(random)
			if random.IntN(8) == 0 {
				story = append(story, fmt.Sprintf("%d gone", n))
				o.Delete(n)
				continue
			}
			story = append(story, fmt.Sprintf("%d {%s} with %s", n, patch, endpoints))
			if err := o.Put(s.World, n, patch, endpoints); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil {
		err = s.quiet(ctx)
	}
	if err == nil {
		err = s.probe(random)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", strings.Join(story, "; "), err)
	}
	return nil
}

// RandomService is a patch for [Numbered.Service].
func RandomService(random *rand.Rand, n Numbered) string {
	choose := func(words ...string) string { return words[random.IntN(len(words))] }
	spec := []string{
		"internalTrafficPolicy: " + choose("Cluster", "Cluster", "Local"),
		"externalTrafficPolicy: " + choose("Cluster", "Local"),
		"sessionAffinity: " + choose("None", "None", "ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 600}}"),
	}
	if random.IntN(4) == 0 {
		spec = append(spec, "loadBalancerSourceRanges: ["+choose("'10.200.0.100/32', 'fd00:200::100/128'", "'10.244.0.0/16', 'fd00:244::/48'")+"]")
	}
	if random.IntN(5) == 0 {
		spec = append(spec, "externalIPs: null")
	}
	if random.IntN(5) == 0 {
		spec = append(spec, "clusterIPs: ['"+n.ClusterIP(false).String()+"']", "ipFamilies: [IPv4]", "ipFamilyPolicy: SingleStack")
	}
	return "spec: {" + strings.Join(spec, ", ") + "}"
}

// RandomEndpoints are a text for [Numbered.Slices].
func RandomEndpoints(random *rand.Rand) string {
	var words []string
	hints := random.IntN(3) == 0
	for _, name := range []string{"a", "b", "c", "x", "y", "z", "node"} {
		if random.IntN(2) == 0 {
			continue
		}
		var more []string
		if state := []string{"", "", "", "notready", "terminating", "gone"}[random.IntN(6)]; state != "" {
			more = append(more, state)
		}
		if hints {
			more = append(more, "zones="+[]string{"zone-1", "zone-2", "zone-1+zone-2"}[random.IntN(3)])
			if random.IntN(2) == 0 {
				more = append(more, "nodes="+[]string{NodeName, PeerName}[random.IntN(2)])
			}
		}
		word := name
		if len(more) > 0 {
			word += ":" + strings.Join(more, ",")
		}
		words = append(words, word)
	}
	return strings.Join(words, " ")
}

// probe dials as anybody, anywhere, and compares with the Snapshot.
func (s *Suite) probe(random *rand.Rand) error {
	s.mu.Lock()
	snapshot := s.snapshot
	s.mu.Unlock()
	results := make(chan error, tries)
	for range tries {
		client := s.everybody()[random.IntN(9)]
		n := walker(random.IntN(walkers))
		v6 := random.IntN(2) == 0
		protocol := []model.Protocol{model.TCP, model.UDP}[random.IntN(2)]
		to, err := n.Frontend([]string{"cluster", "nodeport", "external", "lb"}[random.IntN(4)], v6)
		if err != nil {
			return err
		}
		go func() { results <- s.follows(snapshot, client, protocol, to) }()
	}
	var errs []error
	for range tries {
		errs = append(errs, <-results)
	}
	return errors.Join(errs...)
}

// follows dials once and compares the outcome with the Snapshot.
func (s *Suite) follows(snapshot *model.Snapshot, client *Place, protocol model.Protocol, to netip.AddrPort) error {
	frontend := find(snapshot, model.FrontendKey{Addr: to.Addr(), Protocol: protocol, Port: to.Port()})
	if frontend == nil {
		return nil // what becomes of it depends on routes
	}
	source := client.Addr(to.Addr().Is6())
	pool := frontend.External
	if client == s.Node || slices.ContainsFunc(snapshot.Network.ClusterCIDRs, func(p netip.Prefix) bool { return p.Contains(source) }) {
		pool = frontend.Internal
	}
	excluded := len(frontend.SourceRanges) > 0 &&
		!slices.ContainsFunc(frontend.SourceRanges, func(p netip.Prefix) bool { return p.Contains(source) })
	var wanted []string
	for _, e := range pool.Endpoints {
		for _, place := range s.everybody() {
			if place.Addr(to.Addr().Is6()) == e.Addr() {
				wanted = append(wanted, place.Name)
			}
		}
	}
	mute := excluded || (len(wanted) == 0 && pool.Empty == model.Drop)
	timeout := patience
	if mute {
		timeout = silence
	}
	answer, err := client.Ask(protocol, to, timeout)
	ok := err == nil && slices.Contains(wanted, answer.Server)
	want := "an answer of " + strings.Join(wanted, " or ")
	switch {
	case excluded && len(wanted) == 0:
		ok, want = err != nil, "no answer"
	case mute:
		ok, want = errors.Is(err, os.ErrDeadlineExceeded), "no answer"
	case len(wanted) == 0:
		ok, want = errors.Is(err, unix.ECONNREFUSED), "a refusal"
	}
	if !ok {
		return fmt.Errorf("%s from %s to %s: %v, %v, want %s", protocolName(protocol), client.Name, to, answer, err, want) //nolint:errorlint // may be nil
	}
	return nil
}

// find is nil if no Service has the frontend.
func find(s *model.Snapshot, key model.FrontendKey) *model.Frontend {
	owner := s.Owner(key)
	if owner == nil {
		return nil
	}
	for _, port := range owner.Ports {
		for i := range port.Frontends {
			if port.Frontends[i].FrontendKey == key {
				return &port.Frontends[i]
			}
		}
	}
	return nil
}
