package echo

import (
	"fmt"
	"net/http"
	"strconv"
	"time"
)

// control sets what the query or the form names. It is all or nothing.
func (h *web) control(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, maxHeader)
	if err := r.ParseForm(); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	var set []func(*state)
	for name, values := range r.Form {
		f, err := setting(name, values[len(values)-1])
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		set = append(set, f)
	}
	h.state.change(func(s *state) {
		for _, f := range set {
			f(s)
		}
	})
	if r.Form.Has("ready") {
		h.server.SetKeepAlivesEnabled(true) // a drain is over
	}
	h.tell(w)
}

// setting is one word of /control.
func setting(name, value string) (func(*state), error) {
	switch name {
	case "ready":
		on, err := strconv.ParseBool(value)
		return func(s *state) { s.calm(); s.ready, s.draining = on, false }, explain(name, value, "true or false", err)
	case "healthy":
		on, err := strconv.ParseBool(value)
		return func(s *state) { s.calm(); s.healthy = on }, explain(name, value, "true or false", err)
	case "delay":
		d, err := time.ParseDuration(value)
		if err == nil && d < 0 {
			err = strconv.ErrRange
		}
		return func(s *state) { s.delay = d }, explain(name, value, "a time such as 200ms", err)
	case "status":
		code, err := strconv.Atoi(value)
		if err == nil && (code < 200 || code > 599) {
			err = strconv.ErrRange
		}
		return func(s *state) { s.status = code }, explain(name, value, "200 to 599", err)
	}
	return nil, fmt.Errorf("unknown %q; use ready, healthy, delay, status", name)
}

func explain(name, value, want string, err error) error {
	if err != nil {
		return fmt.Errorf("%s=%q: give %s", name, value, want)
	}
	return nil
}

// tell answers an order with the state that it led to.
func (h *web) tell(w http.ResponseWriter) {
	v := h.state.view()
	fmt.Fprintf(w, "%s\nready: %t\nhealthy: %t\ndelay: %s\nstatus: %d\n", h.who.Pod, v.Ready, v.Healthy, v.Delay, v.Status)
}

// duration reads a time from the query; false = it was nonsense, and the client has been told.
func duration(w http.ResponseWriter, r *http.Request, name string, standard time.Duration) (time.Duration, bool) {
	value := r.URL.Query().Get(name)
	if value == "" {
		return standard, true
	}
	d, err := time.ParseDuration(value)
	if err != nil || d < 0 {
		http.Error(w, fmt.Sprintf("%s=%q: give a time such as 10s", name, value), http.StatusBadRequest)
		return 0, false
	}
	return d, true
}

func (h *web) fail(w http.ResponseWriter, r *http.Request) {
	d, ok := duration(w, r, "for", 0)
	if !ok {
		return
	}
	h.state.fail(d)
	h.tell(w)
}

func (h *web) end(w http.ResponseWriter, r *http.Request) {
	code := 0
	if value := r.URL.Query().Get("code"); value != "" {
		n, err := strconv.ParseUint(value, 10, 8)
		if err != nil {
			http.Error(w, fmt.Sprintf("code=%q: give 0 to 255", value), http.StatusBadRequest)
			return
		}
		code = int(n)
	}
	w.Header().Set("Connection", "close")
	fmt.Fprintf(w, "%s\nexit: %d\n", h.who.Pod, code)
	_ = http.NewResponseController(w).Flush() // we end whether it can or not
	select {
	case h.exit <- code:
	default: // somebody else was first
	}
}

func (h *web) drain(w http.ResponseWriter, r *http.Request) {
	h.state.change(func(s *state) { s.draining = true })
	h.server.SetKeepAlivesEnabled(false)
	if h.state.idle(r.Context(), 1) { // this one is open itself
		h.tell(w)
	}
}
