package prober

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"
)

// try makes one probe with a timeout.
func try(t *testing.T, p Probe, timeout time.Duration) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	return p(ctx)
}

// port makes HTTPOptions for a server's URL.
func options(t *testing.T, server, path string) HTTPOptions {
	t.Helper()
	u, err := url.Parse(server)
	if err != nil {
		t.Fatal(err)
	}
	port, err := strconv.ParseUint(u.Port(), 10, 16)
	if err != nil {
		t.Fatal(err)
	}
	return HTTPOptions{Scheme: u.Scheme, Host: u.Hostname(), Port: uint16(port), Path: path}
}

func httpProbe(t *testing.T, o HTTPOptions) Probe {
	t.Helper()
	p, err := HTTP(o)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// wantFailure checks the kind of an error and that its text contains all parts.
func wantFailure(t *testing.T, err error, parts ...string) {
	t.Helper()
	var failure *Failure
	if !errors.As(err, &failure) {
		t.Errorf("got %v, want a failure", err)
		return
	}
	for _, part := range parts {
		if !strings.Contains(failure.Message, part) {
			t.Errorf("failure %q, want %q in it", failure.Message, part)
		}
	}
}

// mux is a server with all kinds of answers.
func mux(other string) http.Handler {
	m := http.NewServeMux()
	m.HandleFunc("/status/{code}", func(w http.ResponseWriter, r *http.Request) {
		code, _ := strconv.Atoi(r.PathValue("code"))
		w.WriteHeader(code)
	})
	m.HandleFunc("/hops/{n}", func(w http.ResponseWriter, r *http.Request) {
		if n, _ := strconv.Atoi(r.PathValue("n")); n > 0 {
			http.Redirect(w, r, fmt.Sprintf("/hops/%d", n-1), http.StatusFound)
		}
	})
	m.HandleFunc("/away", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Location", other)
		w.WriteHeader(http.StatusTemporaryRedirect)
		fmt.Fprint(w, "elsewhere")
	})
	m.HandleFunc("/nowhere", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusFound) })
	m.HandleFunc("/slow", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	m.HandleFunc("/half", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, "half")
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	m.HandleFunc("/huge", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.Copy(w, io.LimitReader(zeros{}, 100<<20)) })
	m.HandleFunc("/chunks", func(w http.ResponseWriter, _ *http.Request) {
		for range 3 {
			fmt.Fprint(w, "chunk")
			_ = http.NewResponseController(w).Flush()
		}
	})
	m.HandleFunc("/early", func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusEarlyHints)
		w.WriteHeader(http.StatusNoContent)
	})
	return m
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestHTTP(t *testing.T) {
	plain := httptest.NewServer(mux("http://elsewhere.example/"))
	defer plain.Close()
	secure := httptest.NewUnstartedServer(mux(plain.URL))
	secure.EnableHTTP2 = true
	secure.StartTLS()
	defer secure.Close()
	for _, c := range []struct {
		path    string
		failure string // "" = success
	}{
		{"/status/200", ""}, {"/status/204", ""},
		{"/status/400", "HTTP probe failed with statuscode: 400"},
		{"/status/503", "HTTP probe failed with statuscode: 503"},
		{"/chunks", ""}, {"/huge", ""}, {"/early", ""}, {"/hops/9", ""},
		{"/hops/10", "stopped after 10 redirects"},
		{"/nothing", "HTTP probe failed with statuscode: 404"},
		{"/slow", "context deadline exceeded (Client.Timeout exceeded while awaiting headers)"},
		{"/half", "context deadline exceeded (Client.Timeout or context cancellation while reading body)"},
	} {
		for _, server := range []string{plain.URL, secure.URL} {
			err := try(t, httpProbe(t, options(t, server, c.path)), 300*time.Millisecond)
			switch {
			case c.failure == "" && err != nil:
				t.Errorf("%s%s: %v", server, c.path, err)
			case c.failure != "":
				wantFailure(t, err, c.failure)
			}
		}
	}
	var warning *Warning
	if err := try(t, httpProbe(t, options(t, plain.URL, "/away")), time.Second); !errors.As(err, &warning) {
		t.Errorf("redirect to another host: %v, want a warning", err)
	} else if warning.Message != "Probe terminated redirects, Response body: elsewhere" {
		t.Errorf("warning %q", warning.Message)
	}
	for _, path := range []string{"/nowhere", "/status/304", "/status/399"} {
		if err := try(t, httpProbe(t, options(t, plain.URL, path)), time.Second); !errors.As(err, &warning) {
			t.Errorf("%s, which leads nowhere: %v, want a warning", path, err)
		}
	}
	// The same address on another port is the same host, also from TLS to plain.
	wantFailure(t, try(t, httpProbe(t, options(t, secure.URL, "/away")), time.Second), "statuscode: 404")
}

