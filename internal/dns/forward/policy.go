package forward

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	// patienceMin and patienceMax are how long an upstream is waited for before the next is asked too, patienceFactor how many of its usual times.
	patienceMin    = 500 * time.Millisecond
	patienceMax    = time.Second
	patienceFactor = 4
	// exploreOne of so many questions goes to another upstream than the fastest first, so that it is known how fast that is now.
	exploreOne = 32
	// maxAttempts is how often a question is put to upstreams in all, or as often as there are upstreams.
	maxAttempts = 4
)

var (
	errNobody = errors.New("all upstreams lead back here")
	errSilent = errors.New("no answer in time")
)

// A zone is a domain's upstreams.
type zone struct {
	upstreams []*upstream
}

// isDown says whether none of them is known to answer.
func (z *zone) isDown() bool {
	return !slices.ContainsFunc(z.upstreams, func(u *upstream) bool { return !u.down.Load() && !u.loops.Load() })
}

// order is in which order they are asked: those that answer, the fastest first and before it those whose speed is not known, then those that are down.
func (z *zone) order() []*upstream {
	type rank struct {
		up   *upstream
		down bool
		rtt  int64
	}
	ranks := make([]rank, 0, len(z.upstreams))
	for _, u := range z.upstreams {
		if !u.loops.Load() {
			ranks = append(ranks, rank{u, u.down.Load(), u.rtt.Load()})
		}
	}
	slices.SortStableFunc(ranks, func(a, b rank) int {
		switch {
		case a.down != b.down && a.down:
			return 1
		case a.down != b.down:
			return -1
		case a.rtt < b.rtt:
			return -1
		case a.rtt > b.rtt:
			return 1
		}
		return 0
	})
	healthy := 0
	order := make([]*upstream, len(ranks))
	for i, r := range ranks {
		order[i] = r.up
		if !r.down {
			healthy++
		}
	}
	if healthy > 1 && rand.N(exploreOne) == 0 {
		i := rand.N(healthy)
		order[0], order[i] = order[i], order[0]
	}
	return order
}

// A reply is what became of a question to one upstream.
type reply struct {
	from   *upstream
	answer *Answer
	err    error
}

// ask asks one upstream after another. The next one is asked when one has no answer, or takes longer than it should; then the first one that answers wins,
// and who was slow is asked again in the end, as a packet may have been lost.
func (z *zone) ask(ctx context.Context, q question) (*Answer, error) {
	queue := z.order()
	if len(queue) == 0 {
		return nil, errNobody
	}
	limit := max(maxAttempts, len(queue))
	replies := make(chan reply, limit)
	var attempts sync.WaitGroup
	defer attempts.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var last *upstream
	started, running := 0, 0
	patience := time.NewTimer(0)
	defer patience.Stop()
	next := func() {
		if started == limit || len(queue) == 0 {
			patience.Stop()
			return
		}
		u := queue[0]
		last, queue = u, queue[1:]
		started++
		running++
		patience.Reset(u.patience())
		attempts.Go(func() {
			a, err := u.try(ctx, q)
			replies <- reply{u, a, err}
		})
	}
	next()
	var failed error
	for running > 0 {
		select {
		case r := <-replies:
			running--
			if r.err == nil {
				return r.answer, nil
			}
			failed = errors.Join(failed, fmt.Errorf("upstream %s: %w", r.from, r.err))
			if r.from == last || running == 0 {
				next()
			}
		case <-patience.C:
			last.slow()
			queue = append(queue, last)
			next()
		case <-ctx.Done():
			if failed == nil {
				failed = errSilent
			}
			return nil, failed
		}
	}
	return nil, failed
}

// errRCode is the answer of an upstream that has none.
type errRCode int

func (e errRCode) Error() string { return "answers " + dns.RcodeToString[int(e)] }
