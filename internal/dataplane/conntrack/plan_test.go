package conntrack

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/endpointd/endpointd/internal/model"
)

func TestLost(t *testing.T) {
	const (
		src = " 10.2.0.1:4000 "
		vip = "10.96.0.1:53 "
	)
	plain := "dns udp:10.96.0.1:53 udp:192.0.2.1:30053 tcp:10.96.0.1:53 sctp:10.96.0.1:53 >10.1.0.1:53 >10.1.0.2:53"
	for _, test := range []struct {
		name string
		now  []string
		flow string
		lost bool
	}{
		{"leads to an endpoint", []string{plain}, "udp" + src + vip + "10.1.0.2:53", false},
		{"through a node port", []string{plain}, "udp" + src + "192.0.2.1:30053 10.1.0.2:53", false},
		{"the endpoint is gone", []string{plain}, "udp" + src + vip + "10.1.0.3:53", true},
		{"the target port changed", []string{plain}, "udp" + src + vip + "10.1.0.1:5353", true},
		{"was not translated", []string{plain}, "udp" + src + vip + vip, true},
		{"no endpoints any more", []string{"dns udp:10.96.0.1:53"}, "udp" + src + vip + "10.1.0.1:53", true},
		{"no endpoints yet", []string{"dns udp:10.96.0.1:53"}, "udp" + src + vip + vip, true},
		{"the endpoint drains", []string{"dns udp:10.96.0.1:53 >10.1.0.1:53 >10.1.0.2:53,drains"}, "udp" + src + vip + "10.1.0.2:53", false},
		{"the endpoint is not ready", []string{"dns udp:10.96.0.1:53 >10.1.0.1:53 >10.1.0.2:53,unready"}, "udp" + src + vip + "10.1.0.2:53", true},
		{"the endpoint's process ended", []string{"dns udp:10.96.0.1:53 >10.1.0.1:53 >10.1.0.2:53,dead"}, "udp" + src + vip + "10.1.0.2:53", true},
		{"the endpoint is in another zone", []string{"dns udp:10.96.0.1:53 >10.1.0.1:53 >10.1.0.2:53,far"}, "udp" + src + vip + "10.1.0.2:53", false},
		{"the model uses what does not serve", []string{"dns udp:10.96.0.1:53 >10.1.0.1:53,only"}, "udp" + src + vip + "10.1.0.1:53", false},
		{"an endpoint of another port", []string{plain, "b udp:10.96.0.2:53 >10.1.0.9:53"}, "udp" + src + vip + "10.1.0.9:53", true},
		{"its source may not come", []string{"dns udp:10.96.0.1:53 >10.1.0.1:53 from:10.3.0.0/16"}, "udp" + src + vip + "10.1.0.1:53", true},
		{"its source may come", []string{"dns udp:10.96.0.1:53 >10.1.0.1:53 from:10.3.0.0/16 from:10.2.0.0/16"}, "udp" + src + vip + "10.1.0.1:53", false},
		{"IPv6", []string{"dns udp:[fd00:96::1]:53 >[fd00:1::1]:53"}, "udp [fd00:2::1]:4000 [fd00:96::1]:53 [fd00:1::1]:53", false},
		{"IPv6, the endpoint is gone", []string{"dns udp:[fd00:96::1]:53 >[fd00:1::1]:53"}, "udp [fd00:2::1]:4000 [fd00:96::1]:53 [fd00:1::2]:53", true},

		{"directly to a pod", []string{plain}, "udp" + src + "10.1.0.1:53 10.1.0.1:53", false},
		{"directly to a pod that is gone", []string{plain}, "udp" + src + "10.1.0.7:53 10.1.0.7:53", false},
		{"from a Service's address", []string{plain}, "udp 10.96.0.1:53 10.2.0.1:4000 10.2.0.1:4000", false},
		{"a host port", []string{plain}, "udp" + src + "192.0.2.1:8053 10.1.0.1:53", false},
		{"somebody else's NAT", []string{plain}, "udp" + src + "203.0.113.1:53 10.1.0.1:53", false},
		{"another port of a node's address in the Services' range", []string{plain}, "udp" + src + "10.96.255.1:53 10.1.0.1:53", false},
		{"a ClusterIP that is gone", []string{plain}, "udp" + src + "10.96.0.9:53 10.1.0.1:53", true},
		{"a port that is gone", []string{plain}, "udp" + src + "10.96.0.1:5353 10.1.0.1:53", true},
		{"a ClusterIP that nobody translated", []string{plain}, "udp" + src + "10.96.0.9:53 10.96.0.9:53", false},
		{"a ClusterIP of another proxy", []string{plain, "b other:10.96.0.9"}, "udp" + src + "10.96.0.9:53 10.1.0.1:53", false},
		{"a node port of another Service that went lately", []string{plain}, "udp" + src + "192.0.2.1:30099 10.1.0.5:53", true},
		{"that node port to something else", []string{plain}, "udp" + src + "192.0.2.1:30099 10.1.0.6:53", false},

		{"TCP, established to an endpoint that is gone", []string{plain}, "tcp" + src + vip + "10.1.0.3:53 answered", false},
		{"TCP, a SYN to an endpoint that is gone", []string{plain}, "tcp" + src + vip + "10.1.0.3:53", true},
		{"TCP, a SYN to an endpoint", []string{plain}, "tcp" + src + vip + "10.1.0.2:53", false},
		{"TCP, a SYN to one that drains", []string{"dns tcp:10.96.0.1:53 >10.1.0.1:53,drains"}, "tcp" + src + vip + "10.1.0.1:53", false},
		{"TCP, established to a Service that is gone", []string{plain}, "tcp" + src + "10.96.0.9:53 10.1.0.3:53 answered", false},
		{"SCTP, answered, not ready", []string{"dns sctp:10.96.0.1:53 >10.1.0.1:53 >10.1.0.2:53,unready"}, "sctp" + src + vip + "10.1.0.2:53 answered", false},
		{"SCTP, not answered, not ready", []string{"dns sctp:10.96.0.1:53 >10.1.0.1:53 >10.1.0.2:53,unready"}, "sctp" + src + vip + "10.1.0.2:53", true},
		{"SCTP, answered, the endpoint is gone", []string{plain}, "sctp" + src + vip + "10.1.0.3:53 answered", true},
	} {
		t.Run(test.name, func(t *testing.T) {
			now := worldOf(test.now...)
			now.network.NodePortAddrs = append(now.network.NodePortAddrs, netip.MustParseAddr("10.96.255.1"))
			from := compare(nil, now, now.changed(nil))
			j := judge{
				now: now, network: &now.network, owned: from.owned, others: from.others,
				graves: map[frontend]grave{keyOf("udp:192.0.2.1:30099"): {endpoints: []netip.AddrPort{netip.MustParseAddrPort("10.1.0.5:53")}}},
			}
			if lost := j.lost(flowOf(test.flow)); lost != test.lost {
				t.Errorf("lost: %v, want %v", lost, test.lost)
			}
		})
	}
}

