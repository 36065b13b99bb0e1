package ebpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Of sock_diag(7) and linux/inet_diag.h, linux/sock_diag.h.
const (
	sockDiagByFamily = 20
	sockDestroy      = 21

	requestStorages = 2  // INET_DIAG_REQ_SK_BPF_STORAGES
	replyStorages   = 20 // INET_DIAG_SK_BPF_STORAGES
	requestMapFD    = 1  // SK_DIAG_BPF_STORAGE_REQ_MAP_FD
	replyStorage    = 1  // SK_DIAG_BPF_STORAGE
	replyMapValue   = 3  // SK_DIAG_BPF_STORAGE_MAP_VALUE

	requestSize = 56 // struct inet_diag_req_v2
	messageSize = 72 // struct inet_diag_msg
	idOffset    = 8  // of the socket's ID in a request
	idInMessage = 4  // and in a message
	idSize      = 48 // struct inet_diag_sockid
	recordSize  = 56 // struct record of the programs
)

// States of a socket, as bits; UDP's connected sockets are established.
const (
	established = 1 << 1
	synSent     = 1 << stateSynSent
	finWait1    = 1 << 4
	finWait2    = 1 << 5

	stateSynSent = 2
)

// A socket that may have been translated.
type socket struct {
	family, protocol uint8
	state, retries   uint8 // bit number; how often the last packet was sent again
	id               [idSize]byte
	remote           programAddrPort
	pool             uint64 // that the endpoint was chosen from; 0 if it was not
}

// cookie is the kernel's number of a socket, which is never used again for another.
func (s *socket) cookie() uint64 {
	low, high := binary.NativeEndian.Uint32(s.id[40:]), binary.NativeEndian.Uint32(s.id[44:])
	return uint64(high)<<32 | uint64(low)
}

// diagnosis talks to sock_diag of one network namespace.
type diagnosis struct{ conn *netlink.Conn }

// diagnosisTimeout is for one answer of the kernel, which comes at once.
const diagnosisTimeout = 10 * time.Second

// diagnose opens the namespace that a file is of.
func diagnose(ns *os.File) (*diagnosis, error) {
	conn, err := netlink.Dial(unix.NETLINK_SOCK_DIAG, &netlink.Config{NetNS: int(ns.Fd())})
	if err != nil {
		return nil, fmt.Errorf("open sock_diag: %w", err)
	}
	return &diagnosis{conn: conn}, nil
}

func (d *diagnosis) close() { _ = d.conn.Close() }

// connected lists the connected sockets of a family and protocol. It tells the pools of those that have a record in a map, given by its file
// descriptor, of where they went. The kernel (as of 6.18) does so for TCP only.
func (d *diagnosis) connected(family, protocol uint8, records int) ([]socket, error) {
	request := make([]byte, requestSize)
	request[0], request[1] = family, protocol
	// Not those whose peer has closed: they have all that came to read, and would lose how it ended.
	binary.NativeEndian.PutUint32(request[4:], established|synSent|finWait1|finWait2)
	attributes := netlink.NewAttributeEncoder()
	attributes.Nested(requestStorages, func(nested *netlink.AttributeEncoder) error {
		nested.Uint32(requestMapFD, uint32(records))
		return nil
	})
	encoded, err := attributes.Encode()
	if err != nil {
		return nil, fmt.Errorf("list sockets: %w", err)
	}
	messages, err := d.execute(netlink.Message{
		Header: netlink.Header{Type: sockDiagByFamily, Flags: netlink.Request | netlink.Dump},
		Data:   append(request, encoded...),
	})
	if err != nil {
		return nil, fmt.Errorf("list sockets: %w", err)
	}
	found := make([]socket, 0, len(messages))
	for _, m := range messages {
		if s, ok := readSocket(m.Data); ok {
			s.protocol = protocol
			found = append(found, s)
		}
	}
	return found, nil
}

// destroy closes a socket, whose owner gets ECONNABORTED. One that is gone already is no error.
func (d *diagnosis) destroy(s socket) error {
	request := make([]byte, requestSize)
	request[0], request[1] = s.family, s.protocol
	copy(request[idOffset:], s.id[:])
	_, err := d.execute(netlink.Message{
		Header: netlink.Header{Type: sockDestroy, Flags: netlink.Request | netlink.Acknowledge},
		Data:   request,
	})
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESTALE) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("close socket: %w", err)
	}
	return nil
}

func (d *diagnosis) execute(m netlink.Message) ([]netlink.Message, error) {
	if err := d.conn.SetDeadline(time.Now().Add(diagnosisTimeout)); err != nil {
		return nil, err
	}
	return d.conn.Execute(m)
}

// readSocket reads a message about a socket; ok is false if it is none.
func readSocket(data []byte) (s socket, ok bool) {
	if len(data) < messageSize {
		return s, false
	}
	s.family, s.state, s.retries = data[0], data[1], data[3]
	copy(s.id[:], data[idInMessage:])
	// Ports, then addresses, all in network byte order.
	port := binary.BigEndian.Uint16(s.id[2:])
	addr := netip.AddrFrom16([16]byte(s.id[20:36]))
	if s.family == unix.AF_INET {
		addr = netip.AddrFrom4([4]byte(s.id[20:24]))
	}
	s.remote = toKernel(netip.AddrPortFrom(addr, port))
	if r, ok := findRecord(data[messageSize:], replyStorages, replyStorage); ok && r.State&connected != 0 && r.Endpoint == s.remote {
		s.pool = r.Pool
	}
	return s, true
}

// findRecord follows types of attributes to where the record of a socket is.
func findRecord(data []byte, types ...uint16) (r programRecord, ok bool) {
	attributes, err := netlink.NewAttributeDecoder(data)
	if err != nil {
		return r, false
	}
	for attributes.Next() {
		switch value := attributes.Bytes(); {
		case len(types) > 0 && attributes.Type() == types[0]:
			if r, ok = findRecord(value, types[1:]...); ok {
				return r, true
			}
		case len(types) == 0 && attributes.Type() == replyMapValue && len(value) == recordSize:
			_, err := binary.Decode(value, binary.NativeEndian, &r)
			return r, err == nil
		}
	}
	return r, false
}
