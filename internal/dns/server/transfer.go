package server

import (
	"bytes"
	"iter"
	"math/rand/v2"

	"github.com/miekg/dns"

	"github.com/endpointd/endpointd/internal/dns/wire"
	"github.com/endpointd/endpointd/internal/dns/zone"
)

// transferMessage is how long a message of a transfer may be. Compression reaches all of one that is not longer; and a client that reads slowly
// holds so much memory, and its records.
const transferMessage = 1 << 14

// transfer answers AXFR (RFC 5936) and IXFR (RFC 1995), for those who may. Of no change is kept what it was, so that an increment is the whole zone, which
// RFC 1995 allows (section 4); over UDP it is the SOA (section 2), as for who has this zone already.
func (w *worker) transfer(rq *request) verdict {
	if w.s.o.Transfer == nil || !w.s.o.Transfer(rq.client.Addr()) {
		return w.fail(dns.RcodeRefused)
	}
	if w.q.Type == dns.TypeAXFR && !rq.tcp {
		return w.fail(dns.RcodeNotImplemented) // section 4.2 of RFC 5936 leaves open what that would be
	}
	z := w.s.zone.Load().Zone
	records, rcode := z.Transfer(w.q.Name)
	if rcode != dns.RcodeSuccess {
		return w.fail(rcode)
	}
	w.r.SetAuthoritative()
	if w.q.Type == dns.TypeIXFR && (!rq.tcp || has(rq.packet, z.Serial())) {
		start := w.q
		start.Type = dns.TypeSOA
		z.Answer(&start, &w.r, rand.Uint64())
		return ready
	}
	w.records = records
	return many
}

// has says whether the client of an IXFR has this serial or a later one.
func has(packet []byte, serial uint32) bool {
	var m dns.Msg
	if err := m.Unpack(packet); err != nil || len(m.Ns) != 1 {
		return false
	}
	soa, ok := m.Ns[0].(*dns.SOA)
	return ok && int32(serial-soa.Serial) <= 0 //nolint:gosec // RFC 1982, section 3.2
}

// transfer sends all records to a client, in as many messages as it takes, and says whether to go on with the connection. It waits for the
// client, as nothing else does; that holds up only the connection, has a place in the pool, and ends when a message is not taken in time.
func (c *stream) transfer(j *streamJob, rq *request) bool {
	w := j.w
	records := w.records
	w.records = nil
	client := c.client.Addr()
	if !c.s.pool.take(client) {
		w.count.overloaded.Add(1)
		w.fail(dns.RcodeServerFailure)
		return c.write(j, w.finish(rq))
	}
	defer c.s.pool.give(client)
	t := transferring{c: c, j: j, frame: make([]byte, 2+transferMessage)}
	t.begin()
	if !t.all(records) {
		return false
	}
	return c.send(t.frame[:2+len(w.finish(rq))]) // the last message, by which the transfer is counted and logged
}

// A transferring is a transfer on its way.
type transferring struct {
	c     *stream
	j     *streamJob
	frame []byte // what is written, behind its length
	// owner of the last record, and where it is in the message; 0 = not there.
	owner [wire.MaxName]byte
	n, at int
}

// begin begins a message. Each repeats the question, which other names end as.
func (t *transferring) begin() {
	w := t.j.w
	w.size = transferMessage
	w.again(t.frame[2:])
	w.r.SetAuthoritative()
	t.at = 0
}

// all writes the records, and the first one once more. It is false if the client is not there anymore.
func (t *transferring) all(records iter.Seq[zone.Record]) bool {
	var first zone.Record
	for record := range records {
		if first.Name == nil {
			first = zone.Record{Name: bytes.Clone(record.Name), Type: record.Type, TTL: record.TTL, Data: bytes.Clone(record.Data)}
		}
		if !t.record(&record) {
			return false
		}
	}
	return t.record(&first)
}

func (t *transferring) record(record *zone.Record) bool {
	if t.add(record) {
		return true
	}
	if !t.c.send(t.frame[:2+len(t.j.w.r.Finish())]) { // it is there, as it fits
		return false
	}
	t.begin()
	return t.add(record) // one alone fits
}

// add adds a record if it fits.
func (t *transferring) add(record *zone.Record) bool {
	r := &t.j.w.r
	before := r.Mark()
	if t.at > 0 && bytes.Equal(t.owner[:t.n], record.Name) {
		if r.Add(wire.Answer, t.at, record.Type, record.TTL, record.Data) {
			return true
		}
	} else if t.at = r.AddNamed(wire.Answer, record.Name, record.Type, record.TTL, record.Data); t.at > 0 {
		t.n = copy(t.owner[:], record.Name)
		return true
	}
	r.Back(before)
	return false
}
