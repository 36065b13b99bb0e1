package ebpf

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/endpointd/endpointd/internal/model"
)

// BenchmarkConnect is connect() of TCP within a namespace, as medians: to an endpoint from a cgroup without programs, to an endpoint, and to
// a Service. A round has some of each, so that what else the machine does is the same for all.
func BenchmarkConnect(b *testing.B) {
	for _, services := range []int{1, 30000} {
		b.Run(fmt.Sprint(services), func(b *testing.B) {
			p, bare, hooked := newPlace(b), newCgroup(b), newCgroup(b)
			n := newNode(b, func(o *Options) { o.Cgroups, o.Logger = []string{hooked}, quiet() })
			for number := range services {
				n.lean(1+number, 1)
			}
			n.sync()
			direct := netip.AddrPortFrom(endpointIP(false, 1), targetPort)
			took := map[string][]time.Duration{}
			for b.Loop() {
				for name, c := range map[string]struct {
					cgroup string
					to     netip.AddrPort
				}{"bare": {bare, direct}, "direct": {hooked, direct}, "service": {hooked, at(clusterIP(false, services))}} {
					inCgroup(b, c.cgroup, func() { took[name] = append(took[name], connects(b, p, c.to)...) })
				}
			}
			median := map[string]float64{}
			for name, all := range took {
				slices.Sort(all)
				median[name] = float64(all[len(all)/2])
				b.ReportMetric(median[name], "ns/"+name)
			}
			b.ReportMetric(median["bare"]/median["service"], "service-rate")
			b.ReportMetric(median["bare"]/median["direct"], "direct-rate")
		})
	}
}

// connects makes some connections one after another, and returns how long each took.
func connects(b *testing.B, p *place, to netip.AddrPort) (took []time.Duration) {
	address := toSockaddr(to, false)
	p.do(b, func() error {
		for range 50 {
			start := time.Now()
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			if err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
				return err
			}
			if err := unix.Connect(fd, address); err != nil {
				return err
			}
			if err := unix.Close(fd); err != nil {
				return err
			}
			took = append(took, time.Since(start))
		}
		return nil
	})
	return took
}

// BenchmarkDatagram is sendto() and recvfrom() of a socket that is not connected.
func BenchmarkDatagram(b *testing.B) {
	p := newPlace(b)
	n := newNode(b)
	n.set(spec{n: 1, endpoints: []int{1}})
	n.sync()
	s := newTalker(b, p, false)
	for name, to := range map[string]netip.AddrPort{"direct": netip.AddrPortFrom(endpointIP(false, 1), targetPort), "ClusterIP": at(clusterIP(false, 1))} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				s.ask(to)
			}
		})
	}
}

// BenchmarkChange is Sync when one endpoint is replaced, without model.Build.
func BenchmarkChange(b *testing.B) {
	for _, services := range []int{100, 1000, 10000, 30000} {
		b.Run(fmt.Sprint(services), func(b *testing.B) {
			n := newNode(b, func(o *Options) { o.Logger = quiet() })
			for number := range services {
				n.lean(1+number, 1, 2)
			}
			n.sync()
			var took []time.Duration
			b.ReportAllocs()
			for i := 1; b.Loop(); i++ {
				b.StopTimer()
				n.lean(1+i%services, 1, 3+i/services%2)
				n.snap = model.Build(n.in, n.snap)
				b.StartTimer()
				start := time.Now()
				if err := n.Sync(b.Context(), n.snap); err != nil {
					b.Fatal(err)
				}
				took = append(took, time.Since(start))
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2]), "ns/median")
			b.ReportMetric(float64(took[len(took)*99/100]), "ns/p99")
		})
	}
}

