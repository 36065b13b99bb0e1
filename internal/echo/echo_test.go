package echo

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/endpointd/endpointd/internal/testkit"
)

// mainEnv makes the test binary be the program.
const mainEnv = "ECHO_TEST_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(mainEnv) != "" {
		os.Exit(Main())
	}
	testkit.Main(m)
}

// output is a writer whose lines can be waited for.
type output struct {
	mu      sync.Mutex
	text    bytes.Buffer
	changed chan struct{}
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	n, err := o.text.Write(p)
	close(o.changed)
	o.changed = make(chan struct{})
	return n, err
}

// wait returns the match's groups.
func (o *output) wait(t *testing.T, pattern string) []string {
	t.Helper()
	re := regexp.MustCompile(pattern)
	limit := time.After(10 * time.Second)
	for {
		o.mu.Lock()
		text, changed := o.text.String(), o.changed
		o.mu.Unlock()
		if found := re.FindStringSubmatch(text); found != nil {
			return found
		}
		select {
		case <-changed:
		case <-limit:
			t.Fatalf("no %q in the output:\n%s", pattern, text)
		}
	}
}

// server is one that runs.
type server struct {
	http, tcp, udp string
	out            *output
	stop           context.CancelFunc // SIGTERM
	done           chan error
	client         *http.Client
}

// serve starts a server on free ports of the loopback.
func serve(t *testing.T, args ...string) *server {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	s := &server{out: &output{changed: make(chan struct{})}, stop: cancel, done: make(chan error, 1)}
	s.client = &http.Client{Transport: &http.Transport{}}
	args = append([]string{"--http=127.0.0.1:0", "--tcp=127.0.0.1:0"}, args...)
	env := []string{"POD_NAME=web-1", "POD_NAMESPACE=default", "NODE_NAME=node-2", "POD_IP=10.0.0.7"}
	ended := make(chan struct{})
	go func() { s.done <- Run(ctx, args, env, s.out); close(ended) }()
	t.Cleanup(func() {
		cancel()
		s.client.CloseIdleConnections()
		<-ended
	})
	found := s.out.wait(t, `listening pod=web-1 http=(\S*) tcp=(\S*) udp=(\S*)\n`)
	s.http, s.tcp, s.udp = "http://"+found[1], found[2], found[3]
	return s
}

// get asks and returns code and body.
func (s *server) get(t *testing.T, path string) (int, string) {
	t.Helper()
	return s.do(t, http.MethodGet, path, "", "")
}

