package server

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"

	"github.com/miekg/dns"

	"github.com/endpointd/endpointd/internal/dns/wire"
	"github.com/endpointd/endpointd/internal/dns/zone"
)

// searchTTL in seconds is that of the CNAME of a name that was completed: it is the zone's word, and the zone may change.
const searchTTL = 5

// parseSearches turns the search domains of the node into names in wire form.
func parseSearches(domains []string) ([][]byte, error) {
	var names [][]byte
	for _, d := range domains {
		if d == "." || d == "" {
			continue // the name itself is tried anyway
		}
		name, err := wire.AppendName(nil, d)
		if err != nil {
			return nil, fmt.Errorf("DNS: search domain %q: %w; correct it in resolv.conf", d, err)
		}
		names = append(names, name)
	}
	return names, nil
}

// complete answers for the first miss of a pod's search path as the end of that path would, so that the pod asks once and not four times.
// The response says already that the name does not exist, and so it stays if nothing is found, or somebody cannot be asked: then the pod goes
// through its path itself, which leads to the same end.
//
// Resolvers tell A from AAAA, ask for both, and want both to be of one name: so the first domain in which the name exists answers, also with
// no record of the type. Only these two types are completed, as only they are asked for by getaddrinfo.
//
// A name without a dot is tried in the node's domains but not alone: it is a Service that does not exist yet far more often than a top-level
// domain, and the pod's own next two questions cost less than an upstream's answer. What is ours if taken as it is (`web.other.svc.cluster.local`,
// which has fewer dots than ndots) is answered from the zone, before the node's domains hear of it.
func (w *worker) complete(ctx context.Context, z Zone, rq *request, out []byte, patient bool) verdict {
	if w.q.Type != dns.TypeA && w.q.Type != dns.TypeAAAA {
		return ready
	}
	client := rq.client.Addr()
	lookup := z.Namespace
	if w.s.o.Namespace != nil {
		lookup = w.s.o.Namespace
	}
	namespace, ok := lookup(client)
	if !ok {
		return ready
	}
	rest, ok := z.Search(w.rest[:0], w.q.Name, namespace)
	if !ok || len(rest) < 2 || isLocal(rest) {
		return ready
	}
	w.ofName(rest)
	if ours := w.completeOurs(z, rest, out); ours {
		return ready
	}
	_, behind := wire.Label(rest)
	for i := range len(w.s.searches) + 1 {
		if i < len(w.s.searches) {
			domain := w.s.searches[i]
			if len(rest)-1+len(domain) > wire.MaxName {
				continue
			}
			var name [wire.MaxName]byte
			w.ofName(append(append(name[:0], rest[:len(rest)-1]...), domain...))
		} else {
			if behind[0] == 0 {
				return ready
			}
			w.ofName(rest)
		}
		a, v := w.ask(ctx, &w.other, rq.at, patient)
		if a == nil {
			return v
		}
		switch a.RCode() {
		case dns.RcodeSuccess:
			w.again(out)
			if at := w.r.AddName(wire.Answer, wire.QuestionAt, dns.TypeCNAME, searchTTL, w.other.Name); at > 0 {
				w.add(a, at)
			}
			w.count.completed.Add(1)
			return ready
		case dns.RcodeNameError:
		default:
			return ready // the pod should hear that from its own question
		}
	}
	w.count.completed.Add(1)
	return ready
}

// completeOurs answers if the rest is a name of the zone itself. It is true if the response is whole, whether or not there is such a name.
func (w *worker) completeOurs(z Zone, rest, out []byte) bool {
	if w.ownBuf == nil {
		w.ownBuf = make([]byte, maxUDPReply)
	}
	w.own.Begin(w.ownBuf, &w.other, w.size, 0)
	o := z.Answer(&w.other, &w.own, rand.Uint64())
	switch {
	case o.Kind == zone.NotOurs:
		return false
	case o.Kind != zone.Done || w.own.RCode() != dns.RcodeSuccess:
		return true
	}
	records := w.own.Count(wire.Answer)
	message := w.own.Finish()[wire.HeaderLen+len(w.other.Question):]
	if !plain(message, records, w.q.Type) {
		return true
	}
	w.again(out)
	w.r.SetAuthoritative()
	if w.own.Truncated() {
		w.r.SetTruncated()
	}
	at := w.r.AddName(wire.Answer, wire.QuestionAt, dns.TypeCNAME, searchTTL, rest)
	for range records {
		ttl, n := binary.BigEndian.Uint32(message[6:]), int(binary.BigEndian.Uint16(message[10:]))
		if at == 0 || !w.r.Add(wire.Answer, at, w.q.Type, ttl, message[12:12+n]) {
			break
		}
		message = message[12+n:]
	}
	w.count.completed.Add(1)
	return true
}

// plain says whether the records at the beginning of data are all of a type, and of the name in the question.
func plain(data []byte, records int, rtype uint16) bool {
	for range records {
		if len(data) < 12 || data[0] != 0xc0 || data[1] != wire.QuestionAt || binary.BigEndian.Uint16(data[2:]) != rtype {
			return false
		}
		n := 12 + int(binary.BigEndian.Uint16(data[10:]))
		if n > len(data) {
			return false
		}
		data = data[n:]
	}
	return true
}
