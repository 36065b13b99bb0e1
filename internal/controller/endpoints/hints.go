package endpoints

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// overloadThreshold is how much more traffic than its share an endpoint may get
// because of hints (KEP-2433, "Topology Aware Hints", 20 %).
const overloadThreshold = 0.2

// zoneShares is each zone's part of the cluster's allocatable CPU; the parts
// add up to 1. Nil with a reason if it cannot be told.
type zoneShares struct {
	share   map[string]float64
	problem string
}

// sharesOf derives the shares from the nodes that take workloads.
func sharesOf(nodes []*corev1.Node) zoneShares {
	milli := map[string]int64{}
	var total int64
	for _, n := range nodes {
		if _, control := n.Labels["node-role.kubernetes.io/control-plane"]; control {
			continue
		}
		ready := nodeReady(n.Status.Conditions)
		if !ready {
			continue
		}
		zone, cpu := n.Labels[corev1.LabelTopologyZone], n.Status.Allocatable.Cpu().MilliValue()
		if zone == "" || cpu == 0 {
			return zoneShares{problem: "Insufficient Node information: allocatable CPU or zone not specified on one or more nodes"}
		}
		milli[zone] += cpu
		total += cpu
	}
	if total == 0 {
		return zoneShares{problem: "Insufficient Node information: allocatable CPU or zone not specified on one or more nodes"}
	}
	if len(milli) < 2 {
		return zoneShares{problem: "Nodes only ready in one zone"}
	}
	s := zoneShares{share: make(map[string]float64, len(milli))}
	for zone, cpu := range milli {
		s.share[zone] = float64(cpu) / float64(total)
	}
	return s
}

func nodeReady(conditions []corev1.NodeCondition) bool {
	i := slices.IndexFunc(conditions, func(c corev1.NodeCondition) bool { return c.Type == corev1.NodeReady })
	return i >= 0 && conditions[i].Status == corev1.ConditionTrue
}

func (s zoneShares) equal(o zoneShares) bool {
	return s.problem == o.problem && maps.Equal(s.share, o.share)
}

// zoned is a ready endpoint: where it is, and for which zone it works now.
type zoned struct {
	name, zone string
	hint       string // "" if none yet
}

// allocate decides for which zone each ready endpoint works, so that no zone
// gets less than its share of CPU asks for, within the overload threshold. What
// is allocated stays as long as that holds; else all is dealt anew: everybody
// works for the own zone, and zones with too many give to those with too few.
// The result has one zone for each endpoint; if hints cannot be given it is nil
// and problem says why. Pure; the order of in does not matter.
func allocate(in []zoned, shares zoneShares) (hint map[string]string, problem string) {
	if shares.share == nil {
		return nil, shares.problem
	}
	n, zones := len(in), len(shares.share)
	if zones > n {
		return nil, fmt.Sprintf("Insufficient number of endpoints (%d endpoints, %d zones)", n, zones)
	}
	desired, least, left := map[string]float64{}, map[string]int{}, n
	for zone, share := range shares.share {
		least[zone] = int(math.Ceil(share * float64(n) / (1 + overloadThreshold)))
		desired[zone] = max(share*float64(n), float64(least[zone]))
		left -= least[zone]
	}
	if left < 0 {
		return nil, fmt.Sprintf("Unable to allocate minimum required endpoints to each zone without exceeding overload threshold (%d endpoints, %d zones)", n, zones)
	}
	in = slices.SortedFunc(slices.Values(in), func(a, b zoned) int { return cmp.Compare(a.name, b.name) })
	for _, e := range in {
		if e.zone == "" {
			return nil, "One or more endpoints do not have a zone specified"
		}
	}
	if kept := keep(in, least, left); kept != nil {
		return kept, ""
	}
	return deal(in, desired, least), ""
}

// keep gives the present hints, and the own zone to endpoints without one, if
// every zone has at least its least and at most left more; else nil.
func keep(in []zoned, least map[string]int, left int) map[string]string {
	hint, count, fresh := map[string]string{}, map[string]int{}, true
	for _, e := range in {
		h := e.hint
		if _, ok := least[h]; !ok {
			h = e.zone
		} else {
			fresh = false
		}
		hint[e.name] = h
		count[h]++
	}
	if fresh {
		return nil // nothing to keep: deal evenly rather than just well enough
	}
	for zone, n := range count {
		if least, ok := least[zone]; !ok || n > least+left {
			return nil
		}
	}
	for zone, least := range least {
		if count[zone] < least {
			return nil
		}
	}
	return hint
}

// deal gives everybody the own zone and then moves endpoints one at a time:
// first from where most can be spared to where fewer than the least are, then
// from the zone that has most above its desired number to the one that lacks
// most, while that brings both closer.
func deal(in []zoned, desired map[string]float64, least map[string]int) map[string]string {
	hint, of := map[string]string{}, map[string][]string{} // zone → endpoints that work for it, in order
	for zone := range desired {
		of[zone] = nil
	}
	for _, e := range in {
		hint[e.name] = e.zone
		of[e.zone] = append(of[e.zone], e.name)
	}
	zones := slices.Sorted(maps.Keys(of))
	// extremes gives the zones with the most and the fewest endpoints beyond a
	// number; zones whose nodes are all gone or not ready need none.
	extremes := func(beyond func(zone string) float64) (most, fewest string, give, take float64) {
		give, take = math.Inf(-1), math.Inf(-1)
		for _, zone := range zones {
			n := float64(len(of[zone])) - beyond(zone)
			if n > give {
				most, give = zone, n
			}
			if _, alive := desired[zone]; alive && -n > take {
				fewest, take = zone, -n
			}
		}
		return most, fewest, give, take
	}
	move := func(from, to string) {
		last := len(of[from]) - 1
		moved := of[from][last]
		of[from], of[to] = of[from][:last], append(of[to], moved)
		hint[moved] = to
	}
	for {
		most, fewest, _, lack := extremes(func(zone string) float64 { return float64(least[zone]) })
		if lack <= 0 {
			break
		}
		move(most, fewest)
	}
	for {
		most, fewest, give, take := extremes(func(zone string) float64 { return desired[zone] })
		_, alive := desired[most]
		if give <= 0 || alive && (give < 1 && take < 1 || give < 0.5 || take < 0.5) {
			return hint
		}
		move(most, fewest)
	}
}
