package forward

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
)

// A puppet is an upstream without a network, for tests in which time is not real.
type puppet struct {
	took      atomic.Int64 // nanoseconds until it answers
	silent    atomic.Bool
	refuses   atomic.Bool
	questions atomic.Int64 // probes are not counted
	probes    atomic.Int64
	stuck     atomic.Pointer[string] // a name that it never has an answer to
}

func (p *puppet) exchange(ctx context.Context, q question) (*dns.Msg, error) {
	name := q.name()
	if q.rtype() == dns.TypeNS || q.rtype() == dns.TypeHINFO {
		p.probes.Add(1)
	} else {
		p.questions.Add(1)
	}
	if p.refuses.Load() {
		return nil, errors.New("connection refused")
	}
	stuck := p.stuck.Load()
	if p.silent.Load() || stuck != nil && strings.Contains(name, *stuck) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if took := time.Duration(p.took.Load()); took > 0 && !pause(ctx, took) {
		return nil, ctx.Err()
	}
	text, _, err := dns.UnpackDomainName([]byte(name), 0)
	if err != nil {
		return nil, err
	}
	m := new(dns.Msg)
	m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: text, Rrtype: q.rtype(), Class: dns.ClassINET, Ttl: 60}, A: []byte{10, 0, 0, 1}}}
	return m, nil
}

// puppets makes a Forwarder of so many upstreams, and the upstreams.
func puppets(t *testing.T, n int, o Options) (*Forwarder, []*puppet) {
	t.Helper()
	var ups []Upstream
	for i := range n {
		ups = append(ups, Upstream{Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), 53)})
	}
	f := start(t, o, ups...)
	f.patience = [2]time.Duration{patienceMin, patienceMax}
	f.o.Timeout = 5 * time.Second
	var all []*puppet
	for _, u := range f.upstreams {
		p := new(puppet)
		u.exchange = p.exchange
		all = append(all, p)
	}
	return f, all
}

// number is an address question, a new one for each n.
func number(t *testing.T, f *Forwarder, n int) (*Answer, time.Duration) {
	t.Helper()
	began := time.Now()
	a := resolve(t, f, ask(t, fmt.Sprintf("n%d.example.", n), dns.TypeA))
	return a, time.Since(began)
}

func TestADeadUpstreamCostsLittle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, ups := puppets(t, 2, Options{})
		ups[0].silent.Store(true)
		ups[1].took.Store(int64(3 * time.Millisecond))
		f.upstreams[1].rtt.Store(int64(time.Second)) // the dead one is first
		a, took := number(t, f, 0)
		if a.RCode() != dns.RcodeSuccess || took > patienceMax+3*time.Millisecond {
			t.Errorf("rcode %d after %v, want an answer of the second upstream within %v", a.RCode(), took, patienceMax)
		}
		f.upstreams[0].rtt.Store(0)
		run(t, f)
		testTime(t, 20*time.Second)
		if f.Upstreams()[0].Healthy || !f.Upstreams()[1].Healthy {
			t.Error("the dead upstream is healthy, or the other is not")
		}
		for i := range 200 {
			if _, took := number(t, f, 1+i); took > 3*time.Millisecond {
				t.Fatalf("question %d took %v though it is known which upstream is dead", i, took)
			}
		}
		asked := ups[0].questions.Load()
		ups[0].silent.Store(false)
		testTime(t, probeMax+time.Second)
		if !f.Upstreams()[0].Healthy {
			t.Error("an upstream that is back is not healthy")
		}
		for i := range 20 {
			number(t, f, 1000+i)
		}
		if ups[0].questions.Load() == asked {
			t.Error("the faster upstream is back and not asked")
		}
	})
}

// testTime lets time pass; in a bubble it takes none.
func testTime(t *testing.T, d time.Duration) {
	t.Helper()
	pause(t.Context(), d)
	synctest.Wait()
}

func TestWhenAllAreDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, ups := puppets(t, 2, Options{})
		known, _ := number(t, f, 0)
		for _, p := range ups {
			p.silent.Store(true)
		}
		if a, took := number(t, f, 1); !a.Failed() || took > f.o.Timeout {
			t.Errorf("rcode %d after %v, want SERVFAIL within %v", a.RCode(), took, f.o.Timeout)
		}
		run(t, f)
		testTime(t, time.Minute)
		if f.Upstreams()[0].Healthy || f.Upstreams()[1].Healthy {
			t.Fatal("silent upstreams are healthy")
		}
		if a, took := number(t, f, 2); !a.Failed() || took > timeoutDown {
			t.Errorf("rcode %d after %v, want SERVFAIL within %v, as all are known to be down", a.RCode(), took, timeoutDown)
		}
		if a, took := number(t, f, 0); a != known || took > 0 {
			t.Errorf("the stale answer comes after %v, want it at once, as all are known to be down", took)
		}
		ups[1].silent.Store(false)
		testTime(t, failureTTL)
		if a, _ := number(t, f, 2); a.RCode() != dns.RcodeSuccess {
			t.Errorf("rcode %d though one is back", a.RCode())
		}
	})
}

func TestStaleAfterThatMuchWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, ups := puppets(t, 1, Options{})
		known, _ := number(t, f, 0)
		testTime(t, 61*time.Second)
		ups[0].took.Store(int64(4 * time.Second))
		if a, took := number(t, f, 0); a != known || took != f.o.StaleWait {
			t.Errorf("after %v, want the stale answer after %v", took, f.o.StaleWait)
		}
		if a, took := number(t, f, 0); a != known || took != 0 {
			t.Errorf("the next client gets it after %v, want at once", took)
		}
		testTime(t, 3*time.Second)
		if a, took := number(t, f, 0); a == known || took != 0 {
			t.Error("the answer that came late is not given")
		}
	})
}

// TestANameWithoutAnswerIsNotAnUpstreamsFault asks for a name whose servers do not answer the upstream.
func TestANameWithoutAnswerIsNotAnUpstreamsFault(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, ups := puppets(t, 1, Options{})
		run(t, f)
		stuck := "stuck"
		ups[0].stuck.Store(&stuck)
		for i := range 20 {
			a := resolve(t, f, ask(t, fmt.Sprintf("n%d.stuck.example.", i), dns.TypeA))
			if !a.Failed() {
				t.Fatal("an answer to what has none")
			}
			if !f.Upstreams()[0].Healthy {
				t.Fatalf("after %d such names the upstream is not healthy", i+1)
			}
		}
		if n := ups[0].questions.Load(); n > 20*maxAttempts {
			t.Errorf("%d questions to the upstream for 20 names", n)
		}
	})
}

func TestLostPacketsAreSentAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, ups := puppets(t, 1, Options{})
		exchange := f.upstreams[0].exchange
		var sent atomic.Int64
		f.upstreams[0].exchange = func(ctx context.Context, q question) (*dns.Msg, error) {
			if sent.Add(1) == 1 {
				<-ctx.Done()
				return nil, ctx.Err()
			}
			return exchange(ctx, q)
		}
		if a, took := number(t, f, 0); a.RCode() != dns.RcodeSuccess || took > patienceMax {
			t.Errorf("rcode %d after %v, want an answer within %v", a.RCode(), took, patienceMax)
		}
		if n := ups[0].questions.Load(); n != 1 {
			t.Errorf("%d questions arrived, want 1", n)
		}
	})
}

func TestTheFastestIsAskedMost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, ups := puppets(t, 3, Options{})
		for i, took := range []time.Duration{30, 5, 20} {
			ups[i].took.Store(int64(took * time.Millisecond))
		}
		const questions = 2000
		for i := range questions {
			number(t, f, i)
		}
		if n := ups[1].questions.Load(); n < questions*9/10 {
			t.Errorf("the fastest upstream got %d of %d questions", n, questions)
		}
		if ups[0].questions.Load() < 2 || ups[2].questions.Load() < 2 {
			t.Errorf("the others got %d and %d questions: nobody would see them become faster", ups[0].questions.Load(), ups[2].questions.Load())
		}
		ups[1].took.Store(int64(200 * time.Millisecond))
		for i := range questions {
			number(t, f, questions+i)
		}
		if n := ups[2].questions.Load(); n < questions/2 {
			t.Errorf("the upstream that is the fastest now got %d of %d questions", n, questions)
		}
	})
}

// TestALoopThatEnds also starts before we listen: the first probes are refused.
func TestALoopThatEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var loops atomic.Int64
		var isLooping atomic.Bool
		f, ups := puppets(t, 1, Options{Loop: func(Upstream) { loops.Add(1) }, Logger: slog.New(slog.DiscardHandler)})
		exchange := f.upstreams[0].exchange
		isLooping.Store(true)
		f.upstreams[0].exchange = func(ctx context.Context, q question) (*dns.Msg, error) {
			if isLooping.Load() && !ups[0].refuses.Load() {
				f.IsLoopProbe([]byte(q.name()))
			}
			return exchange(ctx, q)
		}
		ups[0].refuses.Store(true)
		run(t, f)
		testTime(t, 500*time.Millisecond)
		ups[0].refuses.Store(false)
		testTime(t, 5*time.Second)
		if !f.Upstreams()[0].Loops || loops.Load() != 1 {
			t.Fatalf("loops %v, called back %d times", f.Upstreams()[0].Loops, loops.Load())
		}
		asked := ups[0].questions.Load()
		if a, took := number(t, f, 0); !a.Failed() || took != 0 || ups[0].questions.Load() != asked {
			t.Errorf("an upstream that leads back here was asked, or it took %v", took)
		}
		testTime(t, 10*loopAgain)
		if loops.Load() != 1 {
			t.Errorf("one loop is told %d times", loops.Load())
		}
		isLooping.Store(false)
		testTime(t, 2*loopAgain)
		if f.Upstreams()[0].Loops {
			t.Error("it does not lead back here any more, and is not asked")
		}
		if a, _ := number(t, f, 1); a.Failed() {
			t.Error("no answer though the loop is gone")
		}
	})
}

func TestOrder(t *testing.T) {
	f, _ := puppets(t, 4, Options{})
	for i, rtt := range []time.Duration{4, 3, 0, 1} {
		f.upstreams[i].rtt.Store(int64(rtt))
	}
	f.upstreams[3].down.Store(true)
	z := f.zoneOf([]byte{0})
	first := map[int]int{}
	for range 1000 {
		var order []int
		for _, u := range z.order() {
			order = append(order, slices.Index(f.upstreams, u))
		}
		if len(order) != 4 || order[3] != 3 {
			t.Fatalf("order %v, want the one that is down last", order)
		}
		first[order[0]]++
	}
	if first[2] < 900 {
		t.Errorf("first were %v, want mostly the one whose speed is not known", first)
	}
}
