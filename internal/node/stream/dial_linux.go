package stream

import (
	"context"
	"fmt"
	"net"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

const dialTimeout = 10 * time.Second

// DialIn connects by TCP to an address, a literal IP and a port, as seen in the network namespace at a path, or in the
// agent's with "". It needs CAP_SYS_ADMIN over that namespace.
func DialIn(ctx context.Context, netns, address string) (net.Conn, error) {
	dialer := &net.Dialer{Timeout: dialTimeout}
	if netns == "" {
		return dialer.DialContext(ctx, "tcp", address)
	}
	type result struct {
		conn net.Conn
		err  error
	}
	done := make(chan result, 1)
	onSpareThread(func() {
		if err := enter(netns); err != nil {
			done <- result{err: err}
			return
		}
		// With a literal address the socket is made by this goroutine, so on this thread; it stays in the namespace.
		conn, err := dialer.DialContext(ctx, "tcp", address)
		done <- result{conn, err}
	})
	r := <-done
	return r.conn, r.err
}

// onSpareThread has do run on a thread that ends with it. That is never the process's first thread: it would not
// end, and the process's own namespaces in /proc would be that thread's.
func onSpareThread(do func()) {
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() != unix.Getpid() {
			do()
			return // still locked: the runtime ends the thread
		}
		defer runtime.UnlockOSThread()
		next := make(chan struct{})
		onSpareThread(func() {
			defer close(next)
			do()
		})
		<-next // this thread is taken meanwhile, so the other goroutine gets another
	}()
}

func enter(netns string) error {
	fd, err := unix.Open(netns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("network namespace %s: %w", netns, err)
	}
	defer func() { _ = unix.Close(fd) }() // only entered
	if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter network namespace %s: %w", netns, err)
	}
	return nil
}
