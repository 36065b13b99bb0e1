package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"

	"golang.org/x/sys/unix"
)

// The ports of the server in its pod.
const (
	httpPort = 8080 // answers requests; the first letter of the path says whether it closes: /c, /k
	whoPort  = 8081 // says at which address it was reached, and waits for the client to close
)

// serveCommand is the hidden first argument that makes this program the server.
const serveCommand = "traffic-server"

// answers of the server, as short as HTTP lets them be.
const (
	answerClose = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"
	answerKeep  = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
)

// epollServer is one thread on epoll and nothing else: what is measured is the kernel's way to it, so it should cost
// as little as it can. It runs until it is killed.
type epollServer struct {
	poll      int
	listeners map[int32]bool // descriptor → it is whoPort's
	waiting   map[int32]bool // connections to whoPort
	buffer    [4096]byte
}

func serveMain() error {
	runtime.LockOSThread()
	debug.SetGCPercent(-1) // it allocates next to nothing
	if err := moreFiles(); err != nil {
		return err
	}
	s := &epollServer{listeners: map[int32]bool{}, waiting: map[int32]bool{}}
	var err error
	if s.poll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return fmt.Errorf("epoll: %w", err)
	}
	for port, who := range map[int]bool{httpPort: false, whoPort: true} {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("socket: %w", err)
		}
		if err := errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Port: port}), unix.Listen(fd, 4096), s.watch(fd)); err != nil {
			return fmt.Errorf("listen on port %d: %w", port, err)
		}
		s.listeners[int32(fd)] = who //nolint:gosec // a descriptor
	}
	fmt.Println("serving")
	return s.run()
}

func (s *epollServer) watch(fd int) error {
	return unix.EpollCtl(s.poll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLRDHUP, Fd: int32(fd)}) //nolint:gosec // a descriptor
}

func (s *epollServer) run() error {
	events := make([]unix.EpollEvent, 256)
	for {
		n, err := unix.EpollWait(s.poll, events, -1)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("epoll: %w", err)
		}
		for i := range max(n, 0) {
			fd := events[i].Fd
			if who, ok := s.listeners[fd]; ok {
				s.accept(int(fd), who)
			} else {
				s.answer(int(fd))
			}
		}
	}
}

func (s *epollServer) accept(listener int, who bool) {
	for range 64 {
		fd, _, err := unix.Accept4(listener, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		if err != nil {
			return // nobody left, or the connection is gone already
		}
		switch {
		case s.watch(fd) != nil:
			_ = unix.Close(fd)
		case who:
			s.waiting[int32(fd)] = true //nolint:gosec // a descriptor
			s.tell(fd)
		}
	}
}

// tell says at which address the client has reached us.
func (s *epollServer) tell(fd int) {
	name, err := unix.Getsockname(fd)
	if at, ok := name.(*unix.SockaddrInet4); err == nil && ok {
		_, _ = unix.Write(fd, at.Addr[:]) // a client that is gone does not care
	}
}

func (s *epollServer) answer(fd int) {
	n, err := unix.Read(fd, s.buffer[:])
	switch {
	case errors.Is(err, unix.EAGAIN):
		return
	case s.waiting[int32(fd)] || err != nil || n <= 0: //nolint:gosec // a descriptor
		delete(s.waiting, int32(fd)) //nolint:gosec // a descriptor
		_ = unix.Close(fd)
		return
	}
	request := s.buffer[:n]
	if !bytes.HasSuffix(request, []byte("\r\n\r\n")) {
		_ = unix.Close(fd) // our client sends a request in one piece
		return
	}
	if bytes.HasPrefix(request, []byte("GET /c")) {
		_, _ = unix.Write(fd, []byte(answerClose))
		_ = unix.Close(fd)
		return
	}
	_, _ = unix.Write(fd, []byte(answerKeep))
}

// moreFiles raises the limit of open files as far as we may.
func moreFiles() error {
	limit := unix.Rlimit{Cur: 200_000, Max: 200_000}
	if os.Geteuid() == 0 && unix.Setrlimit(unix.RLIMIT_NOFILE, &limit) == nil {
		return nil
	}
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return err
	}
	limit.Cur = limit.Max
	return unix.Setrlimit(unix.RLIMIT_NOFILE, &limit)
}
