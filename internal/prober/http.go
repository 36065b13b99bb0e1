package prober

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
)

// HTTPOptions say what an HTTP probe gets.
type HTTPOptions struct {
	Scheme string // "http" or "https", in any case; "" = http. Certificates are not verified.
	Host   string // address or name, without brackets
	Port   uint16
	Path   string // may have a query; "" = /
	Header http.Header
	H2C    bool // HTTP/2 without TLS (KEP-5829's Protocol: HTTP2); otherwise HTTP/1.1, and what TLS negotiates
}

// HTTP succeeds if a GET answers 200 to 399. Redirects to the same host are followed, at most 10; one to another host is
// success with a [*Warning]. Proxies are not used, connections not kept.
//
// User-Agent and Accept may be overridden in Header, Accept and User-Agent with "" also removed; Host in it is the Host
// that is asked for.
func HTTP(o HTTPOptions) (Probe, error) {
	target := o.url()
	req, err := http.NewRequest(http.MethodGet, target, nil)
	if err != nil {
		return nil, fmt.Errorf("probe of %s: %w; write a path such as /healthz", target, err)
	}
	req.Header = o.Header.Clone()
	if req.Header == nil {
		req.Header = http.Header{}
	}
	if _, ok := req.Header["User-Agent"]; !ok {
		req.Header.Set("User-Agent", userAgent)
	}
	if _, ok := req.Header["Accept"]; !ok {
		req.Header.Set("Accept", "*/*")
	} else if req.Header.Get("Accept") == "" {
		req.Header.Del("Accept")
	}
	req.Host = req.Header.Get("Host")
	req.Close = true

	client := &http.Client{Transport: newTransport(o.H2C), CheckRedirect: sameHost}
	return func(ctx context.Context) error { return get(client, req.WithContext(ctx)) }, nil
}

// url is as the kubelet forms it, odd paths included.
func (o HTTPOptions) url() string {
	u, err := url.Parse(o.Path)
	if err != nil {
		u = &url.URL{Path: o.Path}
	}
	u.Scheme = strings.ToLower(o.Scheme)
	if u.Scheme == "" {
		u.Scheme = "http"
	}
	u.Host = net.JoinHostPort(o.Host, strconv.Itoa(int(o.Port)))
	return u.String()
}

// sameHost ends redirects at another host, whatever the port, and after the tenth.
func sameHost(req *http.Request, via []*http.Request) error {
	if req.URL.Hostname() != via[0].URL.Hostname() {
		return http.ErrUseLastResponse
	}
	if len(via) >= 10 {
		return errors.New("stopped after 10 redirects")
	}
	return nil
}

// get makes the request and judges the answer. The messages are those that people know from the kubelet, whose
// http.Client has a timeout of its own where we have ctx.
func get(client *http.Client, req *http.Request) error {
	resp, err := client.Do(req)
	if err != nil {
		message := err.Error()
		if timedOut(req.Context()) {
			message += " (Client.Timeout exceeded while awaiting headers)"
		}
		return &Failure{message}
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxOutput))
	if err != nil {
		if timedOut(req.Context()) {
			err = errors.New("context deadline exceeded (Client.Timeout or context cancellation while reading body)")
		}
		return &Failure{fmt.Sprintf("Get %q: %v", req.URL, err)}
	}
	switch code := resp.StatusCode; {
	case code < http.StatusOK || code >= http.StatusBadRequest:
		// The body stays out of it: events are read by more people than the container's answers (kubernetes #99425).
		return &Failure{fmt.Sprintf("HTTP probe failed with statuscode: %d", code)}
	case code >= http.StatusMultipleChoices:
		return &Warning{"Probe terminated redirects, Response body: " + string(body)}
	}
	return nil
}
