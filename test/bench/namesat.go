package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/miekg/dns"
	discovery "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// corefile is kubeadm's, but for what a single measurement has no use: health checks, metrics, reloading and the look for loops.
const corefile = `.:%d {
  bind 127.0.0.1
  errors
  kubernetes cluster.local in-addr.arpa ip6.arpa {
    kubeconfig %s
    pods insecure
    fallthrough in-addr.arpa ip6.arpa
    ttl 30
  }
  forward . %s {
    max_concurrent 1000
  }
  cache 30 {
    disable success cluster.local
    disable denial cluster.local
  }
  loadbalance
}
`

// A nameServer is one that is measured.
type nameServer struct {
	name    string
	addr    netip.AddrPort
	process *process
}

// startNames starts one on a port of loopback. It has read everything when it answers for the last Service.
func (b *bench) startNames(ctx context.Context, name, dir, upstream string) (*nameServer, error) {
	port, err := freePort(ctx)
	if err != nil {
		return nil, err
	}
	s := &nameServer{name: name, addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(port))} //nolint:gosec // a port
	program, args := b.binary, []string{"dns", "--kubeconfig", b.server.kubeconfig(), "--listen", s.addr.String(), "--dns-upstream", upstream}
	if name == coreDNSName {
		file := filepath.Join(dir, "Corefile")
		if err := os.WriteFile(file, fmt.Appendf(nil, corefile, port, b.server.kubeconfig(), upstream), 0o600); err != nil {
			return nil, err
		}
		program, args = b.coreDNS, []string{"-conf", file}
	}
	if s.process, err = start(name, filepath.Join(dir, strconv.Itoa(port)+".log"), b.server.environment(), program, args...); err != nil {
		return nil, err
	}
	last := "f" + strconv.Itoa(b.fill.made.services-1) + "." + namespace + ".svc.cluster.local."
	for until := time.Now().Add(readyWait); time.Now().Before(until); {
		if answer, err := s.ask(ctx, last); err == nil && answer.Rcode == dns.RcodeSuccess && len(answer.Answer) == 1 {
			return s, nil
		}
		if err := pause(ctx, 20*time.Millisecond); err != nil {
			break
		}
	}
	return nil, errors.Join(fmt.Errorf("%s does not answer for %s%s", name, last, s.process.tail()), s.process.kill())
}

// freePort is a port of loopback that nobody has.
func freePort(ctx context.Context) (int, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	return l.Addr().(*net.TCPAddr).Port, l.Close() //nolint:forcetypeassert // of a TCP listener
}

func (s *nameServer) ask(ctx context.Context, name string) (*dns.Msg, error) {
	m := new(dns.Msg)
	m.SetQuestion(name, dns.TypeA)
	answer, _, err := (&dns.Client{Timeout: time.Second}).ExchangeContext(ctx, m, s.addr.String())
	return answer, err
}

// namesAt measures both servers with the load as it is.
func (b *bench) namesAt(ctx context.Context, services int) (err error) {
	dir := filepath.Join(b.dir, "names-"+strconv.Itoa(services))
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	if err := b.namesEcho(ctx, dir, services); err != nil {
		return err
	}
	upstream, address, err := b.startPlain(ctx, dir, upstreamCommand)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, upstream.kill()) }()
	if err := b.namesTogether(ctx, dir, address, services); err != nil {
		return err
	}
	return b.namesChanges(ctx, dir, address, services)
}

// startPlain starts this program as a server that needs nothing, and says where it is.
func (b *bench) startPlain(ctx context.Context, dir, command string) (*process, string, error) {
	where := make(chan string, 1)
	p, err := spot{}.start(&process{name: command, heard: func(line string) { where <- line }}, filepath.Join(dir, command+".log"), nil, b.self, command)
	if err != nil {
		return nil, "", err
	}
	if _, err := p.ready(ctx, readyWait); err != nil {
		return nil, "", errors.Join(err, p.kill())
	}
	return p, <-where, nil
}

// namesEcho measures what no server of Go's can do without: a packet that comes and one that goes.
func (b *bench) namesEcho(ctx context.Context, dir string, services int) (err error) {
	p, address, err := b.startPlain(ctx, dir, echoCommand)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.kill()) }()
	addr, err := netip.ParseAddrPort(address)
	if err != nil {
		return err
	}
	k := kindOfQuestion{name: "packets that are sent back as they are", names: []string{"f0." + namespace + ".svc.cluster.local."}, rtype: dns.TypeA, size: 1232}
	return b.namesRates(ctx, []*nameServer{{name: "echo", addr: addr, process: p}}, &k, services)
}

