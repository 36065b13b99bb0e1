package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// probeCommand is the hidden first argument that makes this program a client that looks where Services lead.
const probeCommand = "traffic-probe"

// probeSpec is what such a client does, until it is killed or Longest is over.
type probeSpec struct {
	// Targets are dialled until each of them has worked once, if All is set, and then it says so. Else the only one is dialled again and again.
	Targets []netip.AddrPort `json:"targets"`
	All     bool             `json:"all"`
	// Who has it ask at which address it came out; it says when that becomes another. Else it says when dialling begins to work, and to fail.
	Who     bool          `json:"who"`
	Every   time.Duration `json:"every"`   // from the end of one to the beginning of the next
	Timeout time.Duration `json:"timeout"` // of one
	Longest time.Duration `json:"longest"`
}

// monotonic is a clock that all processes of this machine share.
func monotonic() time.Duration {
	var t unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &t) // this clock is there
	return time.Duration(t.Nano())
}

// Answers of a dial that did not come out anywhere, and of one that did and did not ask where.
const (
	nowhere = "-"
	here    = "+"
)

func probeMain(args []string) error {
	runtime.LockOSThread()
	if len(args) != 1 {
		return errors.New("want one argument: what to do, as JSON")
	}
	var spec probeSpec
	if err := json.Unmarshal([]byte(args[0]), &spec); err != nil {
		return err
	}
	end := monotonic() + spec.Longest
	fmt.Println("probing")
	if spec.All {
		for _, to := range spec.Targets {
			for dial(to, false, spec.Timeout) == nowhere {
				if monotonic() > end {
					return fmt.Errorf("%s does not work after %v", to, spec.Longest)
				}
				nap(spec.Every)
			}
		}
		now := monotonic()
		fmt.Println(here, int64(now), int64(now))
		return nil
	}
	was := ""
	for monotonic() < end {
		began := monotonic()
		now := dial(spec.Targets[0], spec.Who, spec.Timeout)
		if now != was {
			fmt.Println(now, int64(began), int64(monotonic()))
			was = now
		}
		nap(spec.Every)
	}
	return errors.New("nobody has ended this in time")
}

// nap is a sleep that the runtime knows nothing of: its timers are later than what is measured here.
func nap(d time.Duration) {
	t := unix.NsecToTimespec(int64(d))
	_ = unix.Nanosleep(&t, nil) // a signal may end it early
}

// dial makes a connection, and ends it by a reset: no TIME_WAIT stays anywhere.
func dial(to netip.AddrPort, who bool, timeout time.Duration) string {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nowhere
	}
	defer func() { _ = unix.Close(fd) }()
	_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	err = unix.Connect(fd, &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())})
	if err != nil && !errors.Is(err, unix.EINPROGRESS) {
		return nowhere
	}
	if !waitFor(fd, unix.POLLOUT, timeout) {
		return nowhere
	}
	if failed, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR); err != nil || failed != 0 {
		return nowhere
	}
	if !who {
		return here
	}
	if !waitFor(fd, unix.POLLIN, timeout) {
		return nowhere
	}
	var addr [4]byte
	if n, err := unix.Read(fd, addr[:]); err != nil || n != len(addr) {
		return nowhere
	}
	return netip.AddrFrom4(addr).String()
}

func waitFor(fd int, events int16, timeout time.Duration) bool {
	until := monotonic() + timeout
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: events}}, int(max(until-monotonic(), 0)/time.Millisecond)+1) //nolint:gosec // a descriptor
		if !errors.Is(err, unix.EINTR) || monotonic() > until {
			return err == nil && n == 1
		}
	}
}

// sight is a change that a probe has seen: where its dials come out now, and when the first that did began and ended.
type sight struct {
	where       string
	began, done time.Duration
}

// lookout is a probe at work.
type lookout struct {
	process *process

	mu     sync.Mutex
	seen   []sight
	change chan struct{} // closed with every sight, and replaced
}

// probe starts one at a spot.
func (b *bench) probe(ctx context.Context, at spot, spec probeSpec) (*lookout, error) {
	text, err := json.Marshal(spec)
	if err != nil {
		return nil, err
	}
	p := &lookout{change: make(chan struct{})}
	p.process, err = at.start(&process{name: "probe", heard: p.hear}, filepath.Join(b.dir, "probe.log"), os.Environ(), b.self, probeCommand, string(text))
	if err != nil {
		return nil, err
	}
	if _, err := p.process.ready(ctx, readyWait); err != nil {
		return nil, errors.Join(err, p.close())
	}
	return p, nil
}

func (p *lookout) close() error { return p.process.kill() }

func (p *lookout) hear(line string) {
	s, ok := parseSight(line)
	if !ok {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.seen = append(p.seen, s)
	close(p.change)
	p.change = make(chan struct{})
}

func parseSight(line string) (s sight, ok bool) {
	words := strings.Fields(line)
	if len(words) != 3 {
		return s, false
	}
	began, err1 := strconv.ParseInt(words[1], 10, 64)
	done, err2 := strconv.ParseInt(words[2], 10, 64)
	return sight{words[0], time.Duration(began), time.Duration(done)}, err1 == nil && err2 == nil
}

// until waits for a sight that fits, from the from-th on.
func (p *lookout) until(ctx context.Context, longest time.Duration, from int, fits func(sight) bool) (sight, error) {
	ctx, cancel := context.WithTimeout(ctx, longest)
	defer cancel()
	for {
		p.mu.Lock()
		seen, change := p.seen[min(from, len(p.seen)):], p.change
		p.mu.Unlock()
		for _, s := range seen {
			if fits(s) {
				return s, nil
			}
		}
		from += len(seen)
		select {
		case <-change:
		case <-p.process.done:
			return sight{}, fmt.Errorf("the probe has ended: %v%s", p.process.cmd.ProcessState, p.process.tail())
		case <-ctx.Done():
			return sight{}, fmt.Errorf("not seen within %v: %w", longest, ctx.Err())
		}
	}
}

// sights are those so far.
func (p *lookout) sights() []sight {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clip(p.seen)
}
