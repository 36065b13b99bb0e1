package sandbox

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// ErrNotRunning is the error where no sandbox runs in a data folder.
var ErrNotRunning = errors.New("no sandbox runs here")

// Client talks to a running sandbox. It is good for one request.
type Client struct {
	conn *net.UnixConn
}

// Dial connects to the sandbox of a data folder.
func Dial(dataDir string) (*Client, error) {
	name := filepath.Join(runDir(dataDir), controlName)
	conn, err := dialControl(runDir(dataDir))
	switch {
	case err == nil:
		return &Client{conn: conn}, nil
	case errors.Is(err, os.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return nil, fmt.Errorf("data folder %s: %w: start one with `endpointd up`, or name its folder with --data-dir", dataDir, ErrNotRunning)
	}
	return nil, fmt.Errorf("control socket %s: %w", name, err)
}

// A path may be longer than the address of a socket.
func dialControl(dir string) (*net.UnixConn, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close() //nolint:errcheck // read only
	return net.DialUnix("unixpacket", nil, &net.UnixAddr{Net: "unixpacket", Name: fmt.Sprintf("/proc/self/fd/%d/%s", d.Fd(), controlName)})
}

// Close ends what the request started.
func (c *Client) Close() error { return c.conn.Close() }

// ask sends the request and returns the answer.
func (c *Client) ask(q request, files ...*os.File) (answer, error) {
	var a answer
	if err := send(c.conn, q, files...); err != nil {
		return a, err
	}
	received, err := newReceiver(c.conn).next(&a)
	closeFiles(received)
	if err != nil {
		return a, fmt.Errorf("ask the sandbox: %w: it may have been ended", err)
	}
	return a, nil
}

// Status asks how things are. PIDs are those that this process sees.
func (c *Client) Status() (Status, error) {
	a, err := c.ask(request{Status: true})
	if err == nil && a.Status == nil {
		err = errors.New(a.Error)
	}
	if err != nil {
		return Status{}, err
	}
	pids := c.outsidePIDs()
	for i, p := range a.Status.Parts {
		a.Status.Parts[i].PID = pids[p.PID]
	}
	return *a.Status, nil
}

// outsidePIDs returns pid inside → pid here, of the parts: the children of PID 1 inside.
func (c *Client) outsidePIDs() map[int]int {
	pids := map[int]int{}
	inside := strconv.Itoa(c.peer())
	files, _ := filepath.Glob("/proc/[0-9]*/status") // the pattern is right
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // it has ended
		}
		fields := map[string][]string{}
		for line := range strings.Lines(string(text)) {
			name, value, _ := strings.Cut(line, ":")
			fields[name] = strings.Fields(value)
		}
		ids := fields["NSpid"]
		if parent := fields["PPid"]; len(parent) != 1 || parent[0] != inside || len(ids) < 2 {
			continue
		}
		here, err1 := strconv.Atoi(ids[0])
		there, err2 := strconv.Atoi(ids[len(ids)-1])
		if err1 == nil && err2 == nil {
			pids[there] = here
		}
	}
	return pids
}

// Exec runs the command with three streams of this process, passes signals on, and returns its exit code. A command that
// could not be started has an error and the exit code that a shell would give.
func (c *Client) Exec(ctx context.Context, command Command, streams [3]*os.File) (code int, err error) {
	files := streams[:]
	if terminal, err := openTerminal(streams); err != nil {
		return 1, err
	} else if terminal != nil {
		defer terminal.close()
		command.Terminal, files = true, terminal.streams
	}
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2)
	defer signal.Stop(signals)
	type result struct {
		answer answer
		err    error
	}
	done := make(chan result, 1)
	go func() {
		a, err := c.ask(request{Exec: &command}, files...)
		done <- result{a, err}
	}()
	for {
		select {
		case s := <-signals:
			_ = send(c.conn, request{Signal: s.(syscall.Signal)}) // it may have ended
		case <-ctx.Done():
			_ = c.conn.Close()
			<-done
			return 1, ctx.Err()
		case r := <-done:
			if r.err == nil && r.answer.Error != "" {
				r.err = errors.New(r.answer.Error)
			}
			if r.answer.Exit == nil {
				return 1, r.err
			}
			return *r.answer.Exit, r.err
		}
	}
}