// TestLostToBoth holds that a flow that fits what comes into force is left alone as well.
func TestLostToBoth(t *testing.T) {
	now, next := worldOf("dns udp:10.96.0.1:53 >10.1.0.1:53"), worldOf("dns udp:10.96.0.1:53 >10.1.0.2:53")
	j := judge{now: now, next: next, network: &now.network, owned: compare(nil, now, now.changed(nil)).owned}
	for endpoint, want := range map[string]bool{"10.1.0.1:53": false, "10.1.0.2:53": false, "10.1.0.3:53": true} {
		if lost := j.lost(flowOf("udp 10.2.0.1:4000 10.96.0.1:53 " + endpoint)); lost != want {
			t.Errorf("to %s: lost %v, want %v", endpoint, lost, want)
		}
	}
}

func worldOf(services ...string) *world {
	var all []*model.Service
	for _, s := range services {
		all = append(all, service(s))
	}
	return newWorld(all...)
}

// keyOf reads "udp:ADDR:PORT".
func keyOf(s string) frontend {
	for key := range worldOf("any " + s).owners {
		return key
	}
	panic(s)
}

func TestCompare(t *testing.T) {
	for _, test := range []struct {
		name         string
		was, now     []string
		look, graves []string
	}{
		{"the same words are another Service, but no flow changes", []string{"a udp:10.96.0.1:53 >10.1.0.1:53"}, []string{"a udp:10.96.0.1:53 >10.1.0.1:53"}, nil, nil},
		{"endpoint added", []string{"a udp:10.96.0.1:53 >10.1.0.1:53"}, []string{"a udp:10.96.0.1:53 >10.1.0.1:53 >10.1.0.2:53"}, nil, nil},
		{"endpoint drains", []string{"a udp:10.96.0.1:53 >10.1.0.1:53 >10.1.0.2:53"}, []string{"a udp:10.96.0.1:53 >10.1.0.1:53 >10.1.0.2:53,drains"}, nil, nil},
		{"endpoint moves behind a zone", []string{"a udp:10.96.0.1:53 >10.1.0.1:53"}, []string{"a udp:10.96.0.1:53 >10.1.0.1:53,far >10.1.0.2:53"}, nil, nil},
		{
			"endpoint gone", []string{"a udp:10.96.0.1:53 udp:192.0.2.1:30053 sctp:10.96.0.1:53 tcp:10.96.0.1:53 >10.1.0.1:53 >10.1.0.2:53"},
			[]string{"a udp:10.96.0.1:53 udp:192.0.2.1:30053 sctp:10.96.0.1:53 tcp:10.96.0.1:53 >10.1.0.2:53"},
			[]string{"sctp:10.96.0.1:53", "tcp:10.96.0.1:53", "udp:10.96.0.1:53", "udp:192.0.2.1:30053"}, nil,
		},
		{"endpoint not ready", []string{"a udp:10.96.0.1:53 >10.1.0.1:53"}, []string{"a udp:10.96.0.1:53 >10.1.0.1:53,unready"}, []string{"udp:10.96.0.1:53"}, nil},
		{
			"an endpoint that was not ready goes", []string{"a udp:10.96.0.1:53 tcp:10.96.0.1:53 sctp:10.96.0.1:53 >10.1.0.1:53,unready >10.1.0.2:53"},
			[]string{"a udp:10.96.0.1:53 tcp:10.96.0.1:53 sctp:10.96.0.1:53 >10.1.0.2:53"}, []string{"sctp:10.96.0.1:53"}, nil,
		},
		{"endpoint dead", []string{"a tcp:10.96.0.1:53 >10.1.0.1:53"}, []string{"a tcp:10.96.0.1:53 >10.1.0.1:53,dead"}, []string{"tcp:10.96.0.1:53"}, nil},
		{"a pool changes its mind", []string{"a udp:10.96.0.1:53 >10.1.0.1:53,only"}, []string{"a udp:10.96.0.1:53 >10.1.0.1:53,unready"}, []string{"udp:10.96.0.1:53"}, nil},
		{"target port", []string{"a udp:10.96.0.1:53 >10.1.0.1:53"}, []string{"a udp:10.96.0.1:53 >10.1.0.1:54"}, []string{"udp:10.96.0.1:53"}, nil},
		{"first endpoint", []string{"a udp:10.96.0.1:53 tcp:10.96.0.1:53"}, []string{"a udp:10.96.0.1:53 tcp:10.96.0.1:53 >10.1.0.1:53"}, []string{"udp:10.96.0.1:53"}, nil},
		{"created", nil, []string{"a udp:10.96.0.1:53 tcp:10.96.0.1:53 >10.1.0.1:53"}, []string{"udp:10.96.0.1:53"}, nil},
		{"created without endpoints", nil, []string{"a udp:10.96.0.1:53"}, nil, nil},
		{"sources", []string{"a udp:10.96.0.1:53 >10.1.0.1:53"}, []string{"a udp:10.96.0.1:53 >10.1.0.1:53 from:10.0.0.0/8"}, []string{"udp:10.96.0.1:53"}, nil},
		{"deleted", []string{"a udp:10.96.0.1:53 >10.1.0.1:53 >10.1.0.2:53,unready"}, nil, []string{"udp:10.96.0.1:53"}, []string{"udp:10.96.0.1:53 10.1.0.1:53 10.1.0.2:53"}},
		{
			"handed over, and less of it", []string{"a udp:10.96.0.1:53 >10.1.0.1:53"}, []string{"b udp:10.96.0.1:53 >10.1.0.2:53"},
			[]string{"udp:10.96.0.1:53"}, nil,
		},
		{"handed over", []string{"a udp:10.96.0.1:53 >10.1.0.1:53"}, []string{"b udp:10.96.0.1:53 >10.1.0.2:53 >10.1.0.1:53"}, nil, nil},
		{
			"one frontend goes", []string{"a udp:10.96.0.1:53 udp:192.0.2.1:30053 >10.1.0.1:53"}, []string{"a udp:10.96.0.1:53 >10.1.0.1:53"},
			[]string{"udp:192.0.2.1:30053"}, []string{"udp:192.0.2.1:30053 10.1.0.1:53"},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			was, now := worldOf(test.was...), worldOf(test.now...)
			d := compare(was, now, now.changed(was))
			var look, graves []string
			for key := range d.look {
				look = append(look, show(key))
			}
			for key, endpoints := range d.graves {
				line := show(key)
				for _, e := range endpoints {
					line += " " + e.String()
				}
				graves = append(graves, line)
			}
			slices.Sort(look)
			slices.Sort(graves)
			if diff := cmp.Diff(test.look, look); diff != "" {
				t.Errorf("looks at (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(test.graves, graves); diff != "" {
				t.Errorf("graves (-want +got):\n%s", diff)
			}
		})
	}
}

