package wire

import (
	"bytes"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

func TestAppendName(t *testing.T) {
	t.Parallel()
	label63, label61 := strings.Repeat("a", 63), strings.Repeat("b", 61)
	longest := strings.Join([]string{label63, label63, label63, label61}, ".") // 3*64+62+1 = 255
	for _, c := range []struct {
		title, text, want string // want is the name as it is written, "" = none
		length            int
	}{
		{"with its dot", "a.example.", "a.example.", 11},
		{"without", "a.example", "a.example.", 11},
		{"the root", ".", ".", 1},
		{"nothing is the root", "", ".", 1},
		{"letter case is kept", "A.Example", "A.Example.", 11},
		{"an escaped dot is part of a label", `a\.b.example`, `a\.b.example.`, 13},
		{"an escaped octet", `a\000b.example`, `a\000b.example.`, 13},
		{"the longest label", label63, label63 + ".", 65},
		{"a label too long", label63 + "a", "", 0},
		{"the longest name", longest, longest + ".", 255},
		{"a name too long", longest + "b", "", 0},
		{"an empty label", "a..b", "", 0},
		{"an empty label first", ".a", "", 0},
		{"an empty label last", "a..", "", 0},
		{"an escape that is cut off", `a\`, "", 0},
	} {
		got, err := AppendName([]byte("x"), c.text)
		if (err == nil) != (c.want != "") {
			t.Errorf("%s: %v", c.title, err)
			continue
		}
		if string(got[:1]) != "x" || err != nil && len(got) != 1 {
			t.Errorf("%s: what was there is % x", c.title, got)
		}
		if got = got[1:]; err == nil && (NameString(got) != c.want || len(got) != c.length || nameLength(got) != c.length) {
			t.Errorf("%s: %s of %d octets, nameLength %d; want %s of %d", c.title, NameString(got), len(got), nameLength(got), c.want, c.length)
		}
	}
}

func TestAppendLower(t *testing.T) {
	t.Parallel()
	// The length 'A' of a label is more than 63, so none is taken for a letter; what is not ASCII stays.
	got := AppendLower([]byte("X"), []byte("\x05AbZ-@\x02\xc3\x84\x00"))
	if want := "X\x05abz-@\x02\xc3\x84\x00"; string(got) != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestLabel(t *testing.T) {
	t.Parallel()
	name := []byte("\x01a\x02bc\x00")
	label, rest := Label(name)
	if string(label) != "a" || string(rest) != "\x02bc\x00" {
		t.Errorf("%q %q", label, rest)
	}
	label, rest = Label(rest)
	if string(label) != "bc" || string(rest) != "\x00" {
		t.Errorf("%q %q", label, rest)
	}
	if label, rest = Label(rest); label != nil || rest != nil {
		t.Errorf("%q %q", label, rest)
	}
}

func TestNameString(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{"\x00": ".", "\x01a\x00": "a.", "\x01a": "?", "": "?", "\x02a.\x00": `a\..`} {
		if got := NameString([]byte(name)); got != want {
			t.Errorf("%q: %q, want %q", name, got, want)
		}
	}
}

// FuzzName holds names against miekg/dns's.
func FuzzName(f *testing.F) {
	for _, seed := range []string{"\x01a\x00", "\x03www\x07example\x03com\x00", "\xc0\x0c", "\x40aaa", "\x01", strings.Repeat("\x01a", 127) + "\x00", strings.Repeat("\x01a", 128) + "\x00"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		n := nameLength(data)
		text, end, err := dns.UnpackDomainName(data, 0)
		if n == 0 {
			if err == nil && !bytes.ContainsFunc(data[:end], func(r rune) bool { return r > 127 }) && end == len(data) && !compressed(data) {
				t.Fatalf("% x is %q", data, text)
			}
			return
		}
		if err != nil || end != n {
			t.Fatalf("% x: %d octets; miekg/dns says %q, %d, %v", data, n, text, end, err)
		}
		if got := NameString(data[:n]); got != text {
			t.Fatalf("% x is %q, and %q", data, text, got)
		}
		if again, err := AppendName(nil, text); err != nil || !bytes.Equal(again, data[:n]) {
			t.Fatalf("%q is % x (%v), not % x", text, again, err, data[:n])
		}
		if rest := skipName(data); len(rest) != len(data)-n {
			t.Fatalf("skipName leaves %d octets of %d behind a name of %d", len(rest), len(data), n)
		}
	})
}

// compressed says whether there is a pointer in a name.
func compressed(data []byte) bool {
	for len(data) > 0 && data[0] != 0 {
		if data[0] >= 0xc0 {
			return true
		}
		data = data[min(1+int(data[0]), len(data)):]
	}
	return false
}
