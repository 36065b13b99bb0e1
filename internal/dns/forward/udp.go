package forward

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"time"

	"github.com/miekg/dns"

	"github.com/endpointd/endpointd/internal/dns/wire"
)

const (
	// maxWrong is how many packets that are no answer are passed over: more mean that somebody guesses, and TCP is safe from that.
	maxWrong = 64
	// maxRecased is how many answers in a row may fail to repeat the letter case of one that did before: a single one may have been forged.
	maxRecased = 3
	// caseRepeats is what recased is once the upstream repeated the letter case of a question.
	caseRepeats = -1
)

// errUseTCP says that the answer is to be had over TCP.
var errUseTCP = errors.New("use TCP")

// overUDP asks over UDP, and over TCP if the answer is too long or may be somebody else's. Each question has a socket and so a port of its own, which
// takes packets of the upstream only (RFC 5452, section 9.2).
func (u *upstream) overUDP(ctx context.Context, q question) (*dns.Msg, error) {
	m, err := u.packets(ctx, q, request{mixed: u.mixes(), plain: u.plain.Load()})
	if err == nil && m.Rcode == dns.RcodeFormatError && m.IsEdns0() == nil && !u.plain.Load() { // RFC 6891, section 7
		if m, err = u.packets(ctx, q, request{mixed: u.mixes(), plain: true}); err == nil && m.Rcode != dns.RcodeFormatError {
			u.plain.Store(true)
		}
	}
	if errors.Is(err, errUseTCP) {
		return u.overStream(ctx, q)
	}
	return m, err
}

// mixes says whether it repeats the letter case of questions, as far as is known.
func (u *upstream) mixes() bool { return u.recased.Load() < maxRecased }

func (u *upstream) packets(ctx context.Context, q question, how request) (*dns.Msg, error) {
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(u.Addr))
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	id := uint16(rand.Uint32())
	packet, asked := q.pack(id, how)
	if _, err := conn.Write(packet); err != nil {
		return nil, err
	}
	buf := make([]byte, 2*udpSize) // some send more than they were asked to
	for range maxWrong {
		n, err := conn.Read(buf)
		switch {
		case ctx.Err() != nil:
			return nil, fmt.Errorf("%w: %w", errSilent, ctx.Err())
		case err != nil:
			return nil, err
		}
		m, err := u.read(buf[:n], id, asked, n == len(buf))
		if m != nil || err != nil {
			return m, err
		}
	}
	return nil, errUseTCP
}

// read is what a packet says, nil if it is to be ignored. A packet that fills the buffer may be longer than that.
func (u *upstream) read(packet []byte, id uint16, asked []byte, isCut bool) (*dns.Msg, error) {
	switch judge(packet, id, asked) {
	case isOther:
		u.metrics.Wrong.Add(1)
		return nil, nil //nolint:nilnil // a packet that is nobody's business is no error
	case isRecased:
		u.metrics.Recased.Add(1)
		u.noteRecased()
		return nil, errUseTCP
	case isAnswer:
	}
	if len(packet) >= wire.HeaderLen+len(asked) && hasUpper(asked) {
		u.recased.Store(caseRepeats)
	}
	m, err := readMessage(packet)
	if isTruncated := packet[2]&0x02 != 0; isCut || isTruncated {
		u.metrics.Truncated.Add(1)
		return nil, errUseTCP
	}
	if err != nil {
		u.metrics.Malformed.Add(1)
		return nil, nil //nolint:nilnil // as above
	}
	return m, nil
}

// hasUpper says whether the name of a question has a letter in upper case, which ours have by chance only.
func hasUpper(asked []byte) bool {
	return slices.ContainsFunc(asked[:len(asked)-4], func(c byte) bool { return 'A' <= c && c <= 'Z' })
}

// noteRecased counts an answer whose question was not repeated letter by letter. An upstream that never did so is not asked like that again.
func (u *upstream) noteRecased() {
	switch n := u.recased.Load(); {
	case n == 0:
		u.recased.Store(maxRecased)
	case n == caseRepeats:
		u.recased.Store(1)
	case n < maxRecased:
		u.recased.Store(n + 1)
	}
}