// namesTogether measures what both are asked in turn.
func (b *bench) namesTogether(ctx context.Context, dir, upstream string, services int) (err error) {
	var servers []*nameServer
	defer func() {
		for _, s := range servers {
			err = errors.Join(err, s.process.kill())
		}
	}()
	for _, name := range namesColumns() {
		s, err := b.startNames(ctx, name, dir, upstream)
		if err != nil {
			return err
		}
		servers = append(servers, s)
	}
	if err := pause(ctx, b.settle); err != nil {
		return err
	}
	if err := b.namesMemory(servers, services); err != nil {
		return err
	}
	for _, k := range namesKinds(services) {
		if err := b.namesRates(ctx, servers, &k, services); err != nil {
			return err
		}
	}
	return nil
}

func namesColumns() []string { return []string{oursDNSName, coreDNSName} }

// against compares a row with CoreDNS, less being better or more.
func (r *Row) against(better string, ratio float64) {
	ours, theirs := r.Values[oursDNSName].Value, r.Values[coreDNSName].Value
	if ours <= 0 || theirs <= 0 {
		return
	}
	r.Ahead.Ours = theirs / ours
	if better == "more" {
		r.Ahead.Ours = ours / theirs
	}
	if ratio > 0 {
		r.Targets = append(r.Targets, Target{fmt.Sprintf("%s ≤ %s of CoreDNS's", oursDNSName, number(ratio)), oursDNSName, ours <= ratio*theirs})
	}
}

// namesRates asks one kind of question, many at once and then one at a time.
func (b *bench) namesRates(ctx context.Context, servers []*nameServer, k *kindOfQuestion, services int) error {
	packets, err := k.packets()
	if err != nil {
		return err
	}
	section := Section{Title: fmt.Sprintf("DNS, %s, %d Services", k.name, services)}
	for _, s := range servers {
		section.Columns = append(section.Columns, s.name)
	}
	for _, mode := range []struct {
		name            string
		sockets, window int
	}{{"2 × 64 questions at once", 2, 64}, {"one question at a time", 1, 1}} {
		type run struct{ cpu, rate, p50, p99 []float64 }
		runs := map[string]*run{}
		samples := map[string]int{}
		for round := range b.rounds {
			for i := range servers {
				s := servers[(i+round)%len(servers)]
				result, used, err := b.namesRate(ctx, s, namesSpec{
					Server: s.addr, Questions: packets, Sockets: mode.sockets, Window: mode.window, Warm: loadWarm, For: b.asking, RCode: k.rcode, Fresh: k.fresh,
				})
				if err != nil {
					return err
				}
				if result.Wrong > 0 || result.Lost > 0 {
					b.note("%s, %s, %s: %d of %d answers were not right, %d questions without an answer", section.Title, mode.name, s.name, result.Wrong, result.All, result.Lost)
				}
				r := runs[s.name]
				if r == nil {
					r = &run{}
					runs[s.name] = r
				}
				r.cpu = append(r.cpu, used)
				r.rate, r.p50, r.p99 = append(r.rate, float64(result.Answers)/result.Seconds), append(r.p50, result.P50), append(r.p99, result.P99)
				samples[s.name] += result.Answers
				b.say("%s: %s: %s: %s µs CPU an answer, %s answers a second", section.Title, mode.name, s.name, number(used), number(float64(result.Answers)/result.Seconds))
			}
		}
		add := func(name, unit, better string, ratio float64, of func(*run) []float64) {
			row := Row{Name: mode.name + ": " + name, Unit: unit, Values: map[string]Value{}}
			for name, r := range runs {
				row.Values[name] = median(of(r), samples[name])
			}
			row.against(better, ratio)
			section.Rows = append(section.Rows, row)
		}
		add("CPU an answer", "µs", "less", k.target, func(r *run) []float64 { return r.cpu })
		add("answers", "1/s", "more", 0, func(r *run) []float64 { return r.rate })
		add("p50", "µs", "less", 0, func(r *run) []float64 { return r.p50 })
		add("p99", "µs", "less", 0, func(r *run) []float64 { return r.p99 })
	}
	b.report.Sections = append(b.report.Sections, section)
	return nil
}

// namesRate is one measurement, and the CPU that the server used for each answer, in microseconds.
func (b *bench) namesRate(ctx context.Context, s *nameServer, spec namesSpec) (*namesResult, float64, error) {
	ctx, cancel := context.WithTimeout(ctx, spec.Warm+spec.For+30*time.Second)
	defer cancel()
	text, err := json.Marshal(spec)
	if err != nil {
		return nil, 0, err
	}
	before, err := s.process.cpu()
	if err != nil {
		return nil, 0, err
	}
	result := &namesResult{}
	err = spot{}.on(func() error {
		cmd := spot{}.command(ctx, nil, b.self, namesCommand)
		cmd.Stdin = bytes.NewReader(text)
		var log bytes.Buffer
		cmd.Stderr = &log
		out, err := cmd.Output()
		if err != nil {
			return fmt.Errorf("DNS client: %w\n%s", err, log.Bytes())
		}
		return json.Unmarshal(out, result)
	})
	if err != nil {
		return nil, 0, err
	}
	after, err := s.process.cpu()
	if err != nil {
		return nil, 0, err
	}
	if result.All == 0 {
		return nil, 0, fmt.Errorf("%s answers nothing%s", s.name, s.process.tail())
	}
	return result, float64(after-before) / float64(time.Microsecond) / float64(result.All), nil
}

