package app

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/endpointd/endpointd/internal/model"
	"github.com/endpointd/endpointd/internal/sandbox"
)

// debugSocket is in an agent's folder, for its owner alone.
const debugSocket = "debug.sock"

// Bounds of the debug socket: it is for people, and nothing of it is to last.
const (
	debugHeader = 5 * time.Second
	debugAnswer = 30 * time.Second
	debugEnd    = time.Second
)

// revisionHeader says of which Revision a Snapshot is.
const revisionHeader = "Endpointd-Revision"

// agentStatus is how an agent is, for people and programs.
type agentStatus struct {
	planeStatus
	DNS *namesStatus `json:"dns,omitempty"` // none where there is to be no DNS server
}

// debugHandler answers about an agent: GET /snapshot (with ?applied the one in force), GET /status, and GET /queries, which goes on.
func debugHandler(p *plane, d debugNames) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /snapshot", func(w http.ResponseWriter, r *http.Request) {
		s, _ := p.runner.Applied()
		if !r.URL.Query().Has("applied") {
			p.mu.Lock()
			s = p.wanted
			p.mu.Unlock()
		}
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		if s == nil {
			http.Error(w, "there is no Snapshot yet: the API has not told everything, or the data plane has not taken it", http.StatusServiceUnavailable)
			return
		}
		w.Header().Set(revisionHeader, strconv.FormatUint(s.Revision, 10))
		_ = model.WriteText(w, s) // the client may have left
	})
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		_ = e.Encode(agentStatus{p.status(), d.status()}) // as above
	})
	mux.HandleFunc("GET /queries", d.queries)
	return mux
}

// serveDebug answers on the socket of a folder until ctx ends. The folder is held by this process alone.
func serveDebug(ctx context.Context, dataDir string, h http.Handler, log *slog.Logger) error {
	l, err := listenUnix(dataDir, debugSocket)
	if err != nil {
		return fmt.Errorf("socket for endpointd debug: %w", err)
	}
	return serveHTTP(ctx, l, &http.Server{
		Handler: h, ReadHeaderTimeout: debugHeader, WriteTimeout: debugAnswer, IdleTimeout: debugAnswer, MaxHeaderBytes: 16 << 10,
		ErrorLog:    slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		BaseContext: func(net.Listener) context.Context { return ctx }, // who follows something is told of the end
	})
}

// serveHTTP answers on l until ctx ends, and closes l.
func serveHTTP(ctx context.Context, l net.Listener, server *http.Server) error {
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(l) }()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), debugEnd)
	defer cancel()
	if server.Shutdown(limited) != nil {
		_ = server.Close() // who still reads has had his time
	}
	if err := <-failed; !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// listenUnix makes a socket with mode 0600. Its path may be longer than a socket address, so it is named by its folder's descriptor.
func listenUnix(folder, name string) (net.Listener, error) {
	dir, err := os.Open(folder)
	if err != nil {
		return nil, err
	}
	defer dir.Close() //nolint:errcheck // read only
	if err := os.Remove(filepath.Join(folder, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), name)})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false) // by the path of a descriptor that is closed by then
	if err := os.Chmod(filepath.Join(folder, name), 0o600); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// DebugOptions say which agent is asked what.
type DebugOptions struct {
	DataDir string // of an agent, of the server beside whose folder it is, or of `up`
	Node    string // of `up`; "" = the only one
	What    string // "snapshot", "snapshot?applied", "status" or "queries?…"
	// Follow is for an answer that goes on until ctx ends, which is no error then.
	Follow bool
}

// debugPatience is how long an agent may take to begin its answer.
const debugPatience = 10 * time.Second

// Debug asks the agent of a folder, and writes its answer to w.
func Debug(ctx context.Context, o DebugOptions, w io.Writer) error {
	folder, err := agentFolder(o.DataDir, o.Node)
	if err != nil {
		return err
	}
	dir, err := os.Open(folder)
	if err != nil {
		return folderError(folder, err)
	}
	defer dir.Close() //nolint:errcheck // read only
	transport := &http.Transport{ResponseHeaderTimeout: debugPatience, DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{Timeout: debugPatience}).DialContext(ctx, "unix", fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), debugSocket))
	}}
	defer transport.CloseIdleConnections()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://agent/"+o.What, http.NoBody)
	if err != nil {
		return err
	}
	response, err := transport.RoundTrip(request)
	if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("data folder %s: no agent runs here: start one with endpointd node or endpointd up, or name its folder with --data-dir", folder)
	}
	if err != nil {
		if o.Follow && ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("agent of %s: %w", folder, err)
	}
	defer response.Body.Close() //nolint:errcheck // read only
	if response.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(response.Body, 1<<10)) // the code says enough
		return fmt.Errorf("agent of %s: %s", folder, strings.TrimSpace(string(text)))
	}
	if _, err := io.Copy(w, response.Body); err != nil && (!o.Follow || ctx.Err() == nil) {
		return fmt.Errorf("agent of %s: its answer broke off: %w", folder, err)
	}
	return nil
}

// agentFolder finds the folder of an agent.
func agentFolder(dataDir, node string) (string, error) {
	if node != "" {
		folder := sandbox.NodeDir(dataDir, node)
		if nodes := sandboxNodes(dataDir); len(nodes) == 0 {
			return "", fmt.Errorf("data folder %s: there is no node %q: no node of endpointd up ran here", dataDir, node)
		} else if !slices.Contains(nodes, node) {
			return "", fmt.Errorf("data folder %s: there is no node %q: use one of %s", dataDir, node, strings.Join(nodes, ", "))
		}
		return folder, nil
	}
	for _, folder := range []string{dataDir, filepath.Join(dataDir, "node")} {
		if exists(filepath.Join(folder, debugSocket)) {
			return folder, nil
		}
	}
	switch nodes := sandboxNodes(dataDir); len(nodes) {
	case 0:
		return "", fmt.Errorf("data folder %s: no agent runs here: start one with endpointd node or endpointd up, or name its folder with --data-dir", dataDir)
	case 1:
		return sandbox.NodeDir(dataDir, nodes[0]), nil
	default:
		return "", fmt.Errorf("data folder %s has several nodes: choose one with --node: %s", dataDir, strings.Join(nodes, ", "))
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// sandboxNodes are the nodes of `up` with that folder.
func sandboxNodes(dataDir string) []string {
	entries, _ := os.ReadDir(filepath.Dir(sandbox.NodeDir(dataDir, "x"))) // none, if there is none
	var names []string
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	slices.Sort(names)
	return names
}
