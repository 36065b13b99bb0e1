package app

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/url"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"github.com/endpointd/endpointd/internal/testkit"
)

// debugSocketOf serves what an agent would, until end.
func debugSocketOf(t *testing.T, d debugNames) (dir string, end func()) {
	t.Helper()
	dir = t.TempDir()
	p := planeOf(t)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- serveDebug(ctx, dir, debugHandler(p, d), p.o.log) }()
	testkit.Await(t, askPatience, func() error {
		return Debug(t.Context(), DebugOptions{DataDir: dir, What: "status"}, io.Discard)
	})
	stopped := false
	end = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(end)
	return dir, end
}

// following is a `debug queries`.
type following struct {
	said  lockedText
	ended chan error
	stop  context.CancelFunc
}

func followQueries(t *testing.T, dir string, q url.Values) *following {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	f := &following{ended: make(chan error, 1), stop: cancel}
	go func() {
		f.ended <- Debug(ctx, DebugOptions{DataDir: dir, What: "queries?" + q.Encode(), Follow: true}, &f.said)
	}()
	t.Cleanup(cancel)
	f.says(t, "TIME")
	return f
}

func (f *following) says(t *testing.T, want string) {
	t.Helper()
	testkit.Await(t, askPatience, func() error {
		if text := f.said.String(); !strings.Contains(text, want) {
			return errors.New("no " + want + " in " + text)
		}
		return nil
	})
}

func TestDebugQueries(t *testing.T) {
	n := runNames(t, nil)
	n.set(snapshotOf(t, webAndPeers))
	dir, end := debugSocketOf(t, debugNames{names: n})
	all := followQueries(t, dir, nil)
	some := followQueries(t, dir, url.Values{"name": {"default.svc.cluster.local"}, "client": {"10.0.0.0/8", "127.0.0.0/8"}, "rate": {"1"}})
	others := followQueries(t, dir, url.Values{"client": {"10.0.0.0/8"}})
	at := n.server.Addrs()[0]
	lookup(t, at, "none.other.svc.cluster.local.", dns.TypeA)
	for range 20 {
		lookup(t, at, "web.default.svc.cluster.local.", dns.TypeA)
	}
	all.says(t, "10.96.0.7\n")
	all.says(t, "none.other.svc.cluster.local.")
	some.says(t, "10.96.0.7\n")
	some.says(t, " omitted\n") // without a line to tell it before
	if text := some.said.String(); strings.Contains(text, "none.other") {
		t.Errorf("with a suffix:\n%s", text)
	}
	all.stop() // Ctrl-C
	if err := <-all.ended; err != nil {
		t.Errorf("Ctrl-C: %v", err)
	}
	short := followQueries(t, dir, url.Values{"for": {"1ms"}})
	if err := <-short.ended; err != nil {
		t.Errorf("its time is over: %v", err)
	}
	end()
	for _, f := range []*following{some, others} {
		if err := <-f.ended; err != nil || !strings.HasSuffix(f.said.String(), "the agent ends\n") {
			t.Errorf("the agent ended: %v\n%s", err, &f.said)
		}
	}
	if text := others.said.String(); strings.Contains(text, "cluster.local") {
		t.Errorf("of other clients:\n%s", text)
	}
}

// Who asks for what cannot be is told what.
func TestDebugQueriesErrors(t *testing.T) {
	n := runNames(t, nil)
	dir, _ := debugSocketOf(t, debugNames{names: n})
	without, _ := debugSocketOf(t, debugNames{})
	failed, _ := debugSocketOf(t, debugNames{failed: errors.New("the port is taken")})
	for _, test := range []struct{ dir, what, want string }{
		{dir, "queries?name=a..b", `name "a..b"`},
		{dir, "queries?client=nobody", `client "nobody"`},
		{dir, "queries?rate=many", `rate "many"`},
		{dir, "queries?rate=-1", "-1 lines a second"},
		{dir, "queries?for=ever", `for "ever": this is no length of time, like 30s`},
		{without, "queries", "there is no DNS server here: this agent was started with --dns-port 0 or --proxy-only"},
		{failed, "queries", "the port is taken"},
	} {
		if err := Debug(t.Context(), DebugOptions{DataDir: test.dir, What: test.what, Follow: true}, io.Discard); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", test.what, err, test.want)
		}
	}
}

// A reader that takes nothing slows no answer, and is told how much it missed.
func TestDebugQueriesToASlowReader(t *testing.T) {
	n := runNames(t, nil)
	n.set(snapshotOf(t, webAndPeers))
	dir, end := debugSocketOf(t, debugNames{names: n})
	reader, writer := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		ended <- Debug(t.Context(), DebugOptions{DataDir: dir, What: "queries?rate=1000000", Follow: true}, writer)
		_ = writer.Close() // of a pipe
	}()
	if _, err := io.ReadFull(reader, make([]byte, 4)); err != nil { // it has begun, and now nobody reads
		t.Fatal(err)
	}
	at := n.server.Addrs()[0]
	const questions = 4000 // more than the sockets have room for
	name := strings.Repeat(strings.Repeat("x", 50)+".", 4) + "default.svc.cluster.local."
	for range questions {
		lookup(t, at, name, dns.TypeA)
	}
	end() // it does not wait for the reader
	rest, err := io.ReadAll(reader)
	if err != nil {
		t.Error(err)
	}
	if err := <-ended; err != nil && !strings.Contains(err.Error(), "broke off") { // cut off, or with its last line: both can be
		t.Error(err)
	}
	if lines := strings.Count(string(rest), "NXDOMAIN"); lines == 0 || lines >= questions {
		t.Errorf("%d lines of %d questions", lines, questions)
	}
}

// What is wrong is said first, in words.
func TestStatusOfNames(t *testing.T) {
	n := runNames(t, func(o *namesOptions) { o.ResolvConf = resolvConf(t, "nameserver 127.0.0.1\n") })
	dir, _ := debugSocketOf(t, debugNames{names: n})
	ask := func() (st struct {
		DataPlane string
		DNS       namesStatus
	}) {
		t.Helper()
		var out strings.Builder
		check(t, Debug(t.Context(), DebugOptions{DataDir: dir, What: "status"}, &out))
		check(t, json.Unmarshal([]byte(out.String()), &st))
		return st
	}
	st := ask()
	if st.DataPlane != "nftables" || len(st.DNS.Upstreams) != 1 || st.DNS.Upstreams[0].Address != "127.0.0.1:53" || st.DNS.Upstreams[0].Domains[0] != "." ||
		len(st.DNS.Problems) == 0 || !strings.Contains(st.DNS.Problems[0], "SERVFAIL") {
		t.Errorf("before: %+v", st)
	}
	n.set(snapshotOf(t, webAndPeers))
	lookup(t, n.server.Addrs()[0], "web.default.svc.cluster.local.", dns.TypeA)
	if st = ask(); st.DNS.Revision != 1 || st.DNS.Services != 2 || st.DNS.Responses != 1 || st.DNS.Domain != "cluster.local" || len(st.DNS.Listen) != 1 ||
		strings.Contains(strings.Join(st.DNS.Problems, " "), "SERVFAIL") {
		t.Errorf("after: %+v", st)
	}
	none, _ := debugSocketOf(t, debugNames{})
	var out strings.Builder
	check(t, Debug(t.Context(), DebugOptions{DataDir: none, What: "status"}, &out))
	if strings.Contains(out.String(), "dns") {
		t.Errorf("without a server: %s", &out)
	}
}
