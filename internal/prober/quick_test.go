package prober

import (
	"testing"
	"time"
)

func TestQuickProbesMakeANewContainerReadySoon(t *testing.T) {
	for _, kind := range []Kind{Readiness, Startup} {
		bubble(t, func(t *testing.T, p *Prober, j *journal) {
			s := spec(j, "it", script(j, "p", "-?-..-"))
			s.Quick, s.SuccessThreshold = 10*time.Millisecond, 2
			add(t, p, key(kind), s)
			pass(11 * time.Second)
			j.want(t, "0s p", "10ms p", "10ms p", "30ms p", "10.03s p", "10.03s it passed")
		})
	}
}

func TestQuickProbesDoNotCountAndEndAfterAPeriod(t *testing.T) {
	bubble(t, func(t *testing.T, p *Prober, j *journal) {
		s := spec(j, "it", script(j, "", "-"))
		s.Quick, s.FailureThreshold, s.InitialDelay = 4*time.Second, 2, time.Second
		add(t, p, key(Startup), s)
		pass(40 * time.Second)
		j.want(t, "11s Startup probe failed: no (1)", "21s Startup probe failed: no (2)", "21s it failed")
	})
}

func TestLivenessAndWhatWasTakenOverAreNeverQuick(t *testing.T) {
	bubble(t, func(t *testing.T, p *Prober, j *journal) {
		alive := spec(j, "alive", script(j, "", "-"))
		alive.Quick, alive.Period = time.Millisecond, 7*time.Second
		add(t, p, key(Liveness), alive)
		ready := spec(j, "ready", script(j, "", "-"))
		ready.Quick, ready.Initial = time.Millisecond, Passed
		add(t, p, key(Readiness), ready)
		alive.InitialDelay = 2 * time.Second
		add(t, p, Key{"uid", "other", Liveness}, alive)
		pass(8 * time.Second)
		j.want(t, "0s Readiness probe failed: no (1)", "2s Liveness probe failed: no (1)", "7s Liveness probe failed: no (1)")
	})
}
