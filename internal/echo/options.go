package echo

import (
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"time"
)

// options are the flags.
type options struct {
	http, tcp, udp list
	udpGiven       bool

	ready, healthy     bool
	delay              time.Duration
	status             int
	startDelay         time.Duration
	failAfter, failFor time.Duration
	exitAfter          time.Duration
	exitCode           int
	drain              time.Duration
	connections        int
	log                bool

	who identity
}

// list is a flag that may be given several times, or with commas; the first time replaces the default. "none" is the empty list.
type list struct {
	values []string
	given  bool
}

func (l *list) String() string { return strings.Join(l.values, ",") }

func (l *list) Set(s string) error {
	if !l.given {
		l.given, l.values = true, nil
	}
	for v := range strings.SplitSeq(s, ",") {
		if v == "" || v == "none" {
			continue
		}
		if _, _, err := net.SplitHostPort(v); err != nil {
			return fmt.Errorf("%q is no address; write :8080 or 127.0.0.1:8080", v)
		}
		l.values = append(l.values, v)
	}
	return nil
}

const usage = `endpointd-echo: a server that names its pod.

usage: endpointd-echo [flags]

HTTP/1.1, HTTP/2 without TLS and gRPC health (grpc.health.v1) on PORT (8080); TCP lines and UDP datagrams on
TCP_PORT (PORT + 1) are answered by "<pod> <what was sent>".

  /                 the pod's name, then what is known of it and of the request; JSON if Accept asks for it
  /healthz /readyz  200 or 503
  /control?ready=false&healthy=true&delay=200ms&status=500   what is not named stays
  /fail?for=10s     neither healthy nor ready for a time, or until /control
  /slow?d=1s        this answer comes later
  /exit?code=3      the process ends
  /drain            not ready any more; answers when no other request is open

Each flag may be given as an environment variable too: --fail-after is ECHO_FAIL_AFTER.

`

// parse reads flags and environment. It returns flag.ErrHelp when help was asked for.
func parse(args, env []string, out io.Writer) (*options, error) {
	vars := map[string]string{}
	for _, e := range env {
		if name, value, ok := strings.Cut(e, "="); ok {
			vars[name] = value
		}
	}
	port, err := portOf(vars, "PORT", 8080)
	if err != nil {
		return nil, err
	}
	tcpPort, err := portOf(vars, "TCP_PORT", port%65535+1)
	if err != nil {
		return nil, err
	}
	o := &options{who: identify(vars)}
	o.http.values = []string{":" + strconv.Itoa(port)}
	o.tcp.values = []string{":" + strconv.Itoa(tcpPort)}
	fs := o.flags(out)
	var bad error
	fs.VisitAll(func(f *flag.Flag) {
		name := "ECHO_" + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
		if value, ok := vars[name]; ok && bad == nil {
			if err := fs.Set(f.Name, value); err != nil {
				bad = fmt.Errorf("%s=%s: %w", name, value, err)
			}
		}
	})
	if bad != nil {
		return nil, bad
	}
	// What the environment gave is a default, which a flag replaces.
	o.udpGiven = o.udp.given
	o.http.given, o.tcp.given, o.udp.given = false, false, false
	if err := fs.Parse(args); err != nil {
		return nil, err
	}
	if fs.NArg() > 0 {
		return nil, fmt.Errorf("unexpected argument %q; see --help", fs.Arg(0))
	}
	if !o.udpGiven && !o.udp.given {
		o.udp.values = o.tcp.values
	}
	return o, o.check()
}

func (o *options) check() error {
	switch {
	case o.status < 200 || o.status > 599:
		return fmt.Errorf("--status=%d: give an HTTP status from 200 to 599", o.status)
	case o.exitCode < 0 || o.exitCode > 255:
		return fmt.Errorf("--exit-code=%d: give 0 to 255", o.exitCode)
	case o.connections < 1:
		return fmt.Errorf("--max-connections=%d: give 1 or more", o.connections)
	case len(o.http.values)+len(o.tcp.values)+len(o.udp.values) == 0:
		return fmt.Errorf("nothing to listen on: give --http, --tcp or --udp an address")
	}
	return nil
}

// flags declares them.
func (o *options) flags(out io.Writer) *flag.FlagSet {
	fs := flag.NewFlagSet("endpointd-echo", flag.ContinueOnError)
	fs.SetOutput(out)
	fs.Usage = func() {
		fmt.Fprint(out, usage)
		fs.PrintDefaults()
	}
	fs.Var(&o.http, "http", "`address` for HTTP and gRPC; several with commas or by repeating the flag; none")
	fs.Var(&o.tcp, "tcp", "`address` for TCP lines, likewise")
	fs.Var(&o.udp, "udp", "`address` for UDP datagrams, likewise (default that of --tcp)")
	fs.BoolVar(&o.ready, "ready", true, "begin as ready")
	fs.BoolVar(&o.healthy, "healthy", true, "begin as healthy")
	fs.DurationVar(&o.delay, "delay", 0, "answer HTTP requests so much later")
	fs.IntVar(&o.status, "status", 200, "HTTP `code` of answers")
	fs.DurationVar(&o.startDelay, "start-delay", 0, "listen only after this time")
	fs.DurationVar(&o.failAfter, "fail-after", 0, "after this time be neither healthy nor ready (0 = never)")
	fs.DurationVar(&o.failFor, "fail-for", 0, "recover from --fail-after after this time (0 = never)")
	fs.DurationVar(&o.exitAfter, "exit-after", 0, "exit after this time with --exit-code (0 = never)")
	fs.IntVar(&o.exitCode, "exit-code", 1, "for --exit-after")
	fs.DurationVar(&o.drain, "drain", 20*time.Second, "how long open requests may take after SIGTERM")
	fs.IntVar(&o.connections, "max-connections", 1024, "open at once, for each address; more have to wait")
	fs.BoolVar(&o.log, "log", false, "print a line for each HTTP request")
	return fs
}

func portOf(vars map[string]string, name string, standard int) (int, error) {
	value := vars[name]
	if value == "" {
		return standard, nil
	}
	port, err := strconv.ParseUint(value, 10, 16)
	if err != nil || port == 0 {
		return 0, fmt.Errorf("%s=%s: give a port from 1 to 65535", name, value)
	}
	return int(port), nil
}

// identity is who answers.
type identity struct {
	Pod       string `json:"pod"`
	Namespace string `json:"namespace,omitempty"`
	Node      string `json:"node,omitempty"`
	IP        string `json:"ip,omitempty"`
}

func identify(vars map[string]string) identity {
	who := identity{Pod: vars["POD_NAME"], Namespace: vars["POD_NAMESPACE"], Node: vars["NODE_NAME"], IP: vars["POD_IP"]}
	if who.Pod == "" {
		who.Pod = vars["HOSTNAME"]
	}
	if who.Pod == "" {
		if name, err := os.Hostname(); err == nil {
			who.Pod = name
		}
	}
	return who
}
