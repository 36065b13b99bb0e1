package prober

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/encoding/protowire"
)

const (
	healthPath   = "/grpc.health.v1.Health/Check"
	maxMessage   = 4 << 10 // of a HealthCheckResponse, which has one enum, in bytes
	maxService   = 8 << 10 // of the service's name, so that one frame holds it, in bytes
	maxFrameSize = 16 << 10
	maxFrames    = 1000 // that a server may send before its answer
)

// GRPC succeeds if the server says SERVING for the service ("" = the server as a whole) in the gRPC health checking
// protocol, grpc.health.v1.Health/Check, without TLS.
func GRPC(addr netip.AddrPort, service string) Probe { return grpcCheck(addr.String(), service, false) }

// GRPCTLS is GRPC with TLS, certificates not verified (KEP-4939's mode: TLS).
func GRPCTLS(addr netip.AddrPort, service string) Probe {
	return grpcCheck(addr.String(), service, true)
}

// grpcCheck is one unary call on a connection of its own. It speaks HTTP/2 by itself: a grpc.ClientConn a probe, made to live for days
// and to mend itself, costs several goroutines and 2.6 times the CPU (BenchmarkThousandASecond).
func grpcCheck(addr, service string, secure bool) Probe {
	return func(ctx context.Context) error {
		c := check{addr: addr, service: service, within: "its time"}
		if deadline, ok := ctx.Deadline(); ok {
			c.within = time.Until(deadline).Round(time.Millisecond).String()
		}
		if len(service) > maxService {
			return &Failure{fmt.Sprintf("error: the service's name is longer than %d bytes", maxService)}
		}
		conn, err := dial(ctx, addr)
		if err != nil {
			return c.unconnected(ctx, err)
		}
		defer func() { _ = conn.Close() }()
		stop := bound(ctx, conn)
		defer stop()
		if secure {
			conn = tls.Client(conn, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{http2.NextProtoTLS}})
		}
		if err := c.send(conn); err != nil {
			return c.unconnected(ctx, err)
		}
		err = c.receive(conn)
		var status *rpcError
		switch {
		case !c.connected:
			return c.unconnected(ctx, err)
		case err == nil:
			return c.verdict()
		case timedOut(ctx):
			return &Failure{"timeout: health rpc did not complete within " + c.within}
		case errors.As(err, &status):
			return status.failure()
		}
		return (&rpcError{codes.Unavailable, fmt.Sprintf("error reading from server: %v", err)}).failure()
	}
}

// check is one call.
type check struct {
	addr, service string
	within        string // the time that there is, for people

	framer    *http2.Framer
	connected bool   // the server has spoken HTTP/2
	begun     bool   // the header of the answer is there
	message   []byte // with its prefix, as far as it has come
}

// rpcError is a gRPC status that is not OK.
type rpcError struct {
	code codes.Code
	desc string
}

func (e *rpcError) Error() string {
	return fmt.Sprintf("rpc error: code = %s desc = %s", e.code, e.desc)
}

func (e *rpcError) failure() *Failure {
	switch e.code {
	case codes.Unimplemented:
		return &Failure{"error: this server does not implement the grpc health protocol (grpc.health.v1.Health): " + e.desc}
	default:
		return &Failure{"error: health rpc probe failed: " + e.Error()}
	}
}

func (c *check) unconnected(ctx context.Context, err error) error {
	if timedOut(ctx) {
		return &Failure{fmt.Sprintf("timeout: failed to connect service %q within %s: %v", c.addr, c.within, ctx.Err())}
	}
	return &Failure{fmt.Sprintf("error: failed to connect service at %q: %v", c.addr, err)}
}

// send writes the preface, our settings and the whole request at once: RFC 9113 §3.4 lets a client not wait for the
// server's settings.
func (c *check) send(conn net.Conn) error {
	scheme := "http"
	if _, ok := conn.(*tls.Conn); ok {
		scheme = "https"
	}
	var block, out bytes.Buffer
	headers := hpack.NewEncoder(&block)
	for _, f := range [][2]string{
		{":method", http.MethodPost}, {":scheme", scheme}, {":path", healthPath}, {":authority", c.addr},
		{"content-type", "application/grpc"}, {"user-agent", userAgent}, {"te", "trailers"},
	} {
		if err := headers.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]}); err != nil {
			return err
		}
	}
	var request []byte
	if c.service != "" {
		request = protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), c.service)
	}
	message := binary.BigEndian.AppendUint32([]byte{0}, uint32(len(request)))

	out.WriteString(http2.ClientPreface)
	w := http2.NewFramer(&out, nil)
	if err := errors.Join(
		w.WriteSettings(http2.Setting{ID: http2.SettingEnablePush, Val: 0}),
		w.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndHeaders: true}),
		w.WriteData(1, true, append(message, request...)),
	); err != nil {
		return err
	}
	_, err := conn.Write(out.Bytes())
	return err
}

