package stream

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream/wsstream"
	utilexec "k8s.io/utils/exec"
)

// serveV5 speaks v5.channel.k8s.io (KEP-4006), which the upstream library's server does not know: WebSocket messages of
// which the first byte is the stream, and 255 with a stream's number when the client has no more input.
func (s *Server) serveV5(w http.ResponseWriter, r *http.Request, verb string, a adapter) {
	channels := []wsstream.ChannelType{
		remotecommand.StreamStdIn:  when(a.o.Stdin, wsstream.ReadChannel),
		remotecommand.StreamStdOut: when(a.o.Stdout, wsstream.WriteChannel),
		remotecommand.StreamStdErr: when(a.o.Stderr, wsstream.WriteChannel),
		remotecommand.StreamErr:    wsstream.WriteChannel,
		remotecommand.StreamResize: wsstream.ReadChannel,
	}
	conn := wsstream.NewConn(map[string]wsstream.ChannelProtocolConfig{
		remotecommand.StreamProtocolV5Name: {Binary: true, Channels: channels},
	})
	conn.SetIdleTimeout(s.o.IdleTimeout)
	_, streams, err := conn.Open(w, r)
	if err != nil { // the client was told
		s.o.Logger.DebugContext(r.Context(), "a websocket could not be opened", "err", err)
		return
	}
	var resizer sync.WaitGroup
	defer resizer.Wait()
	defer func() { _ = conn.Close() }() // everything was said in the status
	first := remotecommand.StreamErr
	switch {
	case a.o.Stdout:
		first = remotecommand.StreamStdOut
	case a.o.Stderr:
		first = remotecommand.StreamStdErr
	}
	_, _ = streams[first].Write(nil) // as upstream: tells the client that it is connected
	resize := make(chan remotecommand.TerminalSize)
	resizer.Go(func() {
		defer close(resize)
		decoder := json.NewDecoder(streams[remotecommand.StreamResize])
		for {
			var size remotecommand.TerminalSize
			if decoder.Decode(&size) != nil {
				return
			}
			select {
			case resize <- size:
			case <-r.Context().Done():
				return
			}
		}
	})
	err = a.do(r.Context(), streams[remotecommand.StreamStdIn], streams[remotecommand.StreamStdOut], streams[remotecommand.StreamStdErr], resize)
	if err := writeStatus(streams[remotecommand.StreamErr], verb, err); err != nil {
		s.o.Logger.DebugContext(r.Context(), "a client left before the end of its command", "err", err)
	}
}

func when(wanted bool, kind wsstream.ChannelType) wsstream.ChannelType {
	if wanted {
		return kind
	}
	return wsstream.IgnoreChannel
}

// writeStatus tells the client how it ended, as version 4 of the protocol and later want it.
func writeStatus(w io.Writer, verb string, err error) error {
	status := metav1.Status{Status: metav1.StatusSuccess}
	var exit utilexec.CodeExitError
	switch {
	case errors.As(err, &exit):
		status = metav1.Status{
			Status: metav1.StatusFailure, Reason: remotecommand.NonZeroExitCodeReason,
			Message: fmt.Sprintf("command terminated with non-zero exit code: %v", exit),
			Details: &metav1.StatusDetails{Causes: []metav1.StatusCause{
				{Type: remotecommand.ExitCodeCauseType, Message: strconv.Itoa(exit.Code)},
			}},
		}
	case err != nil:
		what := "executing command in container"
		if verb == "attach" {
			what = "attaching to container"
		}
		status = metav1.Status{
			Status: metav1.StatusFailure, Reason: metav1.StatusReasonInternalError, Code: http.StatusInternalServerError,
			Message: fmt.Sprintf("Internal error occurred: error %s: %v", what, err),
		}
	}
	text, err := json.Marshal(status)
	if err != nil {
		return err
	}
	_, err = w.Write(text)
	return err
}
