package zone

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/rogpeppe/go-internal/txtar"
	"sigs.k8s.io/yaml"

	"github.com/endpointd/endpointd/internal/dns/wire"
	"github.com/endpointd/endpointd/internal/model"
	"github.com/endpointd/endpointd/internal/model/modeltest"
	"github.com/endpointd/endpointd/internal/testkit"
)

// TestScripts runs every testdata/*.txtar. A script is steps in order:
//
//	network  YAML of a model.Network
//	apply    YAML of Services and EndpointSlices to create or replace
//	delete   a line an object: kind namespace/name
//	ask      a line a question: type name, and then +udp, +bufsize=N, +random=N, +class=CH, +pod=yes, +pod=no
//	want     the answers that must come of it
func TestScripts(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			t.Parallel()
			archive, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			s := &script{t: t, zone: newZone(t)}
			for i := range archive.Files {
				s.step(&archive.Files[i])
			}
			testkit.Golden(t, filepath.Base(file), txtar.Format(archive))
		})
	}
}

// newZone is one at a certain time.
func newZone(t testing.TB) *Zone {
	t.Helper()
	z, err := New(Options{
		Domain: "cluster.local", Servers: []netip.Addr{netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("fd00::a")},
		Now: func() time.Time { return time.Unix(1_000_000_000, 0) },
	})
	if err != nil {
		t.Fatal(err)
	}
	return z
}

type script struct {
	t       testing.TB
	in      model.Input
	was     *model.Snapshot
	zone    *Zone
	some    bool
	answers strings.Builder
}

func (s *script) step(step *txtar.File) {
	s.some = s.some || step.Name != "ask" && step.Name != "want"
	switch step.Name {
	case "network":
		var network model.Network
		if err := yaml.UnmarshalStrict(step.Data, &network); err != nil {
			s.t.Fatalf("%v in:\n%s", err, step.Data)
		}
		s.in = s.in.WithNetwork(network)
	case "apply":
		in, err := modeltest.Apply(s.in, string(step.Data))
		if err != nil {
			s.t.Fatal(err)
		}
		s.in = in
	case "delete":
		for line := range strings.Lines(string(step.Data)) {
			kind, id, _ := strings.Cut(strings.TrimSpace(line), " ")
			namespace, name, _ := strings.Cut(id, "/")
			if kind == "Service" {
				s.in = s.in.WithoutService(model.ServiceKey{Namespace: namespace, Name: name})
			} else {
				s.in = s.in.WithoutSlice(namespace, name)
			}
		}
	case "ask":
		s.build()
		s.answers.Reset()
		for line := range strings.Lines(string(step.Data)) {
			if line = strings.TrimSpace(line); line != "" {
				s.answers.WriteString("\n" + s.ask(line))
			}
		}
	case "want":
		step.Data = []byte(strings.TrimPrefix(s.answers.String(), "\n"))
	default:
		s.t.Fatalf("unknown step %q", step.Name)
	}
}

// build lets the Input be what is answered from, unless there was no step that made one.
func (s *script) build() {
	if !s.some {
		return
	}
	s.was = model.Build(s.in, s.was)
	s.zone = s.zone.Next(s.was)
}

// ask puts a question and returns the answer as dig prints it.
func (s *script) ask(line string) string {
	fields := strings.Fields(line)
	m := new(dns.Msg)
	m.SetQuestion(dns.Fqdn(fields[1]), dns.StringToType[fields[0]])
	m.RecursionDesired = false
	tcp, random, known := true, 0, ""
	for _, option := range fields[2:] {
		key, value, _ := strings.Cut(option, "=")
		n, _ := strconv.Atoi(value)
		switch key {
		case "+udp":
			tcp = false
		case "+bufsize":
			tcp = false
			m.SetEdns0(uint16(n), false)
		case "+random":
			random = n
		case "+class":
			m.Question[0].Qclass = dns.StringToClass[value]
		case "+pod":
			known = value
		default:
			s.t.Fatalf("unknown option %q", option)
		}
	}
	packet, err := m.Pack()
	if err != nil {
		s.t.Fatalf("%s: %v", line, err)
	}
	var q wire.Query
	if rcode, ok := q.Parse(packet); rcode != 0 || !ok {
		s.t.Fatalf("%s: %d %v", line, rcode, ok)
	}
	var r wire.Response
	r.Begin(nil, &q, q.Limit(tcp, 1232), 1232)
	outcome := s.zone.Answer(&q, &r, uint64(random))
	if known != "" {
		if outcome.Kind != AskPod {
			s.t.Errorf("%s: the outcome is %v", line, outcome)
		}
		outcome = s.zone.AnswerPod(&q, &r, known == "yes")
	}
	return ";; " + line + "\n" + text(s.t, outcome, r.Finish())
}

func text(t testing.TB, outcome Outcome, message []byte) string {
	t.Helper()
	var m dns.Msg
	if err := m.Unpack(message); err != nil {
		t.Fatalf("%v: % x", err, message)
	}
	switch outcome.Kind {
	case NotOurs:
		return "not ours\n"
	case AskPod:
		return fmt.Sprintf("ask whether %s has a pod with %s\n", outcome.Namespace, outcome.Addr)
	}
	var b strings.Builder
	b.WriteString(dns.RcodeToString[m.Rcode])
	if m.Authoritative {
		b.WriteString(" aa")
	}
	if m.Truncated {
		b.WriteString(" tc")
	}
	if outcome.Kind == Follow {
		fmt.Fprintf(&b, ", then ask for %s", wire.NameString(outcome.Target))
	}
	b.WriteString("\n")
	writeSection(&b, "", m.Answer)
	writeSection(&b, "authority", m.Ns)
	writeSection(&b, "additional", m.Extra)
	return b.String()
}

func writeSection(b *strings.Builder, name string, records []dns.RR) {
	for _, rr := range records {
		if rr.Header().Rrtype == dns.TypeOPT {
			continue
		}
		if name != "" {
			b.WriteString(name + ": ")
		}
		b.WriteString(strings.Join(strings.Fields(rr.String()), " ") + "\n")
	}
}
