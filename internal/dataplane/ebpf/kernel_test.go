package ebpf

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"
	"unsafe"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/endpointd/endpointd/internal/dataplane/slots"
	"github.com/endpointd/endpointd/internal/model"
)

func TestAddressesAreInNetworkByteOrder(t *testing.T) {
	for text, want := range map[string]string{
		"10.1.2.3:80":         "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff\x0a\x01\x02\x03\x00\x50\x00\x00",
		"[2001:db8::1]:65535": "\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\xff\xff\x00\x00",
	} {
		a := netip.MustParseAddrPort(text)
		k := toKernel(a)
		if got := bytesOf(&k); string(got) != want {
			t.Errorf("%s: %x, want %x", text, got, want)
		}
		if back := fromKernel(k); back != a {
			t.Errorf("%s came back as %s", a, back)
		}
	}
}

func bytesOf[T any](v *T) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(v)), unsafe.Sizeof(*v))
}

func TestWhichFrontendsAreTranslated(t *testing.T) {
	tcp := model.FrontendKey{Addr: netip.MustParseAddr("10.96.0.1"), Protocol: model.TCP, Port: 80}
	sctp := tcp
	sctp.Protocol = model.SCTP
	loopback := tcp
	loopback.Addr = netip.MustParseAddr("::1")
	full := slots.Frontend{Present: true, Internal: slots.Target{Pool: 7, Size: 2, Affinity: 60}, External: slots.Target{Pool: 8}}
	for name, c := range map[string]struct {
		key    model.FrontendKey
		change func(f *slots.Frontend)
		none   bool
		flags  uint32
	}{
		"with endpoints":           {key: tcp},
		"loopback":                 {key: loopback, flags: nodeOnly},
		"SCTP":                     {key: sctp, none: true},
		"without endpoints":        {key: tcp, change: func(f *slots.Frontend) { f.Internal.Size = 0 }, none: true},
		"with source ranges":       {key: tcp, change: func(f *slots.Frontend) { f.Filtered = true }, none: true},
		"that is not there":        {key: tcp, change: func(f *slots.Frontend) { *f = slots.Frontend{} }, none: true},
		"others' target is no use": {key: tcp, change: func(f *slots.Frontend) { f.External = slots.Target{} }},
	} {
		f := full
		if c.change != nil {
			c.change(&f)
		}
		want := programFrontend{Key: frontendKey(c.key), Size: 2, Pool: 7, Affinity: 60, Flags: c.flags}
		if c.none {
			want = programFrontend{}
		}
		if got := frontendValue(c.key, f); got != want {
			t.Errorf("%s: %+v, want %+v", name, got, want)
		}
	}
}

// FuzzAdopt has a kernel hold anything: what is planned for it makes it right, and no entry costs more than its size.
func FuzzAdopt(f *testing.F) {
	frontend := programFrontend{Key: programAddrPort{Port: 1, Protocol: 6}, Size: 3, Pool: 1}
	f.Add(bytesOf(&frontend), bytesOf(&programSlotKey{Pool: 1, Index: 1}), bytesOf(&programMemberKey{Pool: 1}))
	f.Add([]byte{}, bytesOf(&programSlotKey{Pool: 1, Index: 1<<32 - 1}), []byte{})
	f.Fuzz(func(t *testing.T, frontends, slotKeys, members []byte) {
		read := func() contents {
			c := contents{frontends: map[programAddrPort]programFrontend{}, slots: map[programSlotKey]programAddrPort{}, members: map[programMemberKey]uint32{}}
			for _, v := range decode[programFrontend](frontends) {
				c.frontends[v.Key] = v
			}
			for i, key := range decode[programSlotKey](slotKeys) {
				c.slots[key] = toKernel(netip.AddrPortFrom(endpointIP(i%2 == 0, i%5), uint16(i%3)))
			}
			for _, key := range decode[programMemberKey](members) {
				c.members[key] = uint32(len(c.members))
			}
			return c
		}
		now := model.Build(model.Input{}, nil)
		table := adopt(read())
		for id, held := range table.Pools {
			if len(held) > len(slotKeys) {
				t.Fatalf("pool %d has %d slots, and only %d bytes were read", id, len(held), len(slotKeys))
			}
		}
		table.Apply(table.Plan(nil, now))
		c := read()
		apply(c, difference(read(), table))
		if len(c.frontends)+len(c.slots)+len(c.members) > 0 {
			t.Errorf("left: %+v", c)
		}
	})
}

// decode reads as many values as there are.
func decode[T any](data []byte) (found []T) {
	r := bytes.NewReader(data)
	for {
		var v T
		if binary.Read(r, binary.NativeEndian, &v) != nil {
			return found
		}
		found = append(found, v)
	}
}

// apply is what a kernel does with writes.
func apply(c contents, w *writes) {
	write(c.frontends, w.frontends)
	write(c.slots, w.slots)
	write(c.members, w.members)
}

func write[K comparable, V any](m map[K]V, e entries[K, V]) {
	for i, key := range e.keys {
		m[key] = e.values[i]
	}
	for _, key := range e.gone {
		delete(m, key)
	}
}

// FuzzReadSocket has sock_diag say anything.
func FuzzReadSocket(f *testing.F) {
	record := programRecord{Pool: 5, State: connected, Endpoint: toKernel(netip.MustParseAddrPort("10.1.0.1:8080"))}
	message := make([]byte, messageSize)
	message[0] = unix.AF_INET
	copy(message[4+2:], []byte{0x1f, 0x90})
	copy(message[4+20:], []byte{10, 1, 0, 1})
	attributes := netlink.NewAttributeEncoder()
	attributes.Nested(replyStorages, func(storages *netlink.AttributeEncoder) error {
		storages.Nested(replyStorage, func(storage *netlink.AttributeEncoder) error {
			storage.Uint32(2, 77)
			storage.Bytes(replyMapValue, bytesOf(&record))
			return nil
		})
		return nil
	})
	encoded, err := attributes.Encode()
	if err != nil {
		f.Fatal(err)
	}
	message = append(message, encoded...)
	if s, ok := readSocket(message); !ok || s.pool != 5 || fromKernel(s.remote).String() != "10.1.0.1:8080" {
		f.Fatalf("%+v, %t", s, ok)
	}
	f.Add(message)
	f.Fuzz(func(t *testing.T, data []byte) {
		if s, ok := readSocket(data); ok != (len(data) >= messageSize) {
			t.Errorf("%+v, %t", s, ok)
		}
	})
}