// TestQuestions holds what the kernel is asked.
func TestQuestions(t *testing.T) {
	tr := &Tracker{judge: judge{owned: map[frontend]*model.Service{}, graves: map[frontend]grave{}, others: map[netip.Addr]int{}}, frontends: map[kind]int{}, wake: make(chan struct{}, 1), later: make(chan struct{}, 1)}
	was := worldOf("a tcp:10.96.0.1:53 >10.1.0.1:53")
	tr.applied(nil, was, &was.network, was.changed(nil))
	if n := len(tr.questions(tr.owed)); n != 6 {
		t.Errorf("%d questions at first, want one of each protocol and family", n)
	}
	tr.swept = true
	if got := tr.questions(owed{all: true}); len(got) != 1 || !got[0].unanswered || got[0].protocol != model.TCP {
		t.Errorf("a sweep of a node with TCP alone asks %v, want SYNs that nobody answered", got)
	}
	tr.owed = owed{}
	if got := tr.questions(tr.owed); len(got) != 0 {
		t.Errorf("asks %v, want nothing", got)
	}
	now := worldOf("a tcp:10.96.0.1:53", "b udp:10.96.0.2:53 udp:10.96.0.3:53 >10.1.0.1:53")
	tr.applied(was, now, &now.network, now.changed(was))
	var addrs []string
	for _, q := range tr.questions(tr.owed) {
		addrs = append(addrs, q.describe()+" "+q.to.String())
	}
	slices.Sort(addrs)
	if diff := cmp.Diff([]string{"IPv4 TCP 10.96.0.1", "IPv4 UDP 10.96.0.2", "IPv4 UDP 10.96.0.3"}, addrs); diff != "" {
		t.Errorf("asks (-want +got):\n%s", diff)
	}
	empty := worldOf()
	tr.applied(now, empty, &empty.network, empty.changed(now))
	if len(tr.frontends) != 0 || len(tr.owned) != 0 || len(tr.graves) != 3 || len(tr.questions(owed{all: true})) != 2 {
		t.Errorf("after all Services went: frontends %v, owned %v, graves %v", tr.frontends, tr.owned, tr.graves)
	}
	if g := tr.graves[keyOf("udp:10.96.0.2:53")]; time.Since(g.dug) > time.Minute {
		t.Error("a grave does not know its age")
	}
}
