package stream

import (
	"context"
	"errors"
	"math"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/endpointd/endpointd/internal/node/logs"
)

// logRequest is the query of /containerLogs, a v1.PodLogOptions.
type logRequest struct {
	logs.Options
	previous bool
}

func parseLogRequest(query url.Values, now time.Time) (logRequest, error) {
	q := queryReader{values: query}
	o := logRequest{previous: q.flag("previous"), Options: logs.Options{
		Follow:     q.flag("follow"),
		Timestamps: q.flag("timestamps"),
		Tail:       q.number("tailLines", 0),
		LimitBytes: q.number("limitBytes", 1),
	}}
	if tail := query.Get("tail"); tail != "" && tail != "all" { // what kubectl of the first days sent
		o.Tail = q.number("tail", 0)
	}
	sinceSeconds := q.number("sinceSeconds", 1)
	sinceTime := query.Get("sinceTime")
	switch {
	case sinceSeconds != nil && sinceTime != "":
		q.err = errors.Join(q.err, refuse(http.StatusUnprocessableEntity, "at most one of sinceTime and sinceSeconds may be given"))
	case sinceSeconds != nil:
		// More than a duration can hold is from the beginning.
		o.Since = now.Add(-time.Duration(min(*sinceSeconds, math.MaxInt64/int64(time.Second))) * time.Second)
	case sinceTime != "":
		since, err := time.Parse(time.RFC3339, sinceTime)
		if err != nil {
			q.fail("sinceTime", "is no RFC 3339 time")
		}
		o.Since = since
	}
	switch stream := query.Get("stream"); stream {
	case "", corev1.LogStreamAll:
	case corev1.LogStreamStdout:
		o.Stream = logs.Stdout
	case corev1.LogStreamStderr:
		o.Stream = logs.Stderr
	default:
		q.fail("stream", "must be All, Stdout or Stderr")
	}
	return o, q.err
}

// queryReader reads parameters and keeps the first error.
type queryReader struct {
	values url.Values
	err    error
}

func (q *queryReader) fail(name, why string) {
	if q.err == nil {
		q.err = refuse(http.StatusUnprocessableEntity, "query parameter %s=%s %s", name, short(q.values.Get(name)), why)
	}
}

// flag is true as apimachinery's conversion of parameters has it: present, and neither false nor 0.
func (q *queryReader) flag(name string) bool {
	if !q.values.Has(name) {
		return false
	}
	value := strings.ToLower(q.values.Get(name))
	return value != "false" && value != "0"
}

func (q *queryReader) number(name string, least int64) *int64 {
	text := q.values.Get(name)
	if text == "" {
		return nil
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < least {
		q.fail(name, "must be a number of at least "+strconv.FormatInt(least, 10))
		return nil
	}
	return &n
}

// containerLogs writes a container's log.
func (s *Server) containerLogs(w http.ResponseWriter, r *http.Request) {
	o, err := parseLogRequest(r.URL.Query(), time.Now())
	if err != nil {
		s.fail(w, r, err)
		return
	}
	pod, err := s.pod(r)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	name := r.PathValue("container")
	id, err := logSource(pod, name, o.previous)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	attempt, err := attemptOf(id)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	release, ok := s.acquire()
	if !ok {
		s.tooMany(w)
		return
	}
	defer release()
	o.Running = func() bool { return s.runs(pod, name, id) }
	out := &flushed{w: w, control: http.NewResponseController(w)}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	if o.Follow {
		_, _ = out.Write(nil) // the client is to know that it is connected, also while nothing is written
	}
	path := s.o.Runtime.LogFile(string(pod.UID), name, attempt)
	err = logs.Read(r.Context(), path, o.Options, out)
	if err == nil || errors.Is(err, context.Canceled) || out.failed {
		return
	}
	if !out.begun {
		s.fail(w, r, err)
		return
	}
	s.o.Logger.WarnContext(r.Context(), "a log broke off", "pod", pod.Namespace+"/"+pod.Name, "container", name, "err", err)
	panic(http.ErrAbortHandler) // the client is not to take this for the end
}

// logSource is the ID of the container whose log is meant, by the kubelet's rules and with its words.
func logSource(pod *corev1.Pod, name string, previous bool) (id string, err error) {
	if !specified(pod, name) {
		return "", refuse(http.StatusNotFound, "container %q not found in pod %q", name, pod.Name)
	}
	if err := notExternal(pod, name); err != nil {
		return "", err
	}
	status, ok := statusOf(pod, name)
	if !ok {
		return "", refuse(http.StatusBadRequest, "container %q in pod %q is not available", name, pod.Name)
	}
	var last string
	if status.LastTerminationState.Terminated != nil {
		last = status.LastTerminationState.Terminated.ContainerID
	}
	switch {
	case previous:
		if last == "" {
			return "", refuse(http.StatusBadRequest, "previous terminated container %q in pod %q not found", name, pod.Name)
		}
		return last, nil
	case status.State.Running != nil:
		return status.ContainerID, nil
	case status.State.Terminated != nil && status.State.Terminated.ContainerID != "":
		return status.State.Terminated.ContainerID, nil
	case last != "": // the next attempt has not begun
		return last, nil
	case status.State.Terminated != nil, status.LastTerminationState.Terminated != nil:
		return "", refuse(http.StatusBadRequest, "container %q in pod %q is terminated", name, pod.Name)
	default:
		return "", waitingToStart(pod, status)
	}
}

// runs says whether the container with this ID is running in this pod.
func (s *Server) runs(was *corev1.Pod, name, id string) bool {
	pod, ok := s.o.Pods.Lookup(was.Namespace, was.Name)
	if !ok || pod.UID != was.UID {
		return false
	}
	status, ok := statusOf(pod, name)
	return ok && status.State.Running != nil && status.ContainerID == id
}

// flushed sends at once what is written to it.
type flushed struct {
	w       http.ResponseWriter
	control *http.ResponseController
	begun   bool // the status was sent
	failed  bool // the client is gone
}

func (f *flushed) Write(p []byte) (int, error) {
	f.begun = true
	n, err := f.w.Write(p)
	if err == nil {
		err = f.control.Flush()
	}
	f.failed = err != nil
	return n, err
}
