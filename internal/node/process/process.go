// Package process is the runtime that is built in: pods as processes, without images or a container engine.
//
// In: container.Sandbox and container.Container. Out: processes in namespaces of their own, their state, exits and streams.
//
// Each pod is one process "endpointd-pod" (package shim), which holds the namespaces and starts the containers; this package starts
// it, talks to it over a unix socket and clears up after it. All that must survive the agent is in the shim and in the pod's folder:
//
//	Dir/<uid>/bundle.json          what the pod was started with
//	Dir/<uid>/sock, shim.log       where the shim listens, what it complained of
//	Dir/<uid>/lock                 locked as long as the shim lives; holds its PID
//	Dir/<uid>/state/<name>.json    the last attempt of each container
//	Dir/<uid>/logs/<name>/<n>.log  output in the CRI's format
//
// Invariants: a pod lives as long as its shim. A folder without a complete bundle.json is no pod and is removed. What is on disk was so
// before anybody was told, so exits between two agents are in Pods, and later ones on Events, each once.
//
// What it refuses: images, restarts, networks (package podnet gives a pod's namespace its addresses).
//
// How to test: go test ./internal/node/process. Tests start real pods in user namespaces of their own; nobody needs to be root.
package process

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/endpointd/endpointd/internal/node/container"
	"github.com/endpointd/endpointd/internal/node/shim"
	"github.com/endpointd/endpointd/internal/node/shim/cgroup"
)

// Options are where a Runtime keeps things. Dir is required.
type Options struct {
	Dir        string       // a folder for each pod; made with mode 0700
	Cgroup     string       // a cgroup v2 folder for the pods' groups; "" = none, then limits do not hold
	Executable string       // what runs as endpointd-pod; "" = this program
	Logger     *slog.Logger // nil = none
}

// Runtime implements container.Runtime.
type Runtime struct {
	dir, cgroup, executable string
	logger                  *slog.Logger
	events                  *queue
	ctx                     context.Context // ends with Close
	cancel                  context.CancelFunc
	watches                 sync.WaitGroup
	closing                 sync.Once

	mu   sync.Mutex      // guards pods
	pods map[string]*pod // UID → pod; an entry without a bundle is being started
}

var _ container.Runtime = (*Runtime)(nil)

// FindCgroup2 gives the mount point of cgroup v2, alone or beside v1.
func FindCgroup2() (mountpoint string, ok bool) { return cgroup.Find() }

// New takes over the pods that are in Dir.
func New(o Options) (*Runtime, error) {
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("folder of the pods: %w", err)
	}
	r := &Runtime{
		dir: dir, cgroup: o.Cgroup, executable: o.Executable, logger: o.Logger, pods: map[string]*pod{}, events: newQueue(),
	}
	if r.logger == nil {
		r.logger = slog.New(slog.DiscardHandler)
	}
	if r.executable == "" {
		r.executable = "/proc/self/exe"
	}
	r.prepareCgroup()
	r.ctx, r.cancel = context.WithCancel(context.Background())
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, errors.Join(err, r.Close())
	}
	for _, entry := range entries {
		if entry.IsDir() {
			r.adopt(entry.Name())
		}
	}
	return r, nil
}

// prepareCgroup makes the group of all pods, or does without.
func (r *Runtime) prepareCgroup() {
	if r.cgroup == "" {
		return
	}
	if err := cgroup.Make(r.cgroup); err != nil {
		r.logger.Warn("no cgroup for pods, so resource limits do not hold", "cgroup", r.cgroup, "err", err)
		r.cgroup = ""
		return
	}
	if missing, err := cgroup.Delegate(r.cgroup); len(missing) > 0 {
		log := r.logger.With("cgroup", r.cgroup, "controllers", strings.Join(missing, " "))
		if err != nil {
			log = log.With("err", err)
		}
		log.Warn("cgroup controllers are not available, so their limits do not hold")
	}
}

// adopt takes over what another agent left in a folder.
func (r *Runtime) adopt(uid string) {
	p, err := loadPod(r, uid)
	if errors.Is(err, errNoBundle) {
		r.logger.Info("removing what is left of a pod that never started", "pod", uid)
		err = os.RemoveAll(filepath.Join(r.dir, uid))
		if group := r.podGroup(uid); group != "" {
			err = errors.Join(err, cgroup.Remove(r.ctx, group))
		}
	}
	if err != nil {
		r.logger.Warn("a pod's folder cannot be read", "pod", uid, "err", err)
		return
	}
	if p == nil {
		return
	}
	r.mu.Lock()
	r.pods[uid] = p
	r.mu.Unlock()
	if p.process != nil {
		r.startWatch(p)
	}
}

// Close implements container.Runtime. A second one does nothing; the other methods then fail with os.ErrClosed.
func (r *Runtime) Close() error {
	r.closing.Do(r.close)
	return nil
}

func (r *Runtime) close() {
	r.cancel()
	r.watches.Wait()
	r.events.close()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range r.pods {
		p.release()
	}
}

// Events implements container.Runtime.
func (r *Runtime) Events() <-chan container.Event { return r.events.out }

// Pods implements container.Runtime.
func (r *Runtime) Pods(context.Context) ([]container.Pod, error) {
	if r.ctx.Err() != nil {
		return nil, os.ErrClosed
	}
	r.mu.Lock()
	pods := make([]*pod, 0, len(r.pods))
	for _, p := range r.pods {
		if p.started() {
			pods = append(pods, p)
		}
	}
	r.mu.Unlock()
	list := make([]container.Pod, 0, len(pods))
	for _, p := range pods {
		list = append(list, p.describe())
	}
	slices.SortFunc(list, func(a, b container.Pod) int { return strings.Compare(a.Sandbox.UID, b.Sandbox.UID) })
	return list, nil
}

// LogFile implements container.Runtime.
func (r *Runtime) LogFile(uid, name string, attempt int) string {
	return filepath.Join(r.dir, uid, shim.LogDir, name, strconv.Itoa(attempt)+".log")
}

// lookup finds a pod that has started.
func (r *Runtime) lookup(uid string) (*pod, error) {
	if r.ctx.Err() != nil {
		return nil, os.ErrClosed
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.pods[uid]
	if p == nil || !p.started() {
		return nil, fmt.Errorf("pod %s: %w", uid, fs.ErrNotExist)
	}
	return p, nil
}

// queue keeps events until the reader takes them, so that nobody who has one waits.
type queue struct {
	out  chan container.Event
	wake chan struct{}
	stop chan struct{}
	done chan struct{}

	mu      sync.Mutex // guards pending
	pending []container.Event
}

func newQueue() *queue {
	q := &queue{
		out: make(chan container.Event), wake: make(chan struct{}, 1), stop: make(chan struct{}), done: make(chan struct{}),
	}
	go q.run()
	return q
}

func (q *queue) add(e container.Event) {
	q.mu.Lock()
	q.pending = append(q.pending, e)
	q.mu.Unlock()
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

func (q *queue) run() {
	defer close(q.done)
	for {
		q.mu.Lock()
		batch := q.pending
		q.pending = nil
		q.mu.Unlock()
		for _, e := range batch {
			select {
			case q.out <- e:
			case <-q.stop:
				return
			}
		}
		if len(batch) > 0 {
			continue
		}
		select {
		case <-q.wake:
		case <-q.stop:
			return
		}
	}
}

func (q *queue) close() {
	close(q.stop)
	<-q.done
}

// startTimeout bounds how long a shim may take to stand; it takes milliseconds.
const startTimeout = 20 * time.Second
