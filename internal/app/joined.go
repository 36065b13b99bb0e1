package app

import (
	"net"
	"sync"
)

// joined is several listeners as one: the API server knows only one. Its address is that of the first.
type joined struct {
	net.Listener
	others   []net.Listener
	accepted chan accepted
	closed   chan struct{} // nobody accepts any more
	close    sync.Once
	work     sync.WaitGroup
}

type accepted struct {
	conn net.Conn
	err  error
}

// joinListeners owns all of them from now on.
func joinListeners(own net.Listener, others []net.Listener) net.Listener {
	if len(others) == 0 {
		return own
	}
	j := &joined{Listener: own, others: others, accepted: make(chan accepted), closed: make(chan struct{})}
	for _, l := range append([]net.Listener{own}, others...) {
		j.work.Go(func() { j.acceptFrom(l) })
	}
	return j
}

// acceptFrom ends when l was closed, or with its first error: net/http retries those that pass.
func (j *joined) acceptFrom(l net.Listener) {
	for {
		conn, err := l.Accept()
		select {
		case j.accepted <- accepted{conn, err}:
		case <-j.closed:
			if err == nil {
				_ = conn.Close() // nobody is there to be told
			}
			return
		}
	}
}

func (j *joined) Accept() (net.Conn, error) {
	select {
	case a := <-j.accepted:
		return a.conn, a.err
	case <-j.closed:
		return nil, net.ErrClosed
	}
}

// Close closes all of them and waits until nobody accepts. A listener that somebody else holds, too, goes on to take
// connections, which wait there for the next server.
func (j *joined) Close() error {
	err := net.ErrClosed
	j.close.Do(func() {
		close(j.closed)
		err = j.Listener.Close()
		for _, l := range j.others {
			_ = l.Close() // as the first
		}
		j.work.Wait()
	})
	return err
}
