package podspec

import (
	"strings"
	"testing"
)

func TestExpand(t *testing.T) {
	vars := map[string]string{"A": "a", "EMPTY": "", "REF": "$(A)", "a b": "space"}
	lookup := func(name string) (string, bool) { v, ok := vars[name]; return v, ok }
	for in, want := range map[string]string{
		"":              "",
		"$":             "$",
		"$$":            "$",
		"$$$":           "$$",
		"$(A)":          "a",
		"x$(A)y$(A)":    "xaya",
		"$$(A)":         "$(A)",
		"$$$(A)":        "$a",
		"$$$$(A)":       "$$(A)",
		"$(EMPTY)":      "",
		"$(NONE)":       "$(NONE)",
		"$()":           "$()",
		"$(REF)":        "$(A)", // once, not again
		"$(A":           "$(A",
		"$(A $(A)":      "$(A $(A)", // a name goes to the first closing one
		"$A ${A} $ (A)": "$A ${A} $ (A)",
		"$(a b)":        "space",
		"$é$(A)":        "$éa",
		"50$":           "50$",
	} {
		if got := expand(in, lookup); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
	if expandAll(nil, lookup) != nil {
		t.Error("nil becomes something")
	}
}

// A text with each $ doubled comes back as it was, whatever it is; names are only those that are written in it.
func FuzzExpand(f *testing.F) {
	f.Add("$(A)$$(B)$")
	f.Add("$$$(")
	f.Fuzz(func(t *testing.T, text string) {
		escaped := strings.ReplaceAll(text, "$", "$$")
		if got := expand(escaped, func(string) (string, bool) { return "WRONG", true }); got != text {
			t.Errorf("%q comes back as %q", text, got)
		}
		expand(text, func(name string) (string, bool) {
			if !strings.Contains(text, "$("+name+")") {
				t.Errorf("%q: name %q is not in it", text, name)
			}
			return "", false
		})
		if !strings.Contains(text, "$$") {
			if got := expand(text, func(string) (string, bool) { return "", false }); got != text {
				t.Errorf("%q without any variables becomes %q", text, got)
			}
		}
	})
}

func TestEnvFile(t *testing.T) {
	const text = "# a comment\n\n  A='one'\nB='two\nlines'  # why\nC=''\nD='it''\n"
	for key, want := range map[string]string{"A": "one", "B": "two\nlines", "C": ""} {
		if got, there, err := envFileValue(text, key); err != nil || !there || got != want {
			t.Errorf("%s: %q, %v, %v", key, got, there, err)
		}
	}
	if _, _, err := envFileValue(text, "E"); err == nil || !strings.Contains(err.Error(), "line 7") {
		t.Errorf("broken line: %v", err)
	}
	if _, there, err := envFileValue("A='x'", "B"); there || err != nil {
		t.Errorf("no such key: %v, %v", there, err)
	}
	for _, broken := range []string{"A=x", "A ='x'", "='x'", "A", "A='x", "A='x' y", "A=\nB='x'"} {
		if _, there, err := envFileValue(broken+"\n", "Z"); err == nil || there {
			t.Errorf("%q is taken", broken)
		}
	}
}

func FuzzEnvFile(f *testing.F) {
	f.Add("A='b'\n", "A")
	f.Add("# x\n A='b\nc' #\n", "A")
	f.Fuzz(func(t *testing.T, text, key string) {
		value, there, err := envFileValue(text, key)
		if there && (err != nil || !strings.Contains(text, key+"='"+value+"'")) {
			t.Errorf("%q of %q: %q, %v", key, text, value, err)
		}
	})
}
