package conntrack

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/endpointd/endpointd/internal/model"
)

// batchSize is how many deletions go to the kernel at once. Their answers must fit into the socket's receive buffer.
const batchSize = 64

// A batch collects deletions and applies them.
type batch struct {
	socket *socket
	size   int
	// deleted is how many entries are gone; refused is one that the kernel keeps, and why.
	deleted int
	refused error
}

// add has the kernel delete a flow, now or with the next ones.
func (b *batch) add(f *flow) error {
	if b.size == 0 {
		b.socket.sent = b.socket.sent[:0]
	}
	b.socket.seq++
	b.socket.sent = deletion(b.socket.sent, f, b.socket.seq)
	b.size++
	if b.size == batchSize {
		return b.apply()
	}
	return nil
}

// apply sends what was collected and waits for the answers.
func (b *batch) apply() error {
	if b.size == 0 {
		return nil
	}
	left := b.size
	first := b.socket.seq - uint32(left) + 1
	b.size = 0
	if err := b.socket.send(b.socket.sent); err != nil {
		return fmt.Errorf("delete conntrack entries: %w", err)
	}
	for left > 0 {
		received, err := b.socket.receive()
		if err != nil {
			return fmt.Errorf("delete conntrack entries: %w", err)
		}
		for r, err := range replies(received) {
			if err != nil {
				return fmt.Errorf("delete conntrack entries: %w", err)
			}
			if r.kind != unix.NLMSG_ERROR || r.seq-first >= batchSize {
				continue // late answers to what was given up
			}
			left--
			b.count(r.errno())
		}
	}
	return nil
}

func (b *batch) count(err error) {
	switch {
	case err == nil:
		b.deleted++
	case errors.Is(err, unix.ENOENT): // it went by itself, or another entry took its place
	default: // EBUSY: a flow table of the hardware or of nftables has it, and gives it back
		b.refused = err
	}
}

// describe names a kind of flows in errors.
func (k kind) describe() string {
	family, protocol := "IPv4", "?"
	if k.v6 {
		family = "IPv6"
	}
	switch k.protocol {
	case model.TCP:
		protocol = "TCP"
	case model.UDP:
		protocol = "UDP"
	case model.SCTP:
		protocol = "SCTP"
	}
	return family + " " + protocol
}
