package model

import (
	"bufio"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
)

// Text is a Snapshot for people and golden files: the network, then each Service with its ports, their frontends and where these lead, all
// endpoints, and what could not be used. It says everything that the Snapshot says but its Revision.
func Text(s *Snapshot) string {
	var b strings.Builder
	_ = WriteText(&b, s) // a Builder takes everything
	return b.String()
}

// WriteText writes what [Text] returns, a Service at a time.
func WriteText(w io.Writer, s *Snapshot) error {
	t := texter{w: bufio.NewWriter(w)}
	t.network(&s.Network)
	for service := range s.Services() {
		t.service(service)
	}
	return t.w.Flush()
}

// A texter keeps the first error in its writer, where Flush finds it.
type texter struct {
	w *bufio.Writer
}

// line writes one line: words with a space in between, empty ones left out.
func (t texter) line(indent int, words ...string) {
	for range indent {
		_, _ = t.w.WriteString("  ")
	}
	first := true
	for _, word := range words {
		if word == "" {
			continue
		}
		if !first {
			_ = t.w.WriteByte(' ')
		}
		first = false
		_, _ = t.w.WriteString(word)
	}
	_ = t.w.WriteByte('\n')
}

func (t texter) network(n *Network) {
	t.line(0, "network", named("node", n.Node), named("zone", n.Zone))
	for _, part := range []struct {
		name string
		list []string
	}{
		{"node port addresses", stringsOf(n.NodePortAddrs)},
		{"pods", stringsOf(n.PodCIDRs)},
		{"cluster", stringsOf(n.ClusterCIDRs)},
		{"nodes' pods", stringsOf(n.NodePodCIDRs)},
		{"services", stringsOf(n.ServiceCIDRs)},
	} {
		if len(part.list) > 0 {
			t.line(1, part.name, strings.Join(part.list, " "))
		}
	}
}

func stringsOf[T fmt.Stringer](list []T) []string {
	texts := make([]string, len(list))
	for i, v := range list {
		texts[i] = v.String()
	}
	return texts
}

// named is "name value", or nothing if there is no value.
func named(name, value string) string {
	if value == "" {
		return ""
	}
	return name + " " + word(value)
}

// word quotes what would not be one word.
func word(text string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-._/:", r)
	}
	if text != "" && strings.IndexFunc(text, func(r rune) bool { return !plain(r) }) < 0 {
		return text
	}
	return fmt.Sprintf("%q", text)
}

func flag(name string, set bool) string {
	if set {
		return name
	}
	return ""
}

func (t texter) service(s *Service) {
	t.line(0)
	t.line(0, "service", word(s.Key.Namespace)+"/"+word(s.Key.Name), s.Kind.String(),
		strings.Join(stringsOf(s.ClusterIPs), " "), named("name", s.ExternalName), named("uid", s.UID),
		flag("publish-not-ready", s.PublishNotReady), named("other-proxy", s.OtherProxy))
	if s.TTL >= 0 {
		t.line(1, "ttl", s.TTL.String())
	}
	if s.HealthCheckNodePort != 0 {
		t.line(1, "health check", fmt.Sprint(s.HealthCheckNodePort))
	}
	if s.LocalEndpoints != 0 {
		t.line(1, "local endpoints", fmt.Sprint(s.LocalEndpoints))
	}
	for _, port := range s.Ports {
		t.port(port)
	}
	t.endpoints(s.Endpoints)
	for _, p := range s.Problems {
		t.line(1, "problem", p.Kind, word(p.Object.Namespace)+"/"+word(p.Object.Name)+":", p.Reason.String()+":", p.Message)
	}
}

func (t texter) port(p *Port) {
	t.line(1, "port", portName(p.Name, p.Protocol), fmt.Sprint(p.Number), named("app", p.AppProtocol))
	var pools []*Pool
	for i := range p.Frontends {
		f := &p.Frontends[i]
		outside := ""
		if f.External != f.Internal {
			outside = "outside " + poolName(f.External)
		}
		var ranges string
		if len(f.SourceRanges) > 0 {
			ranges = "only from " + strings.Join(stringsOf(f.SourceRanges), " ")
		}
		t.line(2, "frontend", netip.AddrPortFrom(f.Addr, f.Port).String(), f.Kind.String(), "→", poolName(f.Internal), outside,
			flag("keep-source", f.KeepSource), ranges)
		for _, pool := range []*Pool{f.Internal, f.External} {
			if !slices.Contains(pools, pool) {
				pools = append(pools, pool)
			}
		}
	}
	for _, pool := range pools {
		affinity := ""
		if pool.Affinity > 0 {
			affinity = "affinity " + pool.Affinity.String()
		}
		if len(pool.Endpoints) == 0 {
			t.line(2, "pool", poolName(pool), pool.Empty.String(), affinity)
			continue
		}
		t.line(2, "pool", poolName(pool), affinity)
		for _, e := range pool.Endpoints {
			t.line(3, e.AddrPort.String())
		}
	}
}

// portName is like "http/TCP"; "TCP" if there is no name.
func portName(name string, protocol Protocol) string {
	if name == "" {
		return protocol.String()
	}
	return word(name) + "/" + protocol.String()
}

func poolName(p *Pool) string {
	policy, version := "cluster", "4"
	if p.Local {
		policy = "local"
	}
	if p.IPv6 {
		version = "6"
	}
	return policy + version
}

func (t texter) endpoints(endpoints []*Endpoint) {
	for _, e := range endpoints {
		reason := ""
		if e.Reason != None {
			reason = "(" + e.Reason.String() + ")"
		}
		t.line(1, "endpoint", portName(e.PortName, e.Protocol), e.AddrPort.String(), reason,
			flag("ready", e.Ready), flag("serving", e.Serving), flag("terminating", e.Terminating), flag("local", e.Local),
			named("node", e.Node), named("zone", e.Zone), named("hostname", e.Hostname), target(e.Target),
			hinted("for-zones", e.ForZones), hinted("for-nodes", e.ForNodes), "slice "+word(e.Slice))
	}
}

func target(t Target) string {
	if t == (Target{}) {
		return ""
	}
	return "target " + word(t.Kind) + "/" + word(t.Name) + " " + named("uid", t.UID)
}

func hinted(name string, list []string) string {
	if len(list) == 0 {
		return ""
	}
	words := make([]string, len(list))
	for i, v := range list {
		words[i] = word(v)
	}
	return name + " " + strings.Join(words, ",")
}
