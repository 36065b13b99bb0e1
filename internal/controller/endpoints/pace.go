package endpoints

import "time"

// Slices of a Service whose changes keep coming while its writes are in flight
// are written at most this often. A consumer is then this far behind, in the
// middle of a change of thousands of pods.
const maxPause = 100 * time.Millisecond

// pace keeps a Service whose changes never stop from being written without end,
// each time for the sake of one pod more: the more the changes crowd, the longer
// it waits for the next ones to write them together. A change that comes after a
// quiet moment is never held, nor is the one that comes during its write.
type pace struct {
	pause     time.Duration // after the last writes
	notBefore time.Time     // the next writes
	crowding  bool          // changes came during the last writes, or in the pause after them
}

// hold gives how long the next writes are to wait.
func (p *pace) hold(now time.Time) time.Duration {
	wait := p.notBefore.Sub(now)
	if wait <= 0 {
		return 0
	}
	p.crowding = true
	return wait
}

// wrote takes in that writes have ended, how long they took, and whether there
// are newer changes already.
func (p *pace) wrote(now time.Time, took time.Duration, news bool) {
	if p.crowding {
		p.pause = min(2*max(p.pause, took), maxPause)
	} else {
		p.pause = 0
	}
	p.notBefore = now.Add(p.pause)
	p.crowding = news
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