func TestHTTPRequest(t *testing.T) {
	var got *http.Request
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got = r }))
	defer server.Close()
	t.Setenv("HTTP_PROXY", "http://127.0.0.1:1")
	ask := func(path string, header http.Header) *http.Request {
		t.Helper()
		o := options(t, server.URL, path)
		o.Header = header
		if err := try(t, httpProbe(t, o), time.Second); err != nil {
			t.Fatal(err)
		}
		return got
	}
	r := ask("health?a=b%20c", nil)
	if r.Method != "GET" || r.RequestURI != "/health?a=b%20c" || r.ProtoMajor != 1 || "http://"+r.Host != server.URL || !r.Close {
		t.Errorf("%s %s, host %s, close %v", r.Method, r.RequestURI, r.Host, r.Close)
	}
	if ua, accept := r.UserAgent(), r.Header["Accept"]; ua != "kube-probe/1.37" || len(accept) != 1 || accept[0] != "*/*" {
		t.Errorf("User-Agent %q, Accept %q", ua, accept)
	}
	if _, ok := r.Header["Accept-Encoding"]; ok {
		t.Error("the probe asks for compression")
	}
	r = ask("", http.Header{"User-Agent": {"me"}, "Accept": {""}, "Host": {"site.example"}, "X-Twice": {"1", "2"}})
	if r.RequestURI != "/" || r.UserAgent() != "me" || r.Host != "site.example" || len(r.Header["X-Twice"]) != 2 {
		t.Errorf("overridden: %s %q %q %q", r.RequestURI, r.UserAgent(), r.Host, r.Header)
	}
	if _, ok := r.Header["Accept"]; ok {
		t.Error("an empty Accept does not remove it")
	}
	if r = ask("/%zz", nil); r.URL.Path != "/%zz" {
		t.Errorf("a path that is no URL arrives as %q", r.URL.Path)
	}
}

func TestH2C(t *testing.T) {
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor != 2 {
			w.WriteHeader(http.StatusTeapot)
		}
	}))
	server.Config.Protocols = new(http.Protocols)
	server.Config.Protocols.SetHTTP1(true)
	server.Config.Protocols.SetUnencryptedHTTP2(true)
	server.Start()
	defer server.Close()
	o := options(t, server.URL, "/")
	wantFailure(t, try(t, httpProbe(t, o), time.Second), "418")
	o.H2C = true
	if err := try(t, httpProbe(t, o), time.Second); err != nil {
		t.Error(err)
	}
}

// raw serves the same bytes to everybody, after it has read a little.
func raw(t *testing.T, answer string) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Read(make([]byte, 4096))
			_, _ = io.WriteString(conn, answer)
			_ = conn.Close()
		}
	}()
	t.Cleanup(func() { _ = l.Close(); <-done })
	return netip.MustParseAddrPort(l.Addr().String())
}

func TestHTTPBrokenAnswers(t *testing.T) {
	for _, c := range []struct{ answer, failure string }{
		{"", ": EOF"},
		{"garbage\n\n", `net/http: HTTP/1.x transport connection broken: malformed HTTP`},
		{"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfive.", "unexpected EOF"},
		{"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "invalid byte in chunk length"},
		{"HTTP/1.1 200 OK\r\nHalf", "malformed MIME header: missing colon"},
		{"HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 2<<20), "larger than 1048576 bytes"},
		{strings.Repeat("HTTP/1.1 102 Wait\r\n\r\n", 10), "too many 1xx"},
		{"HTTP/1.1 101 Switch\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", "statuscode: 101"},
	} {
		at := raw(t, c.answer)
		err := try(t, httpProbe(t, HTTPOptions{Host: at.Addr().String(), Port: at.Port()}), time.Second)
		wantFailure(t, err, c.failure)
	}
	at := raw(t, "HTTP/1.0 200 OK\r\n\r\nuntil the end")
	if err := try(t, httpProbe(t, HTTPOptions{Host: at.Addr().String(), Port: at.Port()}), time.Second); err != nil {
		t.Errorf("HTTP/1.0: %v", err)
	}
}

// closed is an address where nobody listens.
func closed(t *testing.T) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return netip.MustParseAddrPort(l.Addr().String())
}

// silent is an address where connections are opened and nothing is ever said.
func silent(t *testing.T) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return netip.MustParseAddrPort(l.Addr().String())
}

