package forward

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/miekg/dns"

	"github.com/endpointd/endpointd/internal/dns/wire"
)

const (
	// failsDown is how many questions in a row an upstream leaves without answer until it is asked last.
	failsDown = 3
	// An upstream that is down is probed again after a time between these.
	probeMin     = time.Second
	probeMax     = 10 * time.Second
	probeTimeout = 2 * time.Second
	// loopTries is how often it is tried to put a loop probe: we may not listen yet.
	loopTries = 5
	// loopAgain is when it is looked whether an upstream still leads back here.
	loopAgain = time.Minute
	// rttPart is the part that one answer has in the smoothed time.
	rttPart = 8
)

// An upstream is one at work.
type upstream struct {
	Upstream
	forwarder *Forwarder
	domains   []string
	exchange  func(ctx context.Context, q question) (*dns.Msg, error)
	streams   *streams
	metrics   UpstreamMetrics

	fails  atomic.Int32 // questions without answer in a row
	down   atomic.Bool
	loops  atomic.Bool
	looped atomic.Bool   // a loop probe came to us
	rtt    atomic.Int64  // smoothed, in nanoseconds; 0 = not known
	sick   chan struct{} // the watch has something to look at

	plain   atomic.Bool  // it does not understand EDNS
	recased atomic.Int32 // answers in a row that did not repeat the letter case; -1 = it did once
}

func (f *Forwarder) newUpstream(up Upstream) *upstream {
	u := &upstream{Upstream: up, forwarder: f, sick: make(chan struct{}, 1)}
	u.streams = newStreams(u)
	u.exchange = u.overUDP
	if up.TLS {
		u.exchange = u.overStream
	}
	return u
}

// patience is how long to wait before another is asked too.
func (u *upstream) patience() time.Duration {
	rtt, least, most := time.Duration(u.rtt.Load()), u.forwarder.patience[0], u.forwarder.patience[1]
	if rtt == 0 {
		return (least + most) / 2
	}
	return min(max(patienceFactor*rtt, least), most)
}

// try puts a question to it, and keeps book of how that went.
func (u *upstream) try(ctx context.Context, q question) (*Answer, error) {
	m, err := u.measured(ctx, q)
	if err != nil {
		return nil, err
	}
	if m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError {
		u.metrics.Errors.Add(1)
		return nil, errRCode(m.Rcode)
	}
	a, err := newAnswer(q, m, u.forwarder.limits)
	if err != nil {
		u.metrics.Errors.Add(1)
	}
	return a, err
}

func (u *upstream) measured(ctx context.Context, q question) (*dns.Msg, error) {
	u.metrics.Questions.Add(1)
	began := time.Now()
	m, err := u.exchange(ctx, q)
	if err != nil {
		if !errors.Is(ctx.Err(), context.Canceled) { // another one was faster
			u.metrics.Failures.Add(1)
			u.fail(err)
		}
		return nil, err
	}
	took := time.Since(began)
	u.metrics.Answers.Add(1)
	u.forwarder.metrics.observe(took)
	was := u.rtt.Load()
	if was == 0 {
		was = int64(took)
	}
	u.rtt.Store(max(was+(int64(took)-was)/rttPart, 1))
	u.fails.Store(0)
	if u.down.CompareAndSwap(true, false) {
		u.rtt.Store(max(int64(took), 1))
		u.forwarder.o.Logger.Info("upstream answers again", "upstream", u.String())
	}
	return m, nil
}

// slow notes that a question took so long that another upstream was asked.
func (u *upstream) slow() {
	u.rtt.Store(max(u.rtt.Load(), int64(u.patience())))
	u.fail(errSilent)
}

// fail notes a question that was left without answer. Who cannot be reached is down after some. Who is silent is probed first: it may itself be waiting
// for the servers of that one name, and be well.
func (u *upstream) fail(err error) {
	if isOurs(err) || u.fails.Add(1) < failsDown {
		return
	}
	if isSilence(err) {
		u.look()
		return
	}
	u.markDown(err)
}

// isOurs says whether it was for lack of something on this side.
func isOurs(err error) bool {
	isLack := func(target error) bool { return errors.Is(err, target) }
	return slices.ContainsFunc([]error{errCrowded, ErrClosed, syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM}, isLack)
}

