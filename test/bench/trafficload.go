package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"runtime/debug"
	"time"

	"golang.org/x/sys/unix"
)

// loadCommand is the hidden first argument that makes this program a client that asks as fast as it can.
const loadCommand = "traffic-client"

// loadSpec is what such a client does. It ends after Warm+For, or after Most requests.
type loadSpec struct {
	Targets     []netip.AddrPort `json:"targets"` // asked in turn
	Connections int              `json:"connections"`
	Keep        bool             `json:"keep"` // connections are kept; else each request has a new one
	Warm        time.Duration    `json:"warm"` // not counted
	For         time.Duration    `json:"for"`
	Most        int              `json:"most"`
}

// loadResult is what it prints.
type loadResult struct {
	Requests   int     `json:"requests"`
	Failed     int     `json:"failed"`     // connections that were refused, reset or closed without an answer
	Unfinished int     `json:"unfinished"` // without an answer when the time was over
	Seconds    float64 `json:"seconds"`
	P50        float64 `json:"p50"` // microseconds, from before socket() or write() to the answer, and to the end of its connection
	P99        float64 `json:"p99"`
}

func (r *loadResult) rate() float64 { return float64(r.Requests) / r.Seconds }

// epollClient is one thread on epoll, as the server is: together they leave the two cores to the kernel.
type epollClient struct {
	spec    loadSpec
	poll    int
	next    int          // of the targets
	conns   []clientConn // by descriptor
	open    int
	took    []float64 // microseconds
	failed  int
	counts  bool
	request []byte
	answer  []byte
	ends    time.Time
}

type clientConn struct {
	began          time.Time
	open, answered bool
}

func loadMain(args []string) error {
	runtime.LockOSThread()
	debug.SetGCPercent(-1) // bounded by the number of requests
	if len(args) != 1 {
		return errors.New("want one argument: what to do, as JSON")
	}
	c := &epollClient{request: []byte("GET /k HTTP/1.1\r\nHost: bench\r\n\r\n"), answer: []byte(answerKeep)}
	if err := json.Unmarshal([]byte(args[0]), &c.spec); err != nil {
		return err
	}
	if !c.spec.Keep {
		c.request, c.answer = []byte("GET /c HTTP/1.1\r\nHost: bench\r\n\r\n"), []byte(answerClose)
	}
	if err := moreFiles(); err != nil {
		return err
	}
	c.took = make([]float64, 0, c.spec.Most)
	result, err := c.run()
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(result)
}

func (c *epollClient) run() (*loadResult, error) {
	var err error
	if c.poll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, fmt.Errorf("epoll: %w", err)
	}
	began := time.Now()
	counting := began.Add(c.spec.Warm)
	c.ends = counting.Add(c.spec.For)
	for range c.spec.Connections {
		c.connect()
	}
	events := make([]unix.EpollEvent, 256)
	buffer := make([]byte, 4096)
	for now := began; now.Before(c.ends) && len(c.took) < c.spec.Most && c.failed < c.spec.Most; now = time.Now() {
		if !c.counts && now.After(counting) {
			c.counts, c.failed, counting = true, 0, now
		}
		n, err := unix.EpollWait(c.poll, events, 20)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return nil, fmt.Errorf("epoll: %w", err)
		}
		for i := range max(n, 0) {
			c.turn(int(events[i].Fd), events[i].Events, buffer)
		}
		for c.open < c.spec.Connections { // whatever failed
			if !c.connect() {
				break
			}
		}
	}
	result := &loadResult{Requests: len(c.took), Failed: c.failed, Unfinished: c.open, Seconds: time.Since(counting).Seconds()}
	if len(c.took) > 0 { // there is no NaN in JSON
		result.P50, result.P99 = quantile(c.took, 0.5), quantile(c.took, 0.99)
	}
	return result, nil
}

// connect begins a connection, and says whether it could.
func (c *epollClient) connect() bool {
	to := c.spec.Targets[c.next%len(c.spec.Targets)]
	c.next++
	began := time.Now()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		c.failed++
		return false
	}
	err = unix.Connect(fd, &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())})
	if err == nil || errors.Is(err, unix.EINPROGRESS) {
		err = unix.EpollCtl(c.poll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{
			Events: unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLRDHUP | unix.EPOLLET&0xffffffff, Fd: int32(fd), //nolint:gosec // a descriptor
		})
	}
	if err != nil {
		c.failed++
		_ = unix.Close(fd)
		return false
	}
	for len(c.conns) <= fd {
		c.conns = append(c.conns, clientConn{})
	}
	c.conns[fd] = clientConn{began: began, open: true}
	c.open++
	return true
}

// turn is what has to be done when something has happened to a connection.
func (c *epollClient) turn(fd int, events uint32, buffer []byte) {
	conn := &c.conns[fd]
	if !conn.open {
		return
	}
	if events&(unix.EPOLLERR|unix.EPOLLHUP) != 0 && events&unix.EPOLLIN == 0 {
		c.end(fd, false)
		return
	}
	if events&unix.EPOLLIN == 0 { // it is open: only now is there room and nothing to read
		if events&unix.EPOLLOUT != 0 {
			c.ask(fd)
		}
		return
	}
	n, err := unix.Read(fd, buffer)
	if errors.Is(err, unix.EAGAIN) {
		return
	}
	if n == 0 && conn.answered {
		c.note(conn.began)
		c.end(fd, true)
		return
	}
	if err != nil || !bytes.Equal(buffer[:n], c.answer) {
		c.end(fd, false)
		return
	}
	if c.spec.Keep {
		c.note(conn.began)
		conn.began = time.Now()
		c.ask(fd)
		return
	}
	// The server closes: whoever closes first is left with TIME_WAIT.
	if events&unix.EPOLLRDHUP == 0 {
		conn.answered = true
		return
	}
	c.note(conn.began)
	c.end(fd, true)
}

// ask sends a request in one piece.
func (c *epollClient) ask(fd int) {
	if n, err := unix.Write(fd, c.request); err != nil || n != len(c.request) {
		c.end(fd, false)
	}
}

func (c *epollClient) note(began time.Time) {
	if c.counts {
		c.took = append(c.took, float64(time.Since(began))/float64(time.Microsecond))
	}
}

// end closes a connection, and begins another in its place.
func (c *epollClient) end(fd int, good bool) {
	c.conns[fd].open = false
	c.open--
	_ = unix.Close(fd)
	if !good {
		c.failed++
		return // a new one comes after this turn, so that a refusing server is not asked without pause
	}
	c.connect()
}

// ask runs such a client at a spot.
func (b *bench) ask(ctx context.Context, at spot, spec loadSpec) (*loadResult, error) {
	ctx, cancel := context.WithTimeout(ctx, spec.Warm+spec.For+30*time.Second)
	defer cancel()
	text, err := json.Marshal(spec)
	if err != nil {
		return nil, err
	}
	result := &loadResult{}
	return result, at.on(func() error {
		cmd := at.command(ctx, nil, b.self, loadCommand, string(text))
		var log bytes.Buffer
		cmd.Stderr = &log
		out, err := cmd.Output()
		if err != nil {
			return fmt.Errorf("client: %w\n%s", err, log.Bytes())
		}
		return json.Unmarshal(out, result)
	})
}
