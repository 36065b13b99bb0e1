package zone

import (
	"net/netip"
	"slices"

	"github.com/miekg/dns"

	"github.com/endpointd/endpointd/internal/dns/wire"
)

// An OutcomeKind says who does what is left.
type OutcomeKind uint8

// The kinds of outcomes.
const (
	// Done: the response is whole.
	Done OutcomeKind = iota
	// NotOurs: it is somebody else's name, and nothing was written.
	NotOurs
	// Follow: the response has CNAMEs, the last of which leads out of the zone, and is a good one as it is. Whoever can may add Target's records to
	// its answer, and take over the RCODE of asking for them.
	Follow
	// AskPod: nothing was written; whether there is a pod with Addr in Namespace has to be asked, and [Zone.AnswerPod] called.
	AskPod
)

// An Outcome is what came of a question.
type Outcome struct {
	Kind OutcomeKind
	// Target is the wire name to Follow, in the letter case of the Service; not to be modified. At is where in the response it is.
	Target []byte
	At     int
	// Namespace and Addr are those of the pod to ask for.
	Namespace string
	Addr      netip.Addr
}

// maxChain is how many CNAMEs of the zone are followed, CoreDNS's number too.
const maxChain = 10

// versionTTL and version are the schema's that is implemented; CoreDNS has the same TTL.
const (
	versionTTL = 28800
	versionTXT = "\x051.1.0"
)

// anyHINFO is the content of what ANY is answered with (RFC 8482, section 4.2).
const anyHINFO = "\x07RFC8482\x00"

// Answer writes the answer to a question in r, which the caller has begun and finishes. It may be called concurrently, and allocates nothing but a
// namespace in AskPod. random decides the order of records, so that clients that take the first one spread.
func (z *Zone) Answer(q *wire.Query, r *wire.Response, random uint64) Outcome {
	return z.answer(q, r, random, maybeAPod)
}

// AnswerPod answers a question whose outcome was AskPod, in the same response or in another.
func (z *Zone) AnswerPod(q *wire.Query, r *wire.Response, exists bool) Outcome {
	known := nothing
	if exists {
		known = pod
	}
	return z.answer(q, r, 0, known)
}

// An answer is one on its way.
type answer struct {
	*Zone
	r      *wire.Response
	rtype  uint16
	random uint64
	pod    kind // what a pod is that might exist: one, nothing, or not known yet
}

func (z *Zone) answer(q *wire.Query, r *wire.Response, random uint64, known kind) Outcome {
	if q.Class != dns.ClassINET {
		r.SetRCode(dns.RcodeRefused)
		return Outcome{}
	}
	if len(q.Name) == 0 {
		r.SetRCode(dns.RcodeFormatError) // the caller did not heed what Parse said
		return Outcome{}
	}
	a := answer{z, r, q.Type, random, known}
	var n name
	n.set(q.Name)
	if n.within(z.domain, z.labels) < 0 {
		return a.reverse(&n)
	}
	if z.snapshot == nil {
		r.SetRCode(dns.RcodeServerFailure)
		return Outcome{}
	}
	if a.rtype == dns.TypeAXFR || a.rtype == dns.TypeIXFR { // nobody is allowed to
		r.SetRCode(dns.RcodeRefused)
		return Outcome{}
	}
	return a.follow(&n)
}

// follow answers for a name of the domain, and for those that it is another name of.
func (a *answer) follow(n *name) Outcome {
	begin := a.r.Mark()
	owner := wire.QuestionAt
	var seen [maxChain]*service
	for i := range seen {
		below := n.within(a.domain, a.labels)
		p := a.find(n, below)
		if p.kind == maybeAPod {
			if a.pod == maybeAPod {
				a.r.Back(begin)
				return Outcome{Kind: AskPod, Namespace: string(n.podNamespace()), Addr: p.addr}
			}
			p.kind = a.pod
		}
		if p.kind != itself || p.service.cname == nil {
			a.r.SetAuthoritative()
			a.place(&p, owner, owner+n.len-len(a.domain))
			return Outcome{}
		}
		s := p.service
		if slices.Contains(seen[:i], s) {
			break // a loop, which its CNAMEs say
		}
		at := a.r.AddName(wire.Answer, owner, dns.TypeCNAME, s.ttl, s.cname)
		seen[i] = s
		if at == 0 || a.rtype == dns.TypeCNAME || a.rtype == dns.TypeANY {
			break
		}
		n.set(s.cname)
		owner = at
		if n.within(a.domain, a.labels) < 0 {
			a.r.SetAuthoritative()
			return Outcome{Kind: Follow, Target: s.cname, At: at}
		}
	}
	a.r.SetAuthoritative()
	return Outcome{}
}

// place writes what there is at a name. owner is where the name is in the response, zone where that of the domain.
func (a *answer) place(p *place, owner, zone int) {
	if p.kind == nothing {
		a.r.SetRCode(dns.RcodeNameError)
		a.negative(p, zone)
		return
	}
	before := a.r.Len()
	switch a.rtype {
	case dns.TypeA, dns.TypeAAAA:
		a.addresses(p, owner)
	case dns.TypeSRV:
		if p.srv != nil {
			a.records(p, owner)
		}
	case dns.TypeSOA:
		if p.kind == apex {
			a.soa(wire.Answer, owner, a.ttl)
		}
	case dns.TypeNS:
		if p.kind == apex {
			a.nameServer(owner)
		}
	case dns.TypeTXT:
		if p.kind == version {
			a.r.Add(wire.Answer, owner, dns.TypeTXT, versionTTL, []byte(versionTXT))
		}
	case dns.TypeANY:
		if p.kind != empty {
			a.r.Add(wire.Answer, owner, dns.TypeHINFO, a.ttl, []byte(anyHINFO))
		}
	}
	if a.r.Len() == before && !a.r.Truncated() {
		a.negative(p, zone)
	}
}