func isSilence(err error) bool {
	return errors.Is(err, errSilent) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded)
}

func (u *upstream) markDown(err error) {
	if !u.down.CompareAndSwap(false, true) {
		return
	}
	u.recased.Store(0) // it may come back as another
	u.plain.Store(false)
	u.forwarder.o.Logger.Warn("upstream does not answer; it is asked last until it does", "upstream", u.String(), "err", err)
	u.look()
}

// look wakes the watch.
func (u *upstream) look() {
	select {
	case u.sick <- struct{}{}:
	default:
	}
}

// watch probes it when it is silent and while it is down, and for loops: at the start, after it came back, and again while it does lead back.
func (u *upstream) watch(ctx context.Context) {
	for ctx.Err() == nil {
		u.probeLoop(ctx)
		u.wait(ctx)
		if u.fails.Load() >= failsDown && !u.down.Load() {
			if err := u.probe(ctx, rootQuestion()); err != nil && ctx.Err() == nil {
				u.markDown(err)
			}
		}
		for wait := probeMin; u.down.Load() && pause(ctx, wait); wait = min(2*wait, probeMax) {
			_ = u.probe(ctx, rootQuestion()) // it notes how that went
		}
	}
}

// wait returns when there is something to look at.
func (u *upstream) wait(ctx context.Context) {
	timer := time.NewTimer(loopAgain)
	defer timer.Stop()
	again := timer.C
	if !u.loops.Load() {
		again = nil
	}
	select {
	case <-ctx.Done():
	case <-u.sick:
	case <-again:
	}
}

// rootQuestion is one that every server has an answer to.
func rootQuestion() question { return newQuestion([]byte{0}, dns.TypeNS) }

// probe puts a question of ours. Any answer is good.
func (u *upstream) probe(ctx context.Context, q question) error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	_, err := u.measured(ctx, q)
	return err
}

// loopLabels are behind the random label of a loop probe.
const loopLabels = "\x04loop\x09endpointd\x00"

// loopRandom is the length of that label: 16 random octets in hexadecimal.
const loopRandom = 32

// probeLoop asks for a name that nobody else knows. If that question comes to us, IsLoopProbe says so.
func (u *upstream) probeLoop(ctx context.Context) {
	var random [loopRandom / 2]byte
	_, _ = rand.Read(random[:]) // never fails
	name := string(rune(loopRandom)) + hex.EncodeToString(random[:]) + loopLabels
	f := u.forwarder
	f.probesMu.Lock()
	f.probes[name] = u
	f.probesMu.Unlock()
	u.looped.Store(false)
	answered := false
	for range loopTries {
		if answered = u.probe(ctx, newQuestion([]byte(name), dns.TypeHINFO)) == nil; answered || u.looped.Load() {
			break
		}
		if u.fails.Load() >= failsDown || !pause(ctx, probeMin) {
			break
		}
	}
	f.probesMu.Lock()
	delete(f.probes, name)
	f.probesMu.Unlock()
	if answered && !u.looped.Load() && u.loops.CompareAndSwap(true, false) {
		f.o.Logger.Info("upstream does not lead back here any more", "upstream", u.String())
	}
}

// IsLoopProbe says whether a question that came to us is one that we sent: its upstream leads back here, and is not asked any more. The server
// answers it with whatever it likes.
func (f *Forwarder) IsLoopProbe(name []byte) bool {
	if len(name) != 1+loopRandom+len(loopLabels) || !strings.EqualFold(string(name[1+loopRandom:]), loopLabels) {
		return false
	}
	key := wire.AppendLower(nil, name)
	f.probesMu.Lock()
	u := f.probes[string(key)]
	f.probesMu.Unlock()
	if u == nil {
		return false
	}
	u.looped.Store(true)
	if u.loops.CompareAndSwap(false, true) {
		f.o.Logger.Error("upstream leads back to this server, so it is not asked; name another one, or one behind it", "upstream", u.String())
		f.o.Loop(u.Upstream)
	}
	return true
}

// pause waits. It reports false if ctx ended.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
