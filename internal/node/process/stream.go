package process

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"net"

	"github.com/endpointd/endpointd/internal/node/container"
	"github.com/endpointd/endpointd/internal/node/shim"
)

// Exec implements container.Runtime. A command that cannot be started is a *container.StartError, with its code.
func (r *Runtime) Exec(ctx context.Context, o container.ExecOptions, s container.Streams) (int, error) {
	p, err := r.lookup(o.Pod)
	if err != nil {
		return 0, wrap(err, "exec in", o.Pod, o.Container)
	}
	request := &shim.StreamRequest{
		Container: o.Container, Args: o.Args, TTY: o.TTY, Stdin: s.Stdin != nil, Output: s.Stdout != nil || s.Stderr != nil,
	}
	result, err := p.stream(ctx, shim.Request{Exec: request}, s)
	if err != nil {
		return 0, wrap(err, "exec in", o.Pod, o.Container)
	}
	if result.Failure != nil {
		c := container.Container{Name: o.Container}
		return result.Code, startError("RunContainerError", result.Code, c, result.Failure)
	}
	return result.Code, nil
}

// Attach implements container.Runtime.
func (r *Runtime) Attach(ctx context.Context, uid, name string, s container.Streams) error {
	p, err := r.lookup(uid)
	if err != nil {
		return wrap(err, "attach to", uid, name)
	}
	request := &shim.StreamRequest{Container: name, Stdin: s.Stdin != nil, Output: s.Stdout != nil || s.Stderr != nil}
	_, err = p.stream(ctx, shim.Request{Attach: request}, s)
	return wrap(err, "attach to", uid, name)
}

// stream connects s with the shim until it sends a Result. A reader that blocks, such as a terminal, is left behind: its goroutine ends
// with the next byte or the end of the reader, which its owner closes.
func (p *pod) stream(ctx context.Context, request shim.Request, s container.Streams) (shim.Result, error) {
	if !p.living() {
		return shim.Result{}, errDead
	}
	l, err := p.send(ctx, request)
	if err != nil {
		return shim.Result{}, err
	}
	defer l.Close() //nolint:errcheck // read to its end, or given up
	// A conversation with two parties who may each block is ended by closing the line between them.
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	var reply shim.Reply
	if err := l.read(&reply); err != nil {
		return shim.Result{}, errors.Join(ctx.Err(), err)
	}
	if reply.Error != "" {
		return shim.Result{}, errors.New(reply.Error)
	}
	out := shim.NewFramer(l, 0)
	if s.Stdin != nil {
		go sendInput(out, s.Stdin)
	}
	if s.Resize != nil {
		done := make(chan struct{})
		defer close(done)
		go sendSizes(out, s.Resize, done)
	}
	result, err := receiveOutput(l.in, s)
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	return result, err
}

func sendInput(out *shim.Framer, in io.Reader) {
	buffer := make([]byte, 16<<10)
	for {
		n, err := in.Read(buffer)
		if n > 0 && out.Write(shim.Stdin, buffer[:n]) != nil {
			return
		}
		if err != nil {
			_ = out.Write(shim.Stdin, nil) // the end of file; a line that is closed already needs none
			return
		}
	}
}

func sendSizes(out *shim.Framer, sizes <-chan container.Size, done <-chan struct{}) {
	for {
		select {
		case size, ok := <-sizes:
			var data [4]byte
			binary.BigEndian.PutUint16(data[:], size.Columns)
			binary.BigEndian.PutUint16(data[2:], size.Rows)
			if !ok || out.Write(shim.Resize, data[:]) != nil {
				return
			}
		case <-done:
			return
		}
	}
}

func receiveOutput(from io.Reader, s container.Streams) (shim.Result, error) {
	var buffer []byte
	for {
		kind, data, err := shim.ReadFrame(from, &buffer)
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, net.ErrClosed):
			return shim.Result{}, errors.New("the pod ended")
		case err != nil:
			return shim.Result{}, err
		}
		var to io.Writer
		switch kind {
		case shim.Stdout:
			to = s.Stdout
		case shim.Stderr:
			to = s.Stderr
		case shim.Exit:
			var result shim.Result
			err := json.Unmarshal(data, &result)
			return result, err
		case shim.Stdin, shim.Resize: // not for us
		}
		if to == nil {
			continue
		}
		if _, err := to.Write(data); err != nil {
			return shim.Result{}, err
		}
	}
}
