package echo

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"unicode/utf8"
)

// What gRPC calls them (codes of google.golang.org/grpc/codes, statuses of grpc.health.v1).
const (
	grpcOK              = 0
	grpcInvalidArgument = 3
	grpcNotFound        = 5
	grpcUnimplemented   = 12
	grpcUnavailable     = 14

	serving        = 1
	notServing     = 2
	serviceUnknown = 3

	maxMessage = 4 << 10 // of a request, in bytes
)

// grpc serves grpc.health.v1.Health. gRPC is a POST with HTTP/2 whose body is messages, each after five bytes (compressed or not,
// length), and whose status comes in trailers; the two messages have one field each, so that no library is needed.
func (h *web) grpc(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/grpc")
	w.Header().Set("Trailer", "Grpc-Status, Grpc-Message")
	code, text := grpcUnimplemented, "unknown method "+r.URL.Path
	switch r.URL.Path {
	case "/grpc.health.v1.Health/Check":
		leave := h.state.enter()
		defer leave()
		code, text = h.healthCheck(w, r)
	case "/grpc.health.v1.Health/Watch":
		code, text = h.healthWatch(w, r)
	}
	w.Header().Set("Grpc-Status", strconv.Itoa(code))
	w.Header().Set("Grpc-Message", text)
}

func (h *web) healthCheck(w http.ResponseWriter, r *http.Request) (code int, text string) {
	service, err := readService(r.Body)
	if err != nil {
		return grpcInvalidArgument, err.Error()
	}
	if !sleep(r.Context(), h.state.view().Delay) {
		return grpcUnavailable, "the client has left"
	}
	status := h.serving(service, h.state.view())
	if status == serviceUnknown {
		return grpcNotFound, "unknown service"
	}
	writeStatus(w, status)
	return grpcOK, ""
}

// healthWatch sends the status now and after each change, until the client or the server ends it.
func (h *web) healthWatch(w http.ResponseWriter, r *http.Request) (code int, text string) {
	service, err := readService(r.Body)
	if err != nil {
		return grpcInvalidArgument, err.Error()
	}
	sent := -1
	for {
		v := h.state.view()
		if status := h.serving(service, v); status != sent {
			writeStatus(w, status)
			if err := http.NewResponseController(w).Flush(); err != nil {
				return grpcUnavailable, "the client has left"
			}
			sent = status
		}
		select {
		case <-v.changed:
		case <-r.Context().Done():
			return grpcUnavailable, "the server is going away"
		}
	}
}

// serving is the status of a service.
func (h *web) serving(service string, v view) int {
	up := false
	switch service {
	case "", "readiness":
		up = v.Ready
	case "liveness":
		up = v.Healthy
	default:
		return serviceUnknown
	}
	if up {
		return serving
	}
	return notServing
}

// writeStatus writes a HealthCheckResponse: field 1 is the status.
func writeStatus(w io.Writer, status int) {
	_, _ = w.Write([]byte{0, 0, 0, 0, 2, 1 << 3, byte(status)}) // a client that left is noticed elsewhere
}

// readService reads one message, a HealthCheckRequest: field 1 is the service's name.
func readService(body io.Reader) (string, error) {
	var prefix [5]byte
	if _, err := io.ReadFull(body, prefix[:]); err != nil {
		return "", fmt.Errorf("no message: %w", err)
	}
	n := binary.BigEndian.Uint32(prefix[1:])
	if prefix[0] != 0 {
		return "", errors.New("the message is compressed; send it plain")
	}
	if n > maxMessage {
		return "", fmt.Errorf("a message of %d bytes; at most %d are read", n, maxMessage)
	}
	message := make([]byte, n)
	if _, err := io.ReadFull(body, message); err != nil {
		return "", fmt.Errorf("half a message: %w", err)
	}
	return parseService(message)
}

// parseService reads protobuf: each field is a varint (number·8 + wire type), then, by type, a varint, eight bytes, a varint and that
// many bytes, or four bytes.
func parseService(message []byte) (service string, err error) {
	bad := errors.New("the message is not protobuf")
	for len(message) > 0 {
		tag, n := binary.Uvarint(message)
		if n <= 0 || tag>>3 == 0 {
			return "", bad
		}
		message = message[n:]
		size := uint64(0)
		switch tag & 7 {
		case 0:
			_, n = binary.Uvarint(message)
			size = uint64(max(n, 0))
		case 1:
			size, n = 8, 1
		case 2:
			size, n = binary.Uvarint(message)
			message = message[max(n, 0):]
		case 5:
			size, n = 4, 1
		default:
			return "", bad
		}
		if n <= 0 || size > uint64(len(message)) {
			return "", bad
		}
		if tag == 1<<3|2 {
			service = string(message[:size])
		}
		message = message[size:]
	}
	if !utf8.ValidString(service) {
		return "", bad
	}
	return service, nil
}