func (s *server) do(t *testing.T, method, path, accept, body string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, s.http+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if accept != "" {
		req.Header.Set("Accept", accept)
	}
	if method == http.MethodPost {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	resp, err := s.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

func (s *server) want(t *testing.T, path string, code int) {
	t.Helper()
	if got, body := s.get(t, path); got != code {
		t.Errorf("GET %s: %d %q, want %d", path, got, body, code)
	}
}

func TestItNamesItsPod(t *testing.T) {
	s := serve(t)
	code, body := s.do(t, "PUT", "/some/where?x=1", "", "four")
	lines := strings.Split(body, "\n")
	if code != 200 || lines[0] != "web-1" {
		t.Errorf("%d, first line %q", code, lines[0])
	}
	for _, want := range []string{"namespace: default", "node: node-2", "ip: 10.0.0.7", "client: 127.0.0.1:",
		"request: PUT /some/where?x=1 HTTP/1.1", "bytes: 4", "header User-Agent: Go-http-client/1.1", "ready: true"} {
		if !strings.Contains(body, "\n"+want) {
			t.Errorf("no %q in:\n%s", want, body)
		}
	}
	_, body = s.do(t, "GET", "/", "application/json", "")
	var got struct {
		Pod, Namespace, Node, IP, Method, Path, Proto, Client string
		Ready                                                 bool
		Headers                                               map[string][]string
	}
	if err := json.Unmarshal([]byte(body), &got); err != nil {
		t.Fatalf("%v in %s", err, body)
	}
	if got.Pod != "web-1" || got.Node != "node-2" || got.IP != "10.0.0.7" || got.Path != "/" || !got.Ready || len(got.Headers) == 0 {
		t.Errorf("JSON %+v", got)
	}
}

func TestHTTP2WithoutTLS(t *testing.T) {
	s := serve(t)
	transport := &http.Transport{Protocols: new(http.Protocols)}
	transport.Protocols.SetUnencryptedHTTP2(true)
	s.client.Transport = transport
	if code, body := s.get(t, "/"); code != 200 || !strings.Contains(body, "request: GET / HTTP/2.0") {
		t.Errorf("%d %s", code, body)
	}
}

func TestControl(t *testing.T) {
	s := serve(t, "--ready=false")
	s.want(t, "/readyz", 503)
	s.want(t, "/healthz", 200)
	if code, body := s.do(t, "POST", "/control", "", "ready=true&healthy=false&status=500"); code != 200 ||
		body != "web-1\nready: true\nhealthy: false\ndelay: 0s\nstatus: 500\n" {
		t.Errorf("control: %d %q", code, body)
	}
	s.want(t, "/readyz", 200)
	s.want(t, "/healthz", 503)
	s.want(t, "/", 500)
	for _, bad := range []string{"ready=maybe", "delay=-1s", "delay=soon", "status=99", "status=x", "healthy=", "redy=true"} {
		s.want(t, "/control?status=204&"+bad, 400)
	}
	s.want(t, "/", 500) // all or nothing
	s.want(t, "/control?delay=50ms&status=200", 200)
	began := time.Now()
	s.want(t, "/readyz", 200)
	if took := time.Since(began); took < 50*time.Millisecond {
		t.Errorf("an answer after %v, want the delay", took)
	}
}

func TestFailForATime(t *testing.T) {
	s := serve(t)
	s.want(t, "/fail?for=50ms", 200)
	s.want(t, "/readyz", 503)
	s.want(t, "/healthz", 503)
	limit := time.After(10 * time.Second)
	for code := 503; code != 200; code, _ = s.get(t, "/readyz") {
		select {
		case <-limit:
			t.Fatal("it does not recover")
		case <-time.After(5 * time.Millisecond):
		}
	}
	s.want(t, "/fail", 200)
	s.want(t, "/readyz", 503)
	s.want(t, "/control?ready=true", 200)
	s.want(t, "/healthz", 200)
	s.want(t, "/fail?for=x", 400)
}

func TestSlow(t *testing.T) {
	s := serve(t)
	began := time.Now()
	s.want(t, "/slow?d=60ms", 200)
	if took := time.Since(began); took < 60*time.Millisecond {
		t.Errorf("an answer after %v", took)
	}
	s.want(t, "/slow?d=-1s", 400)
}

func TestExit(t *testing.T) {
	s := serve(t)
	s.want(t, "/exit?code=256", 400)
	if code, body := s.get(t, "/exit?code=3"); code != 200 || body != "web-1\nexit: 3\n" {
		t.Errorf("%d %q", code, body)
	}
	var told *ExitError
	if err := <-s.done; !errors.As(err, &told) || told.Code != 3 {
		t.Errorf("Run: %v, want exit code 3", err)
	}
	s = serve(t, "--exit-after=1ms", "--exit-code=7")
	if err := <-s.done; !errors.As(err, &told) || told.Code != 7 {
		t.Errorf("Run: %v, want exit code 7", err)
	}
}

func TestFailAfter(t *testing.T) {
	s := serve(t, "--fail-after=1ns")
	limit := time.After(10 * time.Second)
	for code := 200; code != 503; code, _ = s.get(t, "/healthz") {
		select {
		case <-limit:
			t.Fatal("it does not fail")
		case <-time.After(time.Millisecond):
		}
	}
}

// slow opens a request that takes d, and returns when the server has it.
func slow(t *testing.T, s *server, d time.Duration) <-chan string {
	t.Helper()
	got := make(chan string, 1)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	go func() {
		resp, err := client.Get(s.http + "/slow?d=" + d.String())
		if err != nil {
			got <- err.Error()
			return
		}
		defer func() { _ = resp.Body.Close() }()
		b, _ := io.ReadAll(resp.Body)
		got <- strings.SplitN(string(b), "\n", 2)[0]
	}()
	s.out.wait(t, "path=/slow")
	return got
}

func TestDrain(t *testing.T) {
	s := serve(t, "--log")
	open := slow(t, s, 200*time.Millisecond)
	drained := make(chan time.Time, 1)
	go func() {
		if resp, err := http.Get(s.http + "/drain"); err == nil {
			_ = resp.Body.Close()
		}
		drained <- time.Now()
	}()
	s.out.wait(t, "path=/drain")
	if got := <-open; got != "web-1" {
		t.Errorf("the open request got %q", got)
	}
	ended := time.Now()
	if at := <-drained; at.Before(ended.Add(-100 * time.Millisecond)) {
		t.Error("/drain did not wait for the open request")
	}
	s.want(t, "/readyz", 503)
	s.want(t, "/", 200) // it still serves
	s.want(t, "/control?ready=true", 200)
	s.want(t, "/readyz", 200)
}

func TestTermLetsOpenRequestsEndAndAcceptsMeanwhile(t *testing.T) {
	s := serve(t, "--log")
	open := slow(t, s, 300*time.Millisecond)
	s.stop()
	s.out.wait(t, "draining")
	s.want(t, "/readyz", 503) // a new connection, while the old request is open
	if got := <-open; got != "web-1" {
		t.Errorf("the open request got %q", got)
	}
	if err := <-s.done; err != nil {
		t.Errorf("Run: %v", err)
	}
	if conn, err := net.Dial("tcp", s.tcp); err == nil {
		_ = conn.Close()
		t.Error("TCP is still open")
	}
}

// The same for a line.
func TestTermWaitsForLinesOnTheirWay(t *testing.T) {
	s := serve(t)
	conn, err := net.Dial("tcp", s.tcp)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	later, err := net.Dial("tcp", s.tcp) // accepted after the first
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = later.Close() }()
	say := func(conn net.Conn) {
		t.Helper()
		if _, err := io.WriteString(conn, "hello\n"); err != nil {
			t.Fatal(err)
		}
		if answer, err := bufio.NewReader(conn).ReadString('\n'); err != nil || answer != "web-1 hello\n" {
			t.Errorf("got %q, %v", answer, err)
		}
	}
	say(later)
	s.stop()
	s.out.wait(t, "draining")
	say(conn)
	if err := <-s.done; err != nil {
		t.Errorf("Run: %v", err)
	}
}

// A client that was led here before the drain, and has its connection but has not been scheduled since, is answered.
func TestTermWaitsForRequestsOnTheirWay(t *testing.T) {
	s := serve(t, "--log")
	conn, err := net.Dial("tcp", strings.TrimPrefix(s.http, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	s.want(t, "/", 200) // accepted after the first
	s.stop()
	s.out.wait(t, "draining")
	if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: web\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(conn)
	if err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 200 OK") {
		t.Errorf("got %q, %v; want an answer, and the end of the connection", answer, err)
	}
	if err := <-s.done; err != nil {
		t.Errorf("Run: %v", err)
	}
}

func TestTermDoesNotWaitForEver(t *testing.T) {
	s := serve(t, "--log", "--drain=50ms")
	open := slow(t, s, time.Hour)
	s.stop()
	if err := <-s.done; err != nil {
		t.Errorf("Run: %v", err)
	}
	s.out.wait(t, "drained idle=false")
	<-open
}

func TestTCP(t *testing.T) {
	s := serve(t)
	conn, err := net.Dial("tcp", s.tcp)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	r := bufio.NewReader(conn)
	long := strings.Repeat("x", maxLine)
	for _, c := range []struct{ send, want string }{
		{"hello\n", "web-1 hello\n"}, {"a\nb\n", "web-1 a\nweb-1 b\n"}, {"\n", "web-1 \n"},
		{long + "y\n", "web-1 " + long + "\nweb-1 y\n"},
	} {
		if _, err := io.WriteString(conn, c.send); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(c.want))
		if _, err := io.ReadFull(r, got); err != nil || string(got) != c.want {
			t.Errorf("%.20q: %.40q %v, want %.40q", c.send, got, err, c.want)
		}
	}
	fmt.Fprint(conn, "no end")
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(r); err != nil || string(rest) != "web-1 no end\n" {
		t.Errorf("the last line: %q %v", rest, err)
	}
}

// ping sends to at from a connected socket, which hears only that very address: 127.0.0.2 has to answer as itself.
func ping(t *testing.T, at string) {
	t.Helper()
	conn, err := net.Dial("udp", at)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	for _, payload := range []string{"ping", "", strings.Repeat("x", 60000), strings.Repeat("x", 65507)} {
		if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(conn, payload); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 64<<10)
		n, err := conn.Read(got)
		want := "web-1 " + payload
		if err != nil || string(got[:n]) != want[:min(len(want), 65507)] {
			t.Errorf("%s, %d bytes: %d bytes %v", at, len(payload), n, err)
		}
	}
}

func TestUDP(t *testing.T) {
	s := serve(t, "--udp=127.0.0.1:0", "--udp=[::]:0")
	all := strings.Split(s.udp, ",")
	if len(all) != 2 {
		t.Fatalf("listens on %q", all)
	}
	_, port, err := net.SplitHostPort(all[1])
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []string{all[0], "127.0.0.2:" + port, "[::1]:" + port} {
		ping(t, at)
	}
}

func TestUDPWithoutIPv6(t *testing.T) {
	conn, err := listenUDP(t.Context(), "udp4", ":0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- serveUDP(ctx, conn, "web-1") }()
	ping(t, fmt.Sprintf("127.0.0.2:%d", conn.LocalAddr().(*net.UDPAddr).Port))
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestUDPIsWhereTCPIs(t *testing.T) {
	o, err := parse([]string{"--tcp=:7777"}, nil, io.Discard)
	if err != nil || o.udp.String() != ":7777" {
		t.Errorf("udp on %q, %v", o.udp.String(), err)
	}
}
