package server

import (
	"context"
	"iter"
	"math/rand/v2"
	"net/netip"
	"time"

	"github.com/miekg/dns"

	"github.com/endpointd/endpointd/internal/dns/wire"
	"github.com/endpointd/endpointd/internal/dns/zone"
)

// A request is one packet of a client.
type request struct {
	packet []byte
	client netip.AddrPort
	tcp    bool
	at     time.Time // when it was read
}

// A verdict says what becomes of a request.
type verdict uint8

const (
	drop  verdict = iota // nobody is answered
	ready                // the response is whole: see worker.finish
	wait                 // somebody has to be asked; until then the response says what holds if nobody can be
	many                 // it takes many messages: those of worker.records
)

// A worker turns requests into responses, one at a time, in memory that it has. It belongs to one goroutine.
type worker struct {
	s     *Server
	count *counters
	limit limiterState
	bake  baker

	q      wire.Query
	r      wire.Response
	size   int    // of the response at most
	cookie []byte // of the response; nil = none
	tcp    bool
	// vouched is whether the upstream says AD, to a client that wants to know (RFC 6840, section 5.8).
	vouched bool
	records iter.Seq[zone.Record] // of a transfer

	// For names that the client did not ask for, but that answer it.
	other    wire.Query
	question [wire.MaxName + 4]byte
	rest     [wire.MaxName]byte
	own      wire.Response
	ownBuf   []byte
}

func newWorker(s *Server, count *counters) *worker { return &worker{s: s, count: count} }

// answer does what can be done at once. out is where the response is written.
func (w *worker) answer(rq *request, out []byte) verdict {
	rcode, answerable := w.q.Parse(rq.packet)
	if !answerable {
		w.count.malformed.Add(1)
		return drop
	}
	good := w.begin(rq, out)
	addr := rq.client.Addr()
	allowed := w.s.o.Allow(addr)
	if !allowed {
		w.count.refused.Add(1)
		if w.s.o.DropOthers {
			return drop
		}
	}
	if !rq.tcp && !good && w.s.limiter.over(addr, rq.at) {
		w.count.limited.Add(1)
		// Who only pretends to be the client cannot come by TCP; the client can, and asks again if it hears nothing.
		if !allowed || !w.limit.slip(w.s.o.Limits.Slip) {
			return drop
		}
		w.r.SetTruncated()
		return ready
	}
	switch {
	case !allowed:
		w.r.SetRCode(dns.RcodeRefused)
		return ready
	case rcode != dns.RcodeSuccess:
		w.r.SetRCode(rcode)
		return ready
	}
	return w.resolve(context.Background(), rq, out, false)
}

// answerPatiently does again what answer could not do at once, and waits for it until ctx ends.
func (w *worker) answerPatiently(ctx context.Context, rq *request, out []byte) {
	w.q.Parse(rq.packet)
	w.begin(rq, out)
	w.resolve(ctx, rq, out, true)
}

// begin begins the response. It reports whether the client has shown a cookie of ours, and so is where it says.
func (w *worker) begin(rq *request, out []byte) (good bool) {
	ours := defaultReply
	if !rq.tcp && w.q.EDNS.Present {
		ours = min(w.s.o.UDPSize(rq.client.Addr()), maxUDPReply)
	}
	w.size = w.q.Limit(rq.tcp, ours)
	w.tcp, w.cookie = rq.tcp, nil
	if w.q.EDNS.Cookie != nil {
		w.cookie, good = w.bake.cookie(&w.s.secrets, w.q.EDNS.Cookie, rq.client.Addr(), rq.at)
	}
	w.again(out)
	return good
}

// again begins the response again.
func (w *worker) again(out []byte) {
	w.vouched = false
	w.r.Begin(out, &w.q, w.size, defaultReply)
	w.r.SetCookie(w.cookie)
	if w.tcp {
		w.r.SetKeepAlive(w.s.o.TCP.Idle)
	}
	if w.s.o.Forwarder != nil {
		w.r.SetRecursionAvailable()
	}
}

// resolve answers a request that is well formed and allowed. If not patient, it does not block.
func (w *worker) resolve(ctx context.Context, rq *request, out []byte, patient bool) verdict {
	switch {
	case w.q.Class != dns.ClassINET:
		return w.fail(dns.RcodeRefused)
	case w.q.Type == dns.TypeAXFR, w.q.Type == dns.TypeIXFR:
		return w.transfer(rq)
	case isMeta(w.q.Type):
		return w.fail(dns.RcodeNotImplemented)
	}
	z := w.s.zone.Load().Zone
	o := z.Answer(&w.q, &w.r, rand.Uint64())
	switch o.Kind {
	case zone.Done:
		if w.r.RCode() == dns.RcodeNameError && w.q.RecursionDesired && w.s.o.Forwarder != nil {
			return w.complete(ctx, z, rq, out, patient)
		}
		return ready
	case zone.Follow:
		return w.follow(ctx, o, rq, patient)
	case zone.AskPod:
		return w.askPod(ctx, z, o, rq, patient)
	default:
		return w.forward(ctx, rq, patient)
	}
}

