package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// readyWait is how long a server or a contender may take to be ready.
const readyWait = time.Minute

// server is an `endpointd server` on one folder. It may be stopped and started again, as another mode.
type server struct {
	binary, dir, listen string
	at                  spot
	process             *process // nil when stopped
	bare                bool     // without its own endpoints controllers
	// writes and watches have connections of their own, as two users of an API would.
	writes, watches kubernetes.Interface
	connections     []*http.Client
}

func newServer(binary, dir string) (*server, error) {
	listener, err := new(net.ListenConfig).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	return &server{binary: binary, dir: dir, listen: listener.Addr().String()}, listener.Close()
}

func (s *server) kubeconfig() string { return filepath.Join(s.dir, "data", "admin.kubeconfig") }

// environment is ours without what would lead a child to the user's own clusters and caches.
func (s *server) environment() []string {
	var env []string
	for _, entry := range os.Environ() {
		name, _, _ := strings.Cut(entry, "=")
		if name != "HOME" && name != "KUBECONFIG" && !strings.HasPrefix(name, "XDG_") {
			env = append(env, entry)
		}
	}
	return append(env, "HOME="+s.dir, "KUBECONFIG="+s.kubeconfig())
}

// start returns how long it took from exec to the ready line.
func (s *server) start(ctx context.Context, bare bool) (time.Duration, error) {
	args := []string{"server", "--data-dir", filepath.Join(s.dir, "data"), "--listen", s.listen, "--log-level", "warn"}
	if bare {
		args = append(args, "--disable-controllers", "endpoints,mirror")
	}
	p, err := s.at.start(&process{name: "endpointd server"}, filepath.Join(s.dir, "server.log"), s.environment(), s.binary, args...)
	if err != nil {
		return 0, err
	}
	s.process, s.bare = p, bare
	at, err := p.ready(ctx, readyWait)
	if err != nil {
		return 0, errors.Join(err, s.stop())
	}
	for _, client := range []*kubernetes.Interface{&s.writes, &s.watches} {
		if *client, err = s.client(); err != nil {
			return 0, errors.Join(err, s.stop())
		}
	}
	return at.Sub(p.started), nil
}

// client has a connection of its own: client-go shares one among equal configurations, and a dialer makes them differ.
func (s *server) client() (kubernetes.Interface, error) {
	config, err := clientConfig(s.kubeconfig())
	if err != nil {
		return nil, err
	}
	config.Dial = s.at.place.dialer().dial
	connection, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, err
	}
	s.connections = append(s.connections, connection)
	return kubernetes.NewForConfigAndClient(config, connection)
}

func (s *server) stop() error {
	if s.process == nil {
		return nil
	}
	for _, connection := range s.connections {
		utilnet.CloseIdleConnectionsFor(connection.Transport)
	}
	p := s.process
	s.process, s.connections = nil, nil
	return p.stop()
}

// as has the server run with or without its own endpoints controllers.
func (s *server) as(ctx context.Context, bare bool) error {
	if s.process != nil && s.bare == bare {
		return nil
	}
	if err := s.stop(); err != nil {
		return err
	}
	_, err := s.start(ctx, bare)
	return err
}

// kubectl runs the stock kubectl, as a user's first command would be: nothing is cached.
func (s *server) kubectl(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, "kubectl", args...)
	cmd.Env = s.environment()
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("kubectl %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}