// receive reads until the server has ended the call; nil = with status OK.
func (c *check) receive(conn net.Conn) error {
	c.framer = http2.NewFramer(conn, bufio.NewReaderSize(conn, 1024))
	c.framer.SetMaxReadFrameSize(maxFrameSize)
	c.framer.MaxHeaderListSize = maxFrameSize
	c.framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	for range maxFrames {
		frame, err := c.framer.ReadFrame()
		if err != nil {
			return err
		}
		if _, first := frame.(*http2.SettingsFrame); !first && !c.connected {
			return errors.New("connection error: the server does not speak HTTP/2: its first frame is " + frame.Header().Type.String())
		}
		done, err := c.take(frame)
		if done || err != nil {
			return err
		}
	}
	return fmt.Errorf("no answer in %d frames", maxFrames)
}

// take handles a frame and says whether it was the call's last.
func (c *check) take(frame http2.Frame) (done bool, err error) {
	switch f := frame.(type) {
	case *http2.SettingsFrame:
		c.connected = true
		if !f.IsAck() {
			return false, c.framer.WriteSettingsAck()
		}
	case *http2.PingFrame:
		if !f.IsAck() {
			return false, c.framer.WritePing(true, f.Data)
		}
	case *http2.MetaHeadersFrame:
		return c.headers(f)
	case *http2.DataFrame:
		if c.message = append(c.message, f.Data()...); len(c.message) > maxMessage {
			return false, &rpcError{codes.ResourceExhausted, fmt.Sprintf("received message larger than max (%d)", maxMessage)}
		}
		if f.StreamEnded() {
			return false, &rpcError{codes.Internal, "server closed the stream without sending trailers"}
		}
	case *http2.RSTStreamFrame:
		code := codes.Internal
		if f.ErrCode == http2.ErrCodeRefusedStream {
			code = codes.Unavailable
		}
		return false, &rpcError{code, "stream terminated by RST_STREAM with error code: " + f.ErrCode.String()}
	case *http2.GoAwayFrame:
		if f.LastStreamID < 1 {
			return false, &rpcError{codes.Unavailable, "the server is closing the connection: " + f.ErrCode.String()}
		}
	}
	return false, nil
}

// headers reads the answer's header, or its trailers.
func (c *check) headers(f *http2.MetaHeadersFrame) (done bool, err error) {
	if !c.begun {
		c.begun = true
		code, err := strconv.Atoi(f.PseudoValue("status"))
		if err != nil {
			return false, &rpcError{codes.Internal, "malformed header: no HTTP status"}
		}
		if code >= 100 && code < 200 {
			c.begun = false
			return false, nil
		}
		if code != http.StatusOK {
			return false, &rpcError{ofHTTP(code), fmt.Sprintf("unexpected HTTP status code received from server: %d (%s)",
				code, http.StatusText(code))}
		}
	}
	if !f.StreamEnded() {
		return false, nil
	}
	status, desc := "", ""
	for _, h := range f.RegularFields() {
		switch h.Name {
		case "grpc-status":
			status = h.Value
		case "grpc-message":
			desc = h.Value
			if plain, err := url.PathUnescape(desc); err == nil {
				desc = plain
			}
		}
	}
	code, err := strconv.ParseUint(status, 10, 32)
	if err != nil {
		return false, &rpcError{codes.Unknown, fmt.Sprintf("malformed grpc-status %q", status)}
	}
	if code != 0 {
		return false, &rpcError{codes.Code(code), desc}
	}
	return true, nil
}

// ofHTTP is the gRPC project's mapping of HTTP statuses (doc/http-grpc-status-mapping.md).
func ofHTTP(code int) codes.Code {
	switch code {
	case http.StatusBadRequest:
		return codes.Internal
	case http.StatusUnauthorized:
		return codes.Unauthenticated
	case http.StatusForbidden:
		return codes.PermissionDenied
	case http.StatusNotFound:
		return codes.Unimplemented
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return codes.Unavailable
	}
	return codes.Unknown
}

// verdict reads the HealthCheckResponse.
func (c *check) verdict() error {
	status, err := servingStatus(c.message)
	if err != nil {
		return (&rpcError{codes.Internal, err.Error()}).failure()
	}
	names := [...]string{"UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"}
	if status == 1 {
		return nil
	}
	name := strconv.FormatUint(status, 10)
	if status < uint64(len(names)) {
		name = names[status]
	}
	return &Failure{fmt.Sprintf("service unhealthy (responded with %q)", name)}
}

// servingStatus is field 1 of the message.
func servingStatus(message []byte) (uint64, error) {
	const prefix = 5 // compressed or not, length
	if len(message) < prefix || message[0] != 0 || int(binary.BigEndian.Uint32(message[1:])) != len(message)-prefix {
		return 0, fmt.Errorf("the answer is not one uncompressed message: %w", io.ErrUnexpectedEOF)
	}
	var status uint64
	for rest := message[prefix:]; len(rest) > 0; {
		number, kind, n := protowire.ConsumeTag(rest)
		if n < 0 {
			return 0, protowire.ParseError(n)
		}
		rest = rest[n:]
		if number == 1 && kind == protowire.VarintType {
			status, n = protowire.ConsumeVarint(rest)
		} else {
			n = protowire.ConsumeFieldValue(number, kind, rest)
		}
		if n < 0 {
			return 0, protowire.ParseError(n)
		}
		rest = rest[n:]
	}
	return status, nil
}