func TestRefusedAndSilent(t *testing.T) {
	at := closed(t)
	refused := fmt.Sprintf("dial tcp %s: connect: connection refused", at)
	wantFailure(t, try(t, httpProbe(t, HTTPOptions{Host: "127.0.0.1", Port: at.Port(), Path: "/x"}), time.Second),
		fmt.Sprintf(`Get "http://%s/x": %s`, at, refused))
	wantFailure(t, try(t, TCP(at), time.Second), refused)
	wantFailure(t, try(t, GRPC(at, ""), time.Second), fmt.Sprintf("error: failed to connect service at %q: %s", at, refused))

	at = silent(t)
	if err := try(t, TCP(at), time.Second); err != nil {
		t.Errorf("TCP: %v", err)
	}
	wantFailure(t, try(t, GRPC(at, ""), 100*time.Millisecond),
		fmt.Sprintf("timeout: failed to connect service %q within 100ms: context deadline exceeded", at))
	wantFailure(t, try(t, GRPCTLS(at, ""), 100*time.Millisecond), "timeout: failed to connect service")
	wantFailure(t, try(t, httpProbe(t, HTTPOptions{Scheme: "HTTPS", Host: "127.0.0.1", Port: at.Port()}), 100*time.Millisecond),
		fmt.Sprintf(`Get "https://%s": context deadline exceeded`, at))
}

func TestCancelledProbesEndAtOnce(t *testing.T) {
	at := silent(t)
	for name, p := range map[string]Probe{
		"http": httpProbe(t, HTTPOptions{Host: "127.0.0.1", Port: at.Port()}),
		"grpc": GRPC(at, ""),
	} {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- p(ctx) }()
		cancel()
		select {
		case err := <-done:
			wantFailure(t, err)
		case <-time.After(10 * time.Second):
			t.Fatalf("%s goes on", name)
		}
	}
}

// TestServersReadACleanEnd holds that a probe is not seen as an error, and that nothing of it stays in the kernel.
func TestServersReadACleanEnd(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	at := netip.MustParseAddrPort(l.Addr().String())
	for range 20 {
		ended := make(chan error)
		go func() {
			conn, err := l.Accept()
			if err != nil {
				ended <- err
				return
			}
			_, err = conn.Read(make([]byte, 1))
			ended <- errors.Join(err, conn.Close())
		}()
		if err := try(t, TCP(at), time.Second); err != nil {
			t.Fatal(err)
		}
		if err := <-ended; err == nil || err.Error() != io.EOF.Error() {
			t.Fatalf("the server reads %v, want EOF", err)
		}
	}
	server := httptest.NewServer(mux(""))
	defer server.Close()
	o := options(t, server.URL, "/chunks")
	for range 20 {
		if err := try(t, httpProbe(t, o), time.Second); err != nil {
			t.Fatal(err)
		}
	}
	if n := timeWaits(t, at.Port()); n > 0 {
		t.Errorf("TCP: %d sockets of ours in TIME_WAIT", n)
	}
	if n := timeWaits(t, o.Port); n > 5 { // servers that close at the same moment as we do
		t.Errorf("HTTP: %d of 20 sockets of ours in TIME_WAIT", n)
	}
}

func TestExec(t *testing.T) {
	run := func(code int, output string, err error) Probe {
		return Exec(func(context.Context) (int, string, error) { return code, output, err })
	}
	if err := try(t, run(0, "fine", nil), time.Second); err != nil {
		t.Error(err)
	}
	wantFailure(t, try(t, run(3, "cat: no such file", nil), time.Second), "cat: no such file")
	if err := try(t, run(1, strings.Repeat("x", 20<<10), nil), time.Second); len(err.Error()) != 10<<10 {
		t.Errorf("%d bytes of output, want 10 KiB", len(err.Error()))
	}
	var unknown *Unknown
	if err := try(t, run(0, "", errors.New("no shim")), time.Second); !errors.As(err, &unknown) {
		t.Errorf("%v, want an unknown result", err)
	}
	slow := Exec(func(ctx context.Context) (int, string, error) { <-ctx.Done(); return 0, "", ctx.Err() })
	wantFailure(t, try(t, slow, 10*time.Millisecond), "command timed out")
	killed := Exec(func(ctx context.Context) (int, string, error) { <-ctx.Done(); return 137, "", nil })
	wantFailure(t, try(t, killed, 10*time.Millisecond), "command timed out")
}
