package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/endpointd/endpointd/internal/node/container"
)

// postStart runs the hook of a container that has just started. Until it is over the container is not ready.
func (w *worker) postStart(c *corev1.Container, s *containerState) {
	if c.Lifecycle == nil || c.Lifecycle.PostStart == nil {
		return
	}
	s.hooking = true
	attempt := s.current.Attempt
	w.hook(c, c.Lifecycle.PostStart, 0, func(err error) {
		if s.current == nil || s.current.Attempt != attempt || !s.hooking {
			return // it has ended meanwhile
		}
		s.hooking = false
		if err != nil {
			w.event(corev1.EventTypeWarning, c.Name, "FailedPostStartHook", "PostStartHook failed: %v", err)
			w.stopContainer(c.Name, time.Now(), w.grace(), fmt.Sprintf("Container %s: its postStart hook failed, so it is ended", c.Name), false)
		}
	})
}

// preStop runs the hook of a container that is to be ended, within its grace period.
func (w *worker) preStop(c *corev1.Container, s *containerState) {
	stop := s.stop
	w.hook(c, c.Lifecycle.PreStop, time.Until(stop.deadline), func(err error) {
		stop.hook = false
		if err != nil && s.running() {
			w.event(corev1.EventTypeWarning, c.Name, "FailedPreStopHook", "PreStopHook failed: %v", err)
		}
	})
}

// hook runs h in a goroutine that the worker waits for, and calls done in the worker's own. A limit of zero is none.
func (w *worker) hook(c *corev1.Container, h *corev1.LifecycleHandler, limit time.Duration, done func(error)) {
	run := w.handler(c, h)
	w.work.Go(func() {
		ctx := w.hooks
		if limit > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, limit)
			defer cancel()
		}
		err := run(ctx)
		w.inbox.post(func() { done(err) })
	})
}

// handler is what a hook does. It takes what it needs of the worker now, because it runs outside of its goroutine.
func (w *worker) handler(c *corev1.Container, h *corev1.LifecycleHandler) func(context.Context) error {
	switch {
	case h.Exec != nil:
		return func(ctx context.Context) error {
			var out bytes.Buffer
			code, err := w.runtime.Exec(ctx, container.ExecOptions{Pod: string(w.uid), Container: c.Name, Args: h.Exec.Command},
				container.Streams{Stdout: &limited{&out}, Stderr: &limited{&out}})
			if err == nil && code != 0 {
				err = fmt.Errorf("command %q exited with %d: %s", h.Exec.Command, code, strings.TrimSpace(out.String()))
			}
			return err
		}
	case h.HTTPGet != nil:
		url, err := w.hookURL(c, h.HTTPGet)
		return func(ctx context.Context) error {
			if err != nil {
				return err
			}
			return getHook(ctx, url, h.HTTPGet.HTTPHeaders)
		}
	case h.Sleep != nil:
		return func(ctx context.Context) error {
			select {
			case <-ctx.Done():
			case <-time.After(time.Duration(h.Sleep.Seconds) * time.Second):
			}
			return nil
		}
	}
	return func(context.Context) error { return errors.New("the hook has no handler: give exec, httpGet or sleep") }
}

func (w *worker) hookURL(c *corev1.Container, get *corev1.HTTPGetAction) (string, error) {
	host := get.Host
	if host == "" && len(w.seen.ips) > 0 {
		host = w.seen.ips[0].String()
	}
	port := get.Port.IntValue()
	if port == 0 {
		for _, p := range c.Ports {
			if p.Name == get.Port.StrVal {
				port = int(p.ContainerPort)
			}
		}
	}
	if port < 1 || port > 65535 {
		return "", fmt.Errorf("httpGet port %q: no port of this name in container %s", get.Port.String(), c.Name)
	}
	scheme := "http"
	if get.Scheme != "" {
		scheme = strings.ToLower(string(get.Scheme))
	}
	return scheme + "://" + net.JoinHostPort(host, strconv.Itoa(port)) + "/" + strings.TrimPrefix(get.Path, "/"), nil
}

// hookTimeout bounds an HTTP hook, as in the kubelet.
const hookTimeout = 30 * time.Second

func getHook(ctx context.Context, url string, headers []corev1.HTTPHeader) error {
	ctx, cancel := context.WithTimeout(ctx, hookTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	for _, h := range headers {
		if strings.EqualFold(h.Name, "host") {
			req.Host = h.Value
		}
		req.Header.Add(h.Name, h.Value)
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: insecure()}}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close() //nolint:errcheck // the answer is its status
	if resp.StatusCode >= http.StatusBadRequest {
		return fmt.Errorf("GET %s: %s", url, resp.Status)
	}
	return nil
}

// limited keeps the beginning of what is written to it.
type limited struct{ buf *bytes.Buffer }

const maxHookOutput = 4096

func (l *limited) Write(p []byte) (int, error) {
	if room := maxHookOutput - l.buf.Len(); room > 0 {
		l.buf.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}
