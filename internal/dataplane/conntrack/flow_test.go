package conntrack

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/endpointd/endpointd/internal/model"
)

// entry is a message that makes an entry of the flow, and the same as what the kernel dumps.
func entry(buffer []byte, f *flow, seq uint32) []byte {
	m := begin(buffer, ctNew, unix.NLM_F_ACK|unix.NLM_F_CREATE, seq, f.dst.Addr().Is6())
	m.tuple(ctaTupleOrig, tuple{protocol: f.protocol, src: f.src, dst: f.dst, zone: f.tupleZone})
	m.tuple(ctaTupleReply, tuple{protocol: f.protocol, src: f.endpoint, dst: f.src})
	m.put32(ctaTimeout, 600)
	m.put32(ctaStatus, f.status)
	if f.id != 0 {
		m.put32(ctaID, f.id)
	}
	if f.zone != 0 {
		m.put16(ctaZone, f.zone)
	}
	return m.end()
}

func randomFlow(r *rand.Rand) flow {
	v6 := r.IntN(2) == 0
	addr := func() netip.AddrPort {
		var b [16]byte
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		if v6 {
			return netip.AddrPortFrom(netip.AddrFrom16(b), uint16(r.Uint32()))
		}
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[:4])), uint16(r.Uint32()))
	}
	f := flow{
		protocol: []model.Protocol{model.TCP, model.UDP, model.SCTP}[r.IntN(3)],
		src:      addr(), dst: addr(), endpoint: addr(), status: r.Uint32(), id: r.Uint32() | 1,
	}
	switch r.IntN(3) {
	case 0:
		f.zone = uint16(r.Uint32())
	case 1:
		f.tupleZone = uint16(r.Uint32())
	}
	return f
}

func TestDecode(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 1000 {
		want := randomFlow(r)
		var got flow
		if err := decode(entry(nil, &want, 1)[messageHeader:], &got); err != nil {
			t.Fatalf("%v: %v", &want, err)
		}
		if got != want {
			t.Fatalf("got %v, want %v", &got, &want)
		}
	}
}

// TestDecodeCut holds that an entry which lacks its end is refused, wherever it is cut.
func TestDecodeCut(t *testing.T) {
	want := flowOf("udp 10.2.0.1:4000 10.96.0.1:53 10.1.0.1:53")
	want.id = 7
	whole := entry(nil, want, 1)[messageHeader:]
	for n := range len(whole) - attributeHeader - 4 { // without the last attribute, the ID
		var got flow
		if err := decode(whole[:n], &got); err == nil {
			t.Errorf("the first %d bytes of %d pass for %v", n, len(whole), &got)
		}
	}
}

// TestDeletionHasTuple holds that no deletion is without a tuple and an ID: the kernel would delete everything.
func TestDeletionHasTuple(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for range 1000 {
		f := randomFlow(r)
		b := deletion(nil, &f, 1)
		if size := binary.NativeEndian.Uint32(b); int(size) != len(b) {
			t.Fatalf("length %d in a message of %d bytes", size, len(b))
		}
		seen := map[uint16]bool{}
		err := attributes(b[messageHeader+familyHeader:], func(kind uint16, v []byte) error {
			seen[kind] = true
			if kind != ctaTupleOrig {
				return nil
			}
			var got tuple
			if err := got.decode(v); err != nil {
				return err
			}
			if want := (tuple{protocol: f.protocol, src: f.src, dst: f.dst, zone: f.tupleZone}); got != want {
				t.Errorf("tuple %v, want %v", got, want)
			}
			return nil
		})
		if err != nil || !seen[ctaTupleOrig] || !seen[ctaID] {
			t.Fatalf("attributes %v, %v", seen, err)
		}
	}
}

// FuzzDecode holds that whatever comes from the kernel is refused or is a whole flow, that both families agree, and that nothing panics.
func FuzzDecode(f *testing.F) {
	r := rand.New(rand.NewPCG(5, 6))
	for range 10 {
		flow := randomFlow(r)
		f.Add(entry(nil, &flow, 1))
		f.Add(deletion(nil, &flow, 1))
	}
	f.Add(question{kind: kind{protocol: model.TCP}, unanswered: true}.dump(nil, 1))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		size := 0
		for r, err := range replies(b) {
			if err != nil {
				break
			}
			size += messageHeader + len(r.body)
			_ = r.errno()
			var got flow
			if decode(r.body, &got) != nil {
				continue
			}
			if !got.src.IsValid() || !got.dst.IsValid() || !got.endpoint.IsValid() || got.protocol == 0 || got.src.Addr().Is4() != got.dst.Addr().Is4() {
				t.Errorf("half a flow: %v", &got)
			}
			if again := (flow{}); got.endpoint.Addr().Is4() == got.dst.Addr().Is4() {
				if err := decode(entry(nil, &got, 1)[messageHeader:], &again); err != nil && got.id != 0 {
					t.Errorf("%v is not read again: %v", &got, err)
				} else if got.id != 0 && again != got {
					t.Errorf("%v is read again as %v", &got, &again)
				}
			}
		}
		if size > len(b) {
			t.Errorf("%d bytes of messages in %d", size, len(b))
		}
	})
}

// TestReplies holds that messages are told apart, also without padding at the end.
func TestReplies(t *testing.T) {
	f := flowOf("udp 10.2.0.1:4000 10.96.0.1:53 10.1.0.1:53")
	b := deletion(deletion(nil, f, 1), f, 2)
	b = append(b, 17, 0, 0, 0, 3, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 'x')
	var seqs []byte
	for r, err := range replies(b) {
		if err != nil {
			t.Fatal(err)
		}
		seqs = append(seqs, byte(r.seq))
	}
	if !bytes.Equal(seqs, []byte{1, 2, 9}) {
		t.Errorf("sequence %v", seqs)
	}
}
