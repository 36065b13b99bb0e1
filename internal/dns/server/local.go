package server

import (
	"net/netip"

	"github.com/miekg/dns"

	"github.com/endpointd/endpointd/internal/dns/wire"
)

// localTTL in seconds is that of answers which never change.
const localTTL = 86400

// The names for which there is no upstream to ask. Other private zones of RFC 6303 are forwarded: the node's upstreams often know them.
const (
	localhostName = "\x09localhost\x00"
	invalidName   = "\x07invalid\x00"
	onionName     = "\x05onion\x00"
	loopbackPTR4  = "\x011\x010\x010\x03127\x07in-addr\x04arpa\x00"
	loopbackPTR6  = "\x011\x010\x010\x010\x010\x010\x010\x010\x010\x010\x010\x010\x010\x010\x010\x010" +
		"\x010\x010\x010\x010\x010\x010\x010\x010\x010\x010\x010\x010\x010\x010\x010\x010\x03ip6\x04arpa\x00"
)

// isLocal says whether a name ends in localhost (RFC 6761, section 6.3), invalid (section 6.4) or onion (RFC 7686).
func isLocal(name []byte) bool { return localSuffix(name) != "" }

func localSuffix(name []byte) string {
	for rest := name; len(rest) > 1; _, rest = wire.Label(rest) {
		switch len(rest) {
		case len(localhostName), len(invalidName), len(onionName):
		default:
			continue
		}
		for _, suffix := range [...]string{localhostName, invalidName, onionName} {
			if equalFold(rest, suffix) {
				return suffix
			}
		}
	}
	return ""
}

// equalFold compares a name with one in lower case.
func equalFold(name []byte, lower string) bool {
	if len(name) != len(lower) {
		return false
	}
	for i, c := range name {
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		if c != lower[i] {
			return false
		}
	}
	return true
}

// local answers for names that are nobody's business but ours, and says whether this is one.
func (w *worker) local() bool {
	switch suffix := localSuffix(w.q.Name); {
	case suffix == localhostName:
		w.r.SetAuthoritative()
		w.loopback()
	case suffix != "":
		w.r.SetAuthoritative()
		w.r.SetRCode(dns.RcodeNameError)
	case w.q.Type == dns.TypePTR && (equalFold(w.q.Name, loopbackPTR4) || equalFold(w.q.Name, loopbackPTR6)):
		w.r.SetAuthoritative()
		w.r.AddName(wire.Answer, wire.QuestionAt, dns.TypePTR, localTTL, []byte(localhostName))
	default:
		return false
	}
	return true
}

func (w *worker) loopback() {
	switch w.q.Type {
	case dns.TypeA:
		w.r.AddAddr(wire.Answer, wire.QuestionAt, localTTL, netip.AddrFrom4([4]byte{127, 0, 0, 1}))
	case dns.TypeAAAA:
		w.r.AddAddr(wire.Answer, wire.QuestionAt, localTTL, netip.IPv6Loopback())
	}
}