// BenchmarkCold is the first Sync into empty maps, and of a new agent into full ones.
func BenchmarkCold(b *testing.B) {
	for _, c := range []struct{ services, endpoints int }{{10000, 2}, {5000, 50}, {30000, 2}} {
		in := &testNode{t: b}
		var endpoints []int
		for e := range c.endpoints {
			endpoints = append(endpoints, 1+e)
		}
		for number := range c.services {
			in.lean(1+number, endpoints...)
		}
		snap := model.Build(in.in, nil)
		b.Run(fmt.Sprintf("%dx%d", c.services, c.endpoints), func(b *testing.B) {
			var took [2]time.Duration
			for b.Loop() {
				n := newNode(b, func(o *Options) { o.Logger = quiet() })
				for i := range took {
					start := time.Now()
					if err := n.Sync(b.Context(), snap); err != nil {
						b.Fatal(err)
					}
					took[i] += time.Since(start)
					n.restart()
				}
				n.must(n.Remove(b.Context()))
			}
			b.ReportMetric(took[0].Seconds()/float64(b.N), "s/empty")
			b.ReportMetric(took[1].Seconds()/float64(b.N), "s/full")
		})
	}
}

// BenchmarkVerify is Verify when nobody did anything.
func BenchmarkVerify(b *testing.B) {
	for name, compare := range map[string]time.Duration{"links and pins": time.Hour, "and all maps, 10000x2": 1} {
		b.Run(name, func(b *testing.B) {
			n := newNode(b, func(o *Options) { o.Compare, o.Logger = compare, quiet() })
			for number := range 10000 {
				n.lean(1+number, 1, 2)
			}
			n.sync()
			for b.Loop() {
				if _, err := n.Verify(b.Context()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkSweep is one look for sockets to be closed, in a namespace with so many connections of which none is to be closed.
func BenchmarkSweep(b *testing.B) {
	for _, connections := range []int{0, 1000} {
		b.Run(fmt.Sprint(connections), func(b *testing.B) {
			p := newPlace(b)
			var n *testNode
			p.do(b, func() error { n = newNode(b, func(o *Options) { o.Logger = quiet() }); return nil })
			n.set(spec{n: 1, endpoints: []int{1}})
			n.sync()
			for range connections {
				p.mustDial(b, "tcp", at(clusterIP(false, 1)))
			}
			for b.Loop() {
				w := newSweep(n.closer)
				w.tcp, w.udp = true, true
				if closed, err := w.run(b.Context(), n.snap); err != nil || closed > 0 {
					b.Fatal(closed, err)
				}
			}
		})
	}
}

// BenchmarkLeave is how much of a CPU it takes, with all looks for sockets that follow, that an endpoint leaves on a node with so many network
// namespaces: one to which a client was led, and one to which none was.
func BenchmarkLeave(b *testing.B) {
	for _, namespaces := range []int{1, 20, 50} {
		for name, client := range map[string]bool{"unused": false, "used": true} {
			b.Run(fmt.Sprintf("%d/%s", namespaces, name), func(b *testing.B) {
				var paths []string
				var places []*place
				for range namespaces {
					places = append(places, newPlace(b))
					paths = append(paths, places[len(places)-1].path)
				}
				n := newNode(b, func(o *Options) { o.Logger, o.Namespaces = quiet(), func() []string { return paths } })
				n.set(spec{n: 1, endpoints: []int{1, 2}})
				n.sync()
				n.settle()
				var took time.Duration
				for i := 0; b.Loop(); i++ {
					if client {
						_, err := places[0].ask("tcp", at(clusterIP(false, 1)))
						n.must(err)
					}
					n.set(spec{n: 1, endpoints: []int{3 + i%2}})
					n.snap = model.Build(n.in, n.snap)
					start := cpu(b)
					n.must(n.Sync(b.Context(), n.snap))
					<-time.After(2 * time.Second) // and no polling, which takes time of a CPU
					n.settle()
					took += cpu(b) - start
				}
				b.ReportMetric(float64(took.Microseconds())/float64(b.N), "cpu-us/change")
			})
		}
	}
}

// cpu is what this process has used.
func cpu(b *testing.B) time.Duration {
	var r unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &r); err != nil {
		b.Fatal(err)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}
