package server

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"

	"github.com/endpointd/endpointd/internal/dns/wire"
)

// An Exchange is a request and its response, for people. It is not modified.
type Exchange struct {
	At        time.Time // of the response
	Client    netip.AddrPort
	Truncated bool
	Bytes     int           // of the response
	Took      time.Duration // since the request was read

	tcp   bool
	qtype uint16
	rcode int
	name  []byte // as on the wire, empty if the request had none that can be read
	reply []byte // without its end if it is longer than maxUDPReply
}

func (w *worker) exchange(rq *request, reply []byte, now time.Time) *Exchange {
	kept := min(len(reply), maxUDPReply)
	own := append(append(make([]byte, 0, len(w.q.Name)+kept), w.q.Name...), reply[:kept]...)
	n := len(w.q.Name)
	return &Exchange{
		At: now, Client: rq.client, Truncated: w.r.Truncated(), Bytes: len(reply), Took: now.Sub(rq.at),
		tcp: rq.tcp, qtype: w.q.Type, rcode: w.r.RCode(), name: own[:n:n], reply: own[n:],
	}
}

// Name that was asked for, with a dot at its end; "" if the request had none that can be read.
func (e *Exchange) Name() string {
	if len(e.name) == 0 {
		return ""
	}
	return wire.NameString(e.name)
}

// Type that was asked for.
func (e *Exchange) Type() string { return dns.Type(e.qtype).String() }

// Transport is udp or tcp.
func (e *Exchange) Transport() string { return transportNames()[transportOf(e.tcp)] }

// RCode by its name.
func (e *Exchange) RCode() string {
	if name, ok := dns.RcodeToString[e.rcode]; ok {
		return name
	}
	return fmt.Sprintf("RCODE%d", e.rcode)
}

// answerLength is how many records of an answer are written out.
const answerLength = 8

// Answer is what the records of the answer section say, those of another type than was asked for with theirs; "" if there are none.
func (e *Exchange) Answer() string {
	if e.Bytes < wire.HeaderLen {
		return ""
	}
	total := int(e.reply[6])<<8 | int(e.reply[7])
	if total == 0 {
		return ""
	}
	var m dns.Msg
	_ = m.Unpack(e.reply) // of one that was cut off there is what came before
	var words []string
	for _, rr := range m.Answer[:min(len(m.Answer), answerLength)] {
		content := strings.TrimPrefix(rr.String(), rr.Header().String())
		if rr.Header().Rrtype != e.qtype {
			content = dns.Type(rr.Header().Rrtype).String() + " " + content
		}
		words = append(words, content)
	}
	text := strings.Join(words, ", ")
	switch more := total - len(words); {
	case len(words) == 0:
		return fmt.Sprintf("%d records", total)
	case more > 0:
		return fmt.Sprintf("%s and %d more", text, more)
	}
	return text
}

// exchangeRow has room for IPv4 and its port, and for most names of a cluster.
const exchangeRow = "%-12s  %-21s  %-5s  %-5s  %-45s  %-8s  %7s  %s"

// ExchangeHead is the line above those of [Exchange.String].
func ExchangeHead() string {
	return fmt.Sprintf(exchangeRow, "TIME", "CLIENT", "PROTO", "TYPE", "NAME", "RCODE", "TOOK", "ANSWER")
}

// String is a line, without its end.
func (e *Exchange) String() string {
	answer := e.Answer()
	if e.Truncated {
		answer = strings.TrimSpace(answer + " (truncated)")
	}
	if answer == "" {
		answer = "-"
	}
	name := e.Name()
	if name == "" {
		name = "?"
	}
	return fmt.Sprintf(exchangeRow, e.At.Format("15:04:05.000"), e.Client, e.Transport(), e.Type(), name, e.RCode(), e.Took.Round(roundTo(e.Took)), answer)
}

// roundTo leaves three digits or so.
func roundTo(d time.Duration) time.Duration {
	switch {
	case d >= time.Second:
		return 10 * time.Millisecond
	case d >= time.Millisecond:
		return 10 * time.Microsecond
	}
	return 100 * time.Nanosecond
}
