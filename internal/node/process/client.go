package process

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/endpointd/endpointd/internal/node/container"
	"github.com/endpointd/endpointd/internal/node/shim"
)

// dial connects to the shim. The path goes through /proc, because a path of a socket has at most 107 bytes.
func (p *pod) dial(ctx context.Context) (net.Conn, error) {
	dir, err := os.OpenFile(p.dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	defer dir.Close() //nolint:errcheck // opened for its path alone
	var dialer net.Dialer
	return dialer.DialContext(ctx, "unix", "/proc/self/fd/"+strconv.Itoa(int(dir.Fd()))+"/"+shim.SocketFile)
}

// line is a connection to the shim on which a request went out.
type line struct {
	net.Conn
	in *bufio.Reader
}

// send begins a conversation, which the caller closes.
func (p *pod) send(ctx context.Context, request shim.Request) (*line, error) {
	data, err := json.Marshal(request)
	if err != nil {
		return nil, err
	}
	conn, err := p.dial(ctx)
	if err != nil {
		return nil, err
	}
	l := &line{Conn: conn, in: bufio.NewReader(conn)}
	stop := l.endWith(ctx)
	defer stop()
	if _, err := conn.Write(append(data, '\n')); err != nil {
		return nil, errors.Join(ctx.Err(), err, conn.Close())
	}
	return l, nil
}

// endWith has reads and writes fail when ctx ends.
func (l *line) endWith(ctx context.Context) (stop func() bool) {
	return context.AfterFunc(ctx, func() { _ = l.SetDeadline(time.Unix(1, 0)) })
}

// read decodes the next answer.
func (l *line) read(into any) error {
	data, err := l.in.ReadBytes('\n')
	if err != nil {
		return err
	}
	return json.Unmarshal(data, into)
}

// call sends a request and decodes the one answer.
func (p *pod) call(ctx context.Context, request shim.Request, into any) error {
	l, err := p.send(ctx, request)
	if err != nil {
		return err
	}
	defer l.Close() //nolint:errcheck // read to its end, or given up
	stop := l.endWith(ctx)
	defer stop()
	if err := l.read(into); err != nil {
		return errors.Join(ctx.Err(), err)
	}
	return nil
}

// Start implements container.Runtime.
func (r *Runtime) Start(ctx context.Context, c container.Container) (container.Status, error) {
	p, err := r.lookup(c.Pod)
	if err != nil {
		return container.Status{}, startError("CreateContainerError", 128, c, err)
	}
	if !p.living() {
		return container.Status{}, startError("CreateContainerError", 128, c, errDead)
	}
	p.hold(c.Name)
	defer r.letGo(p, c.Name)
	var reply shim.StartReply
	if err := p.call(ctx, shim.Request{Start: &c}, &reply); err != nil {
		return container.Status{}, startError("CreateContainerError", 128, c, err)
	}
	if reply.Failure != nil {
		return container.Status{}, startError("RunContainerError", reply.Failure.Code, c, reply.Failure)
	}
	p.merge(*reply.Status)
	return *reply.Status, nil
}

var errDead = errors.New("the pod's first process has died: remove the pod")

func startError(reason string, code int, c container.Container, err error) error {
	return &container.StartError{Reason: reason, Code: code, Err: fmt.Errorf("container %s: %w", c.Name, err)}
}

// Signal implements container.Runtime.
func (r *Runtime) Signal(ctx context.Context, uid, name string, sig syscall.Signal) error {
	p, err := r.lookup(uid)
	if err != nil || !p.living() {
		return nil //nolint:nilerr // what does not run needs no signal
	}
	var reply shim.Reply
	err = p.call(ctx, shim.Request{Signal: &shim.SignalRequest{Container: name, Signal: int(sig)}}, &reply)
	if err != nil && p.process.ended() {
		return nil
	}
	if reply.Error != "" {
		err = errors.New(reply.Error)
	}
	return wrap(err, "signal", uid, name)
}

func wrap(err error, doing, uid, name string) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s container %s of pod %s: %w", doing, name, uid, err)
}

// hold keeps the container's events back until its Start has returned.
func (p *pod) hold(name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.starting[name]++
}

func (r *Runtime) letGo(p *pod, name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.starting[name]--; p.starting[name] > 0 {
		return
	}
	delete(p.starting, name)
	var rest []container.Event
	for _, e := range p.held {
		if e.Container.Name == name {
			r.events.add(e)
		} else {
			rest = append(rest, e)
		}
	}
	p.held = rest
}

// merge takes in what the shim says, and tells whether it is news. Start's answer and the stream may overtake each other.
func (p *pod) merge(status container.Status) (news bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	known, ok := p.containers[status.Name]
	older := ok && (status.StartedAt.Before(known.StartedAt) ||
		status.StartedAt.Equal(known.StartedAt) && (known.State == status.State || known.State == container.Exited))
	if older || !p.alive {
		return false
	}
	p.containers[status.Name] = status
	return true
}

func (r *Runtime) startWatch(p *pod) {
	p.watched = make(chan struct{})
	r.watches.Go(func() {
		defer close(p.watched)
		r.watch(p)
	})
}

// watch follows the shim's stream of changes until the shim ends or the Runtime is closed.
func (r *Runtime) watch(p *pod) {
	for r.ctx.Err() == nil {
		err := r.follow(p)
		// Its sockets close a moment before a process has ended.
		ctx, cancel := context.WithTimeout(r.ctx, endGrace)
		over := p.process.wait(ctx) == nil
		cancel()
		if over {
			r.died(p)
			return
		}
		if r.ctx.Err() == nil {
			r.logger.Warn("lost a pod's stream of events, connecting again", "pod", p.uid, "err", err)
		}
	}
}

// endGrace is how long a stream may be broken before it is taken for that of a living shim. Ending a namespace takes as
// long as its processes do.
const endGrace = time.Second

// follow returns when the stream ends, which it does with an error.
func (r *Runtime) follow(p *pod) error {
	l, err := p.send(r.ctx, shim.Request{Watch: true})
	if err != nil {
		return err
	}
	defer l.Close() //nolint:errcheck // read only
	stop := l.endWith(r.ctx)
	defer stop()
	for {
		var change shim.Change
		if err := l.read(&change); err != nil {
			return err
		}
		for _, status := range change.Containers {
			if p.merge(status) && status.State == container.Exited {
				r.tell(p, container.Event{Pod: p.uid, Container: &status})
			}
		}
	}
}

func (r *Runtime) tell(p *pod, e container.Event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if e.Container != nil && p.starting[e.Container.Name] > 0 {
		p.held = append(p.held, e)
		return
	}
	r.events.add(e)
}

// died is the end of a shim.
func (r *Runtime) died(p *pod) {
	p.mu.Lock()
	p.end(time.Now())
	removing := p.removing
	p.mu.Unlock()
	if !removing {
		r.tell(p, container.Event{Pod: p.uid})
	}
}
