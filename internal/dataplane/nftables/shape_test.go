package nftables

import (
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/endpointd/endpointd/internal/dataplane/dptest"
	"github.com/endpointd/endpointd/internal/model"
	"github.com/endpointd/endpointd/internal/testkit"
)

// TestShape shows all of the table but what only differs by a number or by the family.
func TestShape(t *testing.T) {
	again := regexp.MustCompile(`(pick|draw)-(internal|external)\d-\d+|mod \d+|saddr/\d+`)
	var lines []string
	skip := false
	for line := range strings.SplitSeq(staticShape(true).String(), "\n") {
		if name, ok := strings.CutPrefix(line, "chain "); ok {
			name, _, _ = strings.Cut(name, ":")
			skip = regexp.MustCompile(`6$|external|-([3-9]|[1-9]\d|1\d[013-9]|\d{4,}|[2-9]\d\d)$`).MatchString(name)
		}
		if strings.HasPrefix(line, "element ") {
			skip = !regexp.MustCompile(`entry4 (special|drop|1|64|128|1048576) `).MatchString(line)
		}
		if number := again.FindString(line); strings.HasPrefix(number, "saddr/") && number != "saddr/32" && number != "saddr/31" && number != "saddr/0" {
			continue
		}
		if !skip {
			lines = append(lines, line)
		}
	}
	testkit.Golden(t, "shape.golden", []byte(strings.Join(lines, "\n")+"\n"))
}

// TestListing holds that the table does not break the tools of others: nft 1.0.6 aborts on some rules that it did not write itself.
func TestListing(t *testing.T) {
	testkit.Need(t, testkit.Program("nft"))
	w := dptest.NewWorld(t)
	input, _ := served(t, w)
	synced(t, w, model.Build(withAffinity(input, 10), nil))
	in(t, w, func() error {
		for _, args := range [][]string{{"list", "ruleset"}, {"-j", "list", "ruleset"}} {
			out, err := exec.CommandContext(t.Context(), "nft", args...).Output()
			if err != nil {
				t.Errorf("nft %v: %v", args, err)
			}
			if !strings.Contains(string(out), "numgen random mod 64 map @slots4") {
				t.Errorf("nft %v does not show what the rules do", args)
			}
		}
		return nil
	})
}

func BenchmarkShape(b *testing.B) {
	for b.Loop() {
		staticShape(true)
	}
}
