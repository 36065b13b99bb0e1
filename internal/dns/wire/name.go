package wire

import (
	"errors"
	"strings"

	"github.com/miekg/dns"
)

// MaxName is how long a name may be, its lengths and the root's 0 included (RFC 1035, section 3.1).
const MaxName = 255

// maxLabel is how long a label may be.
const maxLabel = 63

// AppendName appends a name that is written as in a zone file, with escapes and with or without a dot at its end.
func AppendName(dst []byte, text string) ([]byte, error) {
	var buf [MaxName + 1]byte
	if strings.HasPrefix(text, ".") && text != "." {
		return dst, errors.New("a name does not begin with a dot, and no label is empty")
	}
	n, err := dns.PackDomainName(dns.Fqdn(text), buf[:], 0, nil, false)
	if err != nil {
		return dst, err
	}
	if n > MaxName { // which miekg/dns lets pass
		return dst, errors.New("a name has at most 255 octets")
	}
	return append(dst, buf[:n]...), nil
}

// NameString is a name as it is written in a zone file, with a dot at its end and escapes where they are needed.
func NameString(name []byte) string {
	text, _, err := dns.UnpackDomainName(name, 0)
	if err != nil {
		return "?" // it is none
	}
	return text
}

// AppendLower appends a name in lower case: names are compared so (RFC 4343). Lengths of labels are below 64, so no letter.
func AppendLower(dst, name []byte) []byte {
	for _, c := range name {
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		dst = append(dst, c)
	}
	return dst
}

// Label splits the first label off a name; it is empty for the root, which has none.
func Label(name []byte) (label, rest []byte) {
	if len(name) == 0 || name[0] == 0 {
		return nil, nil
	}
	n := 1 + int(name[0])
	return name[1:n], name[n:]
}

// nameLength is how long the name at the beginning of data is; 0 if there is none, or it is compressed, which no question can be.
func nameLength(data []byte) int {
	for n := 0; n < len(data) && n < MaxName; {
		c := int(data[n])
		if c == 0 {
			return n + 1
		}
		if c > maxLabel {
			return 0
		}
		n += 1 + c
	}
	return 0
}

// skipName returns what is behind a name that may be compressed, nil if there is no name.
func skipName(data []byte) []byte {
	for n := 0; n < len(data) && n < MaxName; {
		c := int(data[n])
		switch {
		case c == 0:
			return data[n+1:]
		case c >= 0xc0:
			if n+2 > len(data) {
				return nil
			}
			return data[n+2:]
		case c > maxLabel:
			return nil
		}
		n += 1 + c
	}
	return nil
}
