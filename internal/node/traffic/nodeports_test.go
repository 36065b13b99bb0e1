package traffic

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
)

func TestNodePortAddrs(t *testing.T) {
	addrs := func(texts string) []netip.Addr {
		var all []netip.Addr
		for text := range strings.FieldsSeq(texts) {
			all = append(all, netip.MustParseAddr(text))
		}
		return all
	}
	own := addrs("192.0.2.1 2001:db8::1")
	local := addrs("127.0.0.1 169.254.1.1 192.0.2.1 198.51.100.1 ::1 2001:db8::1 2001:db8:1::1 fe80::1")
	for words, want := range map[string]string{
		"":                                "192.0.2.1 2001:db8::1",
		"primary":                         "192.0.2.1 2001:db8::1",
		"all":                             "192.0.2.1 198.51.100.1 2001:db8::1 2001:db8:1::1",
		"0.0.0.0/0 ::/0":                  "192.0.2.1 198.51.100.1 2001:db8::1 2001:db8:1::1",
		"localhost":                       "127.0.0.1 ::1",
		"primary localhost":               "127.0.0.1 192.0.2.1 ::1 2001:db8::1",
		"198.51.100.0/24 2001:db8:1::/64": "198.51.100.1 2001:db8:1::1",
		"primary 198.51.100.0/24":         "192.0.2.1 198.51.100.1 2001:db8::1",
		"198.51.100.0/24":                 "198.51.100.1 2001:db8::1 2001:db8:1::1", // nothing is said of IPv6
		"fe80::/10 169.254.0.0/16":        "169.254.1.1 fe80::1",
		"127.0.0.0/8 ::1/128":             "127.0.0.1 ::1",
	} {
		n, err := ParseNodePortAddrs(strings.Fields(words))
		if err != nil {
			t.Error(err)
		}
		if got := strings.Trim(fmt.Sprint(n.resolve(own, local)), "[]"); got != want {
			t.Errorf("%q: %s, want %s", words, got, want)
		}
	}
	for words, want := range map[string]string{
		"eth0":            `"eth0" is neither an address range, like 192.0.2.0/24, nor one of primary, all, localhost`,
		"192.0.2.1":       `"192.0.2.1" is neither`,
		"primary primary": "primary is there twice",
	} {
		if _, err := ParseNodePortAddrs(strings.Fields(words)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %s", words, err, want)
		}
	}
}
