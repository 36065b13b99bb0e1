package prober

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// ExecFunc executes a command in the container that is probed and returns its exit code and the beginning of what it wrote.
// err says that it could not be executed; it ends when ctx does.
type ExecFunc func(ctx context.Context, args []string) (code int, output string, err error)

// FromSpec makes the probe that p asks for. Ports by name are looked up in c; addr is the pod's address, for probes that
// name no host themselves; exec may be nil where commands cannot be executed.
func FromSpec(p *corev1.Probe, c *corev1.Container, addr string, exec ExecFunc) (Probe, error) {
	if n := handlers(p.ProbeHandler); n != 1 {
		return nil, fmt.Errorf("probe of container %s: %d handlers; give it exactly one of exec, httpGet, tcpSocket, grpc", c.Name, n)
	}
	switch {
	case p.HTTPGet != nil:
		return fromHTTP(p.HTTPGet, c, addr)
	case p.TCPSocket != nil:
		at, _, err := endpoint(p.TCPSocket.Port, p.TCPSocket.Host, c, addr)
		if err != nil {
			return nil, err
		}
		return tcp(at), nil
	case p.GRPC != nil:
		at, _, err := endpoint(intstr.FromInt32(p.GRPC.Port), "", c, addr)
		if err != nil {
			return nil, err
		}
		service := ""
		if p.GRPC.Service != nil {
			service = *p.GRPC.Service
		}
		return grpcCheck(at, service, p.GRPC.Mode != nil && *p.GRPC.Mode == corev1.GRPCProbeModeTLS), nil
	}
	if len(p.Exec.Command) == 0 {
		return nil, fmt.Errorf("exec probe of container %s: no command; give it one", c.Name)
	}
	if exec == nil {
		return nil, fmt.Errorf("exec probe of container %s: commands cannot be executed where it runs; use httpGet, tcpSocket or grpc", c.Name)
	}
	args := expand(p.Exec.Command, c.Env)
	return Exec(func(ctx context.Context) (int, string, error) { return exec(ctx, args) }), nil
}

func handlers(h corev1.ProbeHandler) int {
	n := 0
	for _, is := range []bool{h.Exec != nil, h.HTTPGet != nil, h.TCPSocket != nil, h.GRPC != nil} {
		if is {
			n++
		}
	}
	return n
}

func fromHTTP(get *corev1.HTTPGetAction, c *corev1.Container, addr string) (Probe, error) {
	_, port, err := endpoint(get.Port, get.Host, c, addr)
	if err != nil {
		return nil, err
	}
	scheme := get.Scheme
	switch scheme {
	case "":
		scheme = corev1.URISchemeHTTP
	case corev1.URISchemeHTTP, corev1.URISchemeHTTPS:
	default:
		return nil, fmt.Errorf("probe of container %s: unknown scheme %q; use HTTP or HTTPS", c.Name, scheme)
	}
	header := http.Header{}
	for _, h := range get.HTTPHeaders {
		header.Add(h.Name, h.Value)
	}
	host := get.Host
	if host == "" {
		host = addr
	}
	h2c := get.Protocol != nil && *get.Protocol == corev1.HTTPProtocolHTTP2 && scheme == corev1.URISchemeHTTP
	return HTTP(HTTPOptions{Scheme: string(scheme), Host: host, Port: port, Path: get.Path, Header: header, H2C: h2c})
}

// endpoint is where to connect to.
func endpoint(p intstr.IntOrString, host string, c *corev1.Container, addr string) (hostPort string, port uint16, err error) {
	if host == "" {
		host = addr
	}
	if host == "" {
		return "", 0, fmt.Errorf("probe of container %s: the pod has no address yet", c.Name)
	}
	port, err = resolve(p, c)
	if err != nil {
		return "", 0, fmt.Errorf("probe of container %s: %w", c.Name, err)
	}
	return net.JoinHostPort(host, strconv.Itoa(int(port))), port, nil
}

// resolve finds the number of a port that may be given by name.
func resolve(p intstr.IntOrString, c *corev1.Container) (uint16, error) {
	number := int(p.IntVal)
	if p.Type == intstr.String {
		i := slices.IndexFunc(c.Ports, func(port corev1.ContainerPort) bool { return port.Name == p.StrVal })
		if i < 0 {
			return 0, fmt.Errorf("port %q not found; give the number, or a port of the container this name", p.StrVal)
		}
		number = int(c.Ports[i].ContainerPort)
	}
	if number < 1 || number > 65535 {
		return 0, fmt.Errorf("invalid port number: %d; use 1 to 65535", number)
	}
	return uint16(number), nil
}

// expand replaces $(NAME) by the container's variable of that name if its value stands in the spec, as the kubelet does
// for the commands of probes and hooks. $$ is a dollar sign, and a name that is not known stays as it is.
func expand(command []string, env []corev1.EnvVar) []string {
	values := map[string]string{}
	for _, e := range env {
		if e.ValueFrom == nil {
			values[e.Name] = e.Value
		}
	}
	args := make([]string, len(command))
	for i, word := range command {
		args[i] = expandWord(word, values)
	}
	return args
}

func expandWord(word string, values map[string]string) string {
	var out strings.Builder
	for {
		before, after, found := strings.Cut(word, "$")
		out.WriteString(before)
		if !found {
			return out.String()
		}
		word = after
		switch {
		case strings.HasPrefix(word, "$"):
			word = word[1:]
		case strings.HasPrefix(word, "("):
			name, rest, closed := strings.Cut(word[1:], ")")
			if value, known := values[name]; closed && known {
				out.WriteString(value)
				word = rest
				continue
			} else if closed {
				out.WriteString("$(" + name + ")")
				word = rest
				continue
			}
		}
		out.WriteByte('$')
	}
}

// The first pause between quick probes: an exec probe costs a process.
const (
	quickConnect = 10 * time.Millisecond
	quickExec    = 200 * time.Millisecond
)

// NewSpec is the timing of p, with the API's defaults for what is not set. The caller adds the rest.
func NewSpec(p *corev1.Probe) Spec {
	or := func(value, standard int32) int {
		if value < 1 {
			return int(standard)
		}
		return int(value)
	}
	s := Spec{
		InitialDelay:     time.Duration(max(p.InitialDelaySeconds, 0)) * time.Second,
		Quick:            quickConnect,
		Period:           time.Duration(or(p.PeriodSeconds, 10)) * time.Second,
		Timeout:          time.Duration(or(p.TimeoutSeconds, 1)) * time.Second,
		SuccessThreshold: or(p.SuccessThreshold, 1),
		FailureThreshold: or(p.FailureThreshold, 3),
	}
	if p.Exec != nil {
		s.Quick = quickExec
	}
	return s
}

// GracePeriod is how many seconds a container whose liveness or startup probe p failed has to end: the probe's own number, else
// that of the pod (KEP-2238).
func GracePeriod(p *corev1.Probe, pod int64) int64 {
	if p.TerminationGracePeriodSeconds != nil {
		return *p.TerminationGracePeriodSeconds
	}
	return pod
}
