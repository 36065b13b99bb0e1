package endpoints

import "time"

// A Service under a flood of changes is written in batches of at least crowd
// changes, with a pause of at most maxPause between them: a consumer is that far
// behind, in the middle of a change of thousands of pods.
const (
	crowd    = 4
	maxPause = 100 * time.Millisecond
)

// pace keeps a Service whose changes never stop from being written without end,
// each time for the sake of one pod more. The pause after a write follows the
// number of changes that it took along: many, and it doubles; few, and it halves
// until there is none. So changes that come one at a time are never held, however
// fast they follow each other.
type pace struct {
	pause     time.Duration // after the last writes
	notBefore time.Time     // the next writes
}

// hold gives how long the next writes are to wait.
func (p *pace) hold(now time.Time) time.Duration { return max(p.notBefore.Sub(now), 0) }

// wrote takes in that writes for so many changes have ended, and how long they
// took.
func (p *pace) wrote(now time.Time, took time.Duration, changes int) {
	switch {
	case changes >= crowd:
		p.pause = min(max(2*p.pause, took), maxPause)
	case p.pause < time.Millisecond:
		p.pause = 0
	default:
		p.pause /= 2
	}
	p.notBefore = now.Add(p.pause)
}

// crowded says that the last writes were followed by a pause.
func (p *pace) crowded() bool { return p.pause > 0 }

// The Endpoints object of a Service under change is written when it is this many
// times older than its last write took, within bounds. It may hold 1000
// addresses, and the API server keeps every version for a while.
const (
	lagFactor = 20
	minLag    = 50 * time.Millisecond
	maxLag    = time.Second
)

// lag lets the Endpoints object fall behind while the Service keeps changing.
type lag struct {
	since time.Time     // when it fell behind; zero if it is not
	cost  time.Duration // of its last write
}

// hold gives how long the object is to wait, given whether changes crowd.
func (l *lag) hold(now time.Time, crowded bool) time.Duration {
	if !crowded && l.since.IsZero() {
		return 0
	}
	if l.since.IsZero() {
		l.since = now
	}
	return max(l.since.Add(min(max(lagFactor*l.cost, minLag), maxLag)).Sub(now), 0)
}

// wrote takes in that the object is as it should be, and what writing it took;
// 0 if that was not necessary.
func (l *lag) wrote(took time.Duration) {
	l.since = time.Time{}
	if took > 0 {
		l.cost = took
	}
}
