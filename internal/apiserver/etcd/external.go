package etcd

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"strings"
	"syscall"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// checkTimeout bounds each step of Check; a healthy cluster answers in milliseconds.
const checkTimeout = 3 * time.Second

// External names an etcd cluster that somebody else runs.
type External struct {
	// Servers are client URLs: https://host:2379, http://… or unix:///path.
	Servers []string
	// CAFile verifies the servers; empty means the system's roots. CertFile and KeyFile, both or none, are our client certificate.
	CAFile, CertFile, KeyFile string
}

// Check returns nil if a member answers a linearizable read, and otherwise within a few seconds one error that says what is
// wrong and what to do.
func Check(ctx context.Context, e External) error {
	conf, err := e.tls()
	if err != nil {
		return err
	}
	// Dialling by hand first keeps the typed errors of net and tls, which gRPC turns into text.
	var errs []error
	reached := false
	for _, server := range e.Servers {
		if err := probe(ctx, server, conf); err != nil {
			errs = append(errs, advise(server, err))
		} else {
			reached = true
		}
	}
	if !reached {
		return errors.Join(errs...)
	}
	c, err := Open(e)
	if err != nil {
		return err
	}
	defer c.Close() //nolint:errcheck // nothing was written
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	_, err = c.Get(ctx, "/endpointd/check")
	return adviseCluster(strings.Join(e.Servers, ","), err)
}

// Open returns a client of the cluster; it does not wait for a connection. The caller closes it.
func Open(e External) (*clientv3.Client, error) {
	conf, err := e.tls()
	if err != nil {
		return nil, err
	}
	c, err := clientv3.New(clientv3.Config{Endpoints: e.Servers, TLS: conf, Logger: zap.NewNop()})
	if err != nil {
		return nil, fmt.Errorf("etcd %s: %w: check --etcd-servers", strings.Join(e.Servers, ","), err)
	}
	return c, nil
}

// tls is nil when no server uses TLS.
func (e External) tls() (*tls.Config, error) {
	secure := false
	for _, s := range e.Servers {
		secure = secure || strings.HasPrefix(s, "https:") || strings.HasPrefix(s, "unixs:")
	}
	if !secure {
		return nil, nil
	}
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	if e.CAFile != "" {
		pem, err := os.ReadFile(e.CAFile)
		if err != nil {
			return nil, fmt.Errorf("--etcd-cafile: %w", err)
		}
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("--etcd-cafile %s: no PEM certificate in it", e.CAFile)
		}
	}
	if e.CertFile != "" || e.KeyFile != "" {
		pair, err := tls.LoadX509KeyPair(e.CertFile, e.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("--etcd-certfile %s, --etcd-keyfile %s: %w: give both files of one pair", e.CertFile, e.KeyFile, err)
		}
		conf.Certificates = []tls.Certificate{pair}
	}
	return conf, nil
}

// http2Hello opens an HTTP/2 connection with empty settings (RFC 9113, section 3.4); every gRPC server answers it.
const http2Hello = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"

// probe goes as far as the first byte of a member's answer. In TLS 1.3 a refused client certificate shows no earlier.
func probe(ctx context.Context, server string, conf *tls.Config) error {
	u, err := url.Parse(server)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	network, address := "tcp", u.Host
	if strings.HasPrefix(u.Scheme, "unix") {
		network, address = "unix", u.Host+u.Path
	}
	conn, err := new(net.Dialer).DialContext(ctx, network, address)
	if err != nil {
		return err
	}
	defer conn.Close() //nolint:errcheck // a probe
	if u.Scheme == "https" || u.Scheme == "unixs" {
		c := conf.Clone()
		c.ServerName, c.NextProtos = u.Hostname(), []string{"h2"}
		conn = tls.Client(conn, c)
	}
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return err
	}
	if _, err := conn.Write([]byte(http2Hello)); err != nil {
		return err
	}
	answer := make([]byte, 5)
	if _, err := conn.Read(answer); err != nil {
		return err
	}
	if string(answer) == "HTTP/" || answer[0] == tlsAlert {
		return errOtherProtocol
	}
	return nil
}

// tlsAlert is the first byte of a TLS server's answer to plain text (RFC 8446, section 5.1).
const tlsAlert = 21

var errOtherProtocol = errors.New("the server there does not speak etcd over this scheme")

// advise adds the next step to an error of probe.
func advise(server string, err error) error {
	var (
		authority x509.UnknownAuthorityError
		name      x509.HostnameError
		invalid   x509.CertificateInvalidError
		remote    *net.OpError
		record    tls.RecordHeaderError
		dns       *net.DNSError
		timeout   net.Error
	)
	step := "check --etcd-servers"
	switch {
	case errors.As(err, &authority):
		step = "give the CA that signed its certificate with --etcd-cafile"
	case errors.As(err, &name):
		step = "use a name or address from its certificate in --etcd-servers"
	case errors.As(err, &invalid):
		step = "the cluster's certificate must be renewed or replaced"
	case errors.As(err, &remote) && remote.Op == "remote error": // how crypto/tls reports the peer's alert
		step = "it refuses our certificate: give one that it trusts with --etcd-certfile and --etcd-keyfile"
	case errors.As(err, &record):
		step = "it does not speak TLS: use http:// in --etcd-servers"
	case errors.Is(err, errOtherProtocol), errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET):
		step = "check scheme and port in --etcd-servers (https:// where it uses TLS)"
	case errors.As(err, &dns):
		step = "correct the host name in --etcd-servers"
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, os.ErrNotExist):
		step = "is etcd running there? start it, or correct --etcd-servers"
	case errors.As(err, &timeout) && timeout.Timeout():
		step = "nothing answers there: check the address in --etcd-servers and the firewall"
	}
	return fmt.Errorf("etcd %s: %w: %s", server, err, step)
}

// adviseCluster adds the next step to an error of a read that a reachable member could not serve.
func adviseCluster(servers string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, rpctypes.ErrNoLeader), errors.Is(err, rpctypes.ErrTimeout):
		return fmt.Errorf("etcd %s: reachable, but no read within %s: has the cluster lost its majority?", servers, checkTimeout)
	case errors.Is(err, rpctypes.ErrPermissionDenied), errors.Is(err, rpctypes.ErrUserEmpty):
		return fmt.Errorf("etcd %s: %w: use a client certificate whose user may read and write /registry and /endpointd", servers, err)
	}
	return fmt.Errorf("etcd %s: %w: check the cluster (etcdctl endpoint health)", servers, err)
}