// isMeta says whether a type is none that records have and that we could forward (RFC 6895, section 3.1).
func isMeta(t uint16) bool {
	return t == 0 || t == dns.TypeOPT || t >= 128 && t <= 254
}

func (w *worker) fail(rcode int) verdict {
	w.r.SetRCode(rcode)
	return ready
}

// forward answers for a name that is not the zone's.
func (w *worker) forward(ctx context.Context, rq *request, patient bool) verdict {
	if w.local() {
		return ready
	}
	f := w.s.o.Forwarder
	if f == nil || !w.q.RecursionDesired {
		return w.fail(dns.RcodeRefused)
	}
	if f.IsLoopProbe(w.q.Name) {
		w.count.loops.Add(1)
		return w.fail(dns.RcodeRefused)
	}
	a, v := w.ask(ctx, &w.q, rq.at, patient)
	switch {
	case a != nil:
		w.add(a, wire.QuestionAt)
	default:
		w.r.SetRCode(dns.RcodeServerFailure)
	}
	return v
}

// ask asks the forwarder. The answer is nil if it has none (ready), or if that takes longer than the caller has (wait).
func (w *worker) ask(ctx context.Context, q *wire.Query, now time.Time, patient bool) (Answer, verdict) {
	f := w.s.o.Forwarder
	if a, ok := f.Lookup(q, now); ok {
		return a, ready
	}
	if !patient {
		return nil, wait
	}
	a, err := f.Resolve(ctx, q)
	if err != nil {
		w.count.unresolved.Add(1)
		return nil, ready
	}
	return a, ready
}

// add adds what the forwarder knows of the name at an offset.
func (w *worker) add(a Answer, at int) {
	w.r.SetRCode(a.RCode())
	w.vouched = at == wire.QuestionAt && a.AuthenticData() && (w.q.AuthenticData || w.q.EDNS.DNSSECOK)
	if !a.Append(&w.r, at, w.s.o.Now()) {
		w.r.SetTruncated()
	}
}

// follow adds what an ExternalName leads to. The RCODE is that of the last name in the chain (RFC 6604); if nobody knows, the CNAME alone is the answer.
func (w *worker) follow(ctx context.Context, o zone.Outcome, rq *request, patient bool) verdict {
	if w.s.o.Forwarder == nil || !w.q.RecursionDesired || o.At == 0 || isLocal(o.Target) {
		return ready
	}
	w.ofName(o.Target)
	a, v := w.ask(ctx, &w.other, rq.at, patient)
	if a != nil && a.RCode() != dns.RcodeServerFailure && a.RCode() != dns.RcodeRefused {
		w.add(a, o.At)
	}
	return v
}

// ofName makes the request for another name that the one asked for leads to.
func (w *worker) ofName(name []byte) {
	question := append(append(w.question[:0], name...), byte(w.q.Type>>8), byte(w.q.Type), byte(w.q.Class>>8), byte(w.q.Class))
	n := len(name)
	w.other = wire.Query{
		RecursionDesired: true, CheckingDisabled: w.q.CheckingDisabled, Question: question, Name: question[:n:n],
		Type: w.q.Type, Class: w.q.Class, EDNS: wire.EDNS{Present: w.q.EDNS.Present, DNSSECOK: w.q.EDNS.DNSSECOK},
	}
}

func (w *worker) askPod(ctx context.Context, z Zone, o zone.Outcome, rq *request, patient bool) verdict {
	exists, known := w.s.pods.lookup(o.Namespace, o.Addr, rq.at)
	if !known {
		w.r.SetRCode(dns.RcodeServerFailure)
		if !patient {
			return wait
		}
		var err error
		if exists, err = w.s.pods.ask(ctx, o.Namespace, o.Addr); err != nil {
			w.count.unresolved.Add(1)
			w.s.o.Logger.Debug("pod not looked up", "namespace", o.Namespace, "addr", o.Addr, "err", err)
			return ready
		}
		w.r.SetRCode(dns.RcodeSuccess)
	}
	if o = z.AnswerPod(&w.q, &w.r, exists); o.Kind == zone.Follow {
		return w.follow(ctx, o, rq, patient)
	}
	return ready
}

// finish returns the response, counted and logged.
func (w *worker) finish(rq *request) []byte {
	w.r.SetAuthenticData(w.vouched)
	reply := w.r.Finish()
	w.count.reply(rq.tcp, w.q.Type, w.r.RCode(), w.r.Truncated())
	if all := w.s.taps.all.Load(); all != nil {
		w.hear(*all, rq, reply)
	}
	return reply
}
