// Package etcd gives the API server its storage: an etcd inside this process, or a checked connection to an external
// cluster.
//
// In: a folder, or the addresses and certificates of a cluster. Out: client endpoints.
//
// Invariants: the embedded etcd listens on unix sockets in its own 0700 folder and nowhere else; every acknowledged
// write was fsynced; when etcd cannot go on (no space, broken disk, broken files) it stops acknowledging and Err yields
// one error that names the folder and what to do, instead of a stack trace or an exit from the middle of a library.
//
// It refuses to serve over the network and to form clusters: several servers share an external etcd.
//
// To test it: go test ./internal/apiserver/etcd; everything runs in temporary folders, TLS tests on loopback.
package etcd

import (
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
)

const (
	dirMode = 0o700

	// sun_path holds 108 bytes with the closing NUL (unix(7)).
	maxSocketPath = 107

	clientSocket = "client.sock"

	// A new etcd complains about its missing storage version until its monitor has written one, every 4 s.
	settling = 5 * time.Second
)

// Options of an embedded etcd.
type Options struct {
	// Dir belongs to etcd alone; it is made with mode 0700 if it is missing.
	Dir string
	// Logger gets etcd's own messages; nil discards them.
	Logger *slog.Logger
}

// Server is a running embedded etcd.
type Server struct {
	dir      string
	endpoint string
	etcd     *embed.Etcd
	failure  *failure
	sockets  *os.File    // the folder of the sockets, when their path must go through it; else nil
	serving  atomic.Bool // settled, and not told to close
	settled  *time.Timer // sets serving; nil before etcd was ready
	close    sync.Once
}

// Start opens the folder and returns when etcd answers. It ends early when ctx does.
func Start(ctx context.Context, o Options) (*Server, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if err := prepare(o.Dir); err != nil {
		return nil, err
	}
	s := &Server{dir: o.Dir, failure: newFailure(o.Dir)}
	base, err := s.socketFolder()
	if err != nil {
		return nil, err
	}
	cfg := config(o.Dir, base)
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(newZap(o.Logger, s.failure, &s.serving))
	s.endpoint = cfg.ListenClientUrls[0].String()

	// etcd reports what it cannot survive through its logger, from any goroutine; the hook in failure parks that goroutine, so
	// starting must not happen on ours.
	started := make(chan error, 1)
	go func() {
		defer func() {
			// bbolt and raft panic on files they cannot make sense of.
			if r := recover(); r != nil {
				started <- fmt.Errorf("its files make no sense (%v)", r)
			}
		}()
		var err error
		s.etcd, err = embed.StartEtcd(cfg)
		started <- err
	}()
	select {
	case err := <-started:
		if err != nil {
			s.releaseSockets()
			return nil, explain(o.Dir, err)
		}
	case err := <-s.failure.errc:
		return nil, err
	}
	select {
	case <-s.etcd.Server.ReadyNotify():
		s.settled = time.AfterFunc(settling, func() { s.serving.Store(true) })
		return s, nil
	case err := <-s.failure.errc:
		return nil, err
	case err := <-s.etcd.Err():
		s.Close()
		return nil, explain(o.Dir, err)
	case <-ctx.Done():
		s.Close()
		return nil, ctx.Err()
	}
}

// Endpoints are the client URLs, for programs of the same user on this machine.
func (s *Server) Endpoints() []string { return []string{s.endpoint} }

// Err yields at most one error: etcd can no longer accept writes and the process should end. After that, Close
// returns without waiting for etcd.
func (s *Server) Err() <-chan error { return s.failure.errc }

// Close stops etcd and waits for it. Close the clients first: etcd gives their streams some seconds to end. More calls do
// nothing.
func (s *Server) Close() {
	s.close.Do(func() {
		if s.failure.failed() {
			return
		}
		if s.settled != nil {
			s.settled.Stop()
		}
		s.serving.Store(false)
		s.etcd.Close()
		s.releaseSockets()
	})
}

// prepare makes the folder and finds out now, in words, what etcd would find out by panicking.
func prepare(dir string) error {
	if err := os.MkdirAll(dir, dirMode); err != nil {
		return explain(dir, err)
	}
	if err := os.Chmod(dir, dirMode); err != nil {
		return explain(dir, err)
	}
	probe, err := os.CreateTemp(dir, ".probe-")
	if err != nil {
		return explain(dir, err)
	}
	_ = probe.Close()
	if err := os.Remove(probe.Name()); err != nil {
		return explain(dir, err)
	}
	return checkSpace(dir)
}

// plainPath needs no escaping in a URL or in etcd's comma-separated lists.
var plainPath = regexp.MustCompile(`^[A-Za-z0-9/._+-]+$`)

// socketFolder is the path by which this process reaches the folder of the sockets: the folder itself or, when
// that is too long for a socket address or holds characters that etcd's URL lists cannot carry, its file descriptor in /proc.
func (s *Server) socketFolder() (string, error) {
	dir, err := filepath.Abs(s.dir)
	if err != nil {
		return "", explain(s.dir, err)
	}
	if plainPath.MatchString(dir) && len(dir)+1+len(clientSocket) <= maxSocketPath {
		return dir, nil
	}
	f, err := os.Open(dir)
	if err != nil {
		return "", explain(dir, err)
	}
	s.sockets = f
	return fmt.Sprintf("/proc/self/fd/%d", f.Fd()), nil
}

func (s *Server) releaseSockets() {
	if s.sockets != nil {
		_ = s.sockets.Close()
	}
}

func config(dir, sockets string) *embed.Config {
	cfg := embed.NewConfig()
	cfg.Name = "embedded"
	cfg.Dir = dir
	// One member: there is nobody to wait for, so elect at once (ready in some 50 ms instead of 700).
	cfg.TickMs, cfg.ElectionMs = 10, 100
	// The API server compacts every 5 minutes by itself.
	cfg.AutoCompactionMode, cfg.AutoCompactionRetention = embed.CompactorModePeriodic, "0"
	// Both only serve followers, of which there are none: fewer entries in memory and a shorter log to replay at start.
	cfg.SnapshotCount, cfg.SnapshotCatchUpEntries = 5000, 100
	// The default of 2 GB is for a quorum of small machines; 8 GB is etcd's recommended maximum.
	cfg.QuotaBackendBytes = 8 << 30
	client := url.URL{Scheme: "unix", Path: filepath.Join(sockets, clientSocket)}
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
	// No peers, no listener: for one, etcd would ignore the path and make an abstract socket that every user can reach.
	// The advertised URL is only a name in the membership.
	cfg.ListenPeerUrls = nil
	cfg.AdvertisePeerUrls = []url.URL{{Scheme: "unix", Host: "no-peers"}}
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	return cfg
}
