package endpoints

import (
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
)

func in(spec string) (out []zoned) {
	for i, f := range strings.Fields(spec) { // zone or zone>hint
		zone, hint, _ := strings.Cut(f, ">")
		if zone == "-" {
			zone = ""
		}
		out = append(out, zoned{name: fmt.Sprintf("p%02d", i), zone: zone, hint: hint})
	}
	return out
}

func TestAllocate(t *testing.T) {
	half := map[string]float64{"a": 0.5, "b": 0.5}
	tests := []struct {
		name    string
		in      string
		share   map[string]float64
		want    string // hints in order of the endpoints
		problem string
	}{
		{"balanced: everybody at home", "a b a b", half, "a b a b", ""},
		{"all in one zone: half of them work for the other", "a a a a", half, "a a b b", ""},
		{"within the threshold nothing moves", "a>a a>a a>a a>a a>a a>a b>b b>b b>b b>b b>b", half, "a a a a a a b b b b b", ""},
		{"beyond the threshold all is dealt anew", "a>a a>a a>a a>a b>b b>b", half, "a a a b b b", ""},
		{"a new one works at home", "a>a b>b a b>b a>a b>b a>a b>b", half, "a b a b a b a b", ""},
		{"a zone without nodes gives all", "a b c c", half, "a b b a", ""},
		{"shares of three zones", "a a a a a a", map[string]float64{"a": 0.5, "b": 0.25, "c": 0.25}, "", "Unable to allocate minimum required endpoints to each zone without exceeding overload threshold (6 endpoints, 3 zones)"},
		{"fewer endpoints than zones", "a", half, "", "Insufficient number of endpoints (1 endpoints, 2 zones)"},
		{"an endpoint without zone", "a b - b", half, "", "One or more endpoints do not have a zone specified"},
		{"three between two zones cannot be fair", "a b a", half, "", "Unable to allocate minimum required endpoints to each zone without exceeding overload threshold (3 endpoints, 2 zones)"},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			endpoints := in(tc.in)
			hint, problem := allocate(endpoints, zoneShares{share: tc.share})
			if problem != tc.problem {
				t.Fatalf("problem %q, want %q", problem, tc.problem)
			}
			var got []string
			for _, e := range endpoints {
				if problem == "" {
					got = append(got, hint[e.name])
				}
			}
			if s := strings.Join(got, " "); s != tc.want {
				t.Errorf("hints %q, want %q", s, tc.want)
			}
		})
	}
}

// Whatever the numbers: every endpoint gets a zone that has nodes, no zone gets
// less than the threshold allows, the order of the input does not matter, and
// the result stands when it is fed back.
func FuzzAllocate(f *testing.F) {
	for i := range uint64(50) {
		f.Add(i)
	}
	f.Fuzz(func(t *testing.T, seed uint64) {
		r := rand.New(rand.NewPCG(seed, 3))
		share, total := map[string]float64{}, 0.0
		for i := range 2 + r.IntN(4) {
			cpu := float64(1 + r.IntN(16))
			share[fmt.Sprint("z", i)] = cpu
			total += cpu
		}
		for z := range share {
			share[z] /= total
		}
		var in []zoned
		for i := range r.IntN(60) {
			e := zoned{name: fmt.Sprintf("p%02d", i), zone: fmt.Sprint("z", r.IntN(7))}
			if r.IntN(3) == 0 {
				e.hint = fmt.Sprint("z", r.IntN(7))
			}
			in = append(in, e)
		}
		hint, problem := allocate(in, zoneShares{share: share})
		if problem != "" {
			return
		}
		count := map[string]int{}
		for _, e := range in {
			if _, ok := share[hint[e.name]]; !ok {
				t.Fatalf("%s works for %q, which has no nodes", e.name, hint[e.name])
			}
			count[hint[e.name]]++
		}
		for z, s := range share {
			if least := int(math.Ceil(s * float64(len(in)) / (1 + overloadThreshold))); count[z] < least {
				t.Errorf("zone %s gets %d, needs %d of %d", z, count[z], least, len(in))
			}
		}
		r.Shuffle(len(in), func(i, j int) { in[i], in[j] = in[j], in[i] })
		if again, _ := allocate(in, zoneShares{share: share}); !maps.Equal(hint, again) {
			t.Error("the order of the input matters")
		}
		for i := range in {
			in[i].hint = hint[in[i].name]
		}
		if again, _ := allocate(in, zoneShares{share: share}); !maps.Equal(hint, again) {
			t.Errorf("hints do not stand: %v then %v", hint, again)
		}
	})
}
