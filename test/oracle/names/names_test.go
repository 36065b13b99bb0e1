// Package names puts the same questions to our DNS and to a stock CoreDNS with its kubernetes plugin, on the same objects.
//
// What it is: random Services, EndpointSlices and pods in an API of our own (package api), a CoreDNS 1.15 that reads them, and a Zone made of the same
// objects. Each name and address that there is, and many that there are not, is asked of both. In: nothing. Out: answers that differ, record by record.
// Differences that are meant are in [differences], each with its reason; one that is no more fails the test too.
//
// It refuses to measure: that is package bench's. How to test: go test ./test/oracle/names.
package names

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/endpointd/endpointd/internal/testkit"
	"github.com/endpointd/endpointd/test/oracle/api"
	"github.com/endpointd/endpointd/test/oracle/program"
)

func TestMain(m *testing.M) { testkit.Main(m) }

const corefile = `.:%d {
  bind 127.0.0.1
  kubernetes cluster.local in-addr.arpa ip6.arpa {
    kubeconfig %s
    pods verified
    ttl 5
  }
  transfer {
    to 127.0.0.1
  }
}
`

const kubeconfig = `
apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "http://%s"}}]
contexts: [{name: c, context: {cluster: c, user: u}}]
users: [{name: u, user: {}}]
current-context: c
`

// A coreDNS is a process that answers from an API.
type coreDNS struct {
	addr   string
	client *dns.Client
}

// start runs CoreDNS on loopback until the test ends, and waits until it has seen a Service.
func start(t *testing.T, a *api.API, seen string) *coreDNS {
	t.Helper()
	path, err := program.Build("coredns", "coredns")
	if err != nil {
		t.Fatal(err)
	}
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: a, ReadHeaderTimeout: 10 * time.Second}
	var work sync.WaitGroup
	work.Go(func() { _ = server.Serve(listener) }) // until Close
	t.Cleanup(func() {
		_ = server.Close()
		work.Wait()
	})
	for range 5 { // somebody else may take the port before CoreDNS does
		if c := try(t, path, listener.Addr().String(), seen); c != nil {
			return c
		}
	}
	t.Fatal("CoreDNS did not start")
	return nil
}

func try(t *testing.T, path, api, seen string) *coreDNS {
	t.Helper()
	port := freePort(t)
	dir := t.TempDir()
	config, cluster := filepath.Join(dir, "Corefile"), filepath.Join(dir, "kubeconfig")
	if err := errors.Join(os.WriteFile(cluster, fmt.Appendf(nil, kubeconfig, api), 0o600), os.WriteFile(config, fmt.Appendf(nil, corefile, port, cluster), 0o600)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, "-conf", config)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	var work sync.WaitGroup
	work.Go(func() {
		defer close(ended)
		_ = cmd.Wait() // it is killed
	})
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		work.Wait()
		if text, err := os.ReadFile(log.Name()); t.Failed() && err == nil {
			t.Logf("CoreDNS says:\n%s", text)
		}
		_ = log.Close()
	})
	c := &coreDNS{addr: fmt.Sprintf("127.0.0.1:%d", port), client: &dns.Client{Net: "tcp", Timeout: 10 * time.Second}}
	for limit := time.Now().Add(time.Minute); time.Now().Before(limit); {
		select {
		case <-ended:
			return nil
		default:
		}
		if m, err := c.ask(question(seen, dns.TypeA)); err == nil && m.Rcode == dns.RcodeSuccess && len(m.Answer) > 0 {
			return c
		}
		select {
		case <-ended:
			return nil
		case <-time.After(20 * time.Millisecond):
		}
	}
	return nil
}

// freePort is a port of loopback that nobody has by TCP and UDP now.
func freePort(t *testing.T) int {
	t.Helper()
	for range 100 {
		l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		port := l.Addr().(*net.TCPAddr).Port
		u, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port})
		_ = l.Close()
		if err == nil {
			_ = u.Close()
			return port
		}
	}
	t.Fatal("no port is free by TCP and UDP")
	return 0
}

func question(name string, rtype uint16) *dns.Msg {
	m := new(dns.Msg)
	m.SetQuestion(dns.Fqdn(strings.ToLower(name)), rtype)
	return m
}

func (c *coreDNS) ask(m *dns.Msg) (*dns.Msg, error) {
	answer, _, err := c.client.Exchange(m, c.addr)
	return answer, err
}