func (b *bench) namesMemory(servers []*nameServer, services int) error {
	section := Section{Title: fmt.Sprintf("DNS, memory at rest, %d Services", services), Columns: namesColumns()}
	rows := []Row{{Name: "resident", Unit: "MB", Values: map[string]Value{}}, {Name: "of it not pages of files", Unit: "MB", Values: map[string]Value{}}}
	for _, s := range servers {
		m, err := s.process.memory()
		if err != nil {
			return err
		}
		rows[0].Values[s.name], rows[1].Values[s.name] = median(megabytes(m.now), 1), median(megabytes(m.anonymous), 1)
	}
	rows[0].against("less", 1)
	rows[1].against("less", 0)
	section.Rows = rows
	b.report.Sections = append(b.report.Sections, section)
	return nil
}

// namesChanges writes slices, and asks until the answer is the new one. Each server is alone then: another one that takes the same change in at the
// same moment would have one of two cores.
func (b *bench) namesChanges(ctx context.Context, dir, upstream string, services int) error {
	took := map[string][]float64{}
	for range b.rounds {
		for _, name := range namesColumns() {
			s, err := b.startNames(ctx, name, dir, upstream)
			if err != nil {
				return err
			}
			if err = pause(ctx, 2*time.Second); err == nil {
				var of []float64
				of, err = b.namesFlipped(ctx, s)
				took[name] = append(took[name], of...)
			}
			if err = errors.Join(err, s.process.kill()); err != nil {
				return err
			}
		}
	}
	row := Row{Name: "p50", Unit: "ms", Values: map[string]Value{}}
	high := Row{Name: "p99", Unit: "ms", Values: map[string]Value{}}
	for name, all := range took {
		row.Values[name] = median([]float64{quantile(all, 0.5)}, len(all))
		high.Values[name] = median([]float64{quantile(all, 0.99)}, len(all))
	}
	row.against("less", 0)
	row.Targets = append(row.Targets, Target{oursDNSName + " ≤ 0.3 ms", oursDNSName, row.Values[oursDNSName].Value <= 0.3})
	high.against("less", 0)
	b.report.Sections = append(b.report.Sections, Section{
		Title: fmt.Sprintf("DNS, slice acknowledged → new answer, %d Services", services), Columns: namesColumns(), Rows: []Row{row, high},
	})
	return nil
}

// namesFlipped is how long each change took to be in the answers, in milliseconds from its acknowledgement.
func (b *bench) namesFlipped(ctx context.Context, s *nameServer) (took []float64, err error) {
	name := "flip." + namespace + ".svc.cluster.local."
	client := b.server.writes.DiscoveryV1().EndpointSlices(namespace)
	conn, err := dns.DialTimeout("udp", s.addr.String(), time.Second) // one for all: a socket for each question would cost more than the question
	if err != nil {
		return nil, err
	}
	defer conn.Close() //nolint:errcheck // it was only asked
	for i := range b.namesFlips {
		slice, err := client.Get(ctx, "flip", metav1.GetOptions{})
		if err != nil {
			return nil, err
		}
		next := offset(endpointRange, 3000+i%2*10+len(s.name)%2)
		slice.Endpoints = []discovery.Endpoint{{Addresses: []string{next.String()}, Conditions: discovery.EndpointConditions{Ready: new(true)}}}
		if _, err := client.Update(ctx, slice, metav1.UpdateOptions{}); err != nil {
			return nil, err
		}
		written := time.Now()
		for {
			answer, _, err := new(dns.Client).ExchangeWithConnContext(ctx, new(dns.Msg).SetQuestion(name, dns.TypeA), conn)
			if err != nil {
				return nil, err
			}
			if len(answer.Answer) == 1 && answer.Answer[0].(*dns.A).A.Equal(next.AsSlice()) { //nolint:forcetypeassert // of a question for A
				break
			}
			if time.Since(written) > 10*time.Second {
				return nil, fmt.Errorf("%s has not heard of a change after 10 s%s", s.name, s.process.tail())
			}
		}
		took = append(took, float64(time.Since(written))/float64(time.Millisecond))
		if err := pause(ctx, 20*time.Millisecond); err != nil {
			return nil, err
		}
	}
	return took, nil
}
