package nftables

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"net/netip"
	"os"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"golang.org/x/sys/unix"

	"github.com/endpointd/endpointd/internal/dataplane/dptest"
	"github.com/endpointd/endpointd/internal/model"
)

// TestLargePool draws from a pool that has no chain for its very number: each endpoint has the same chance.
func TestLargePool(t *testing.T) {
	const (
		size  = 2*maxExact + 1 // the worst: half of the numbers drawn are too large
		draws = 60 * size
		first = 20_000 // its endpoints are one pod's ports
	)
	w := dptest.NewWorld(t)
	var input model.Input
	object := serviceObject(1)
	object.Spec.Ports[0].Protocol = corev1.ProtocolUDP
	input = input.WithNetwork(dptest.Network()).WithService(object)
	counters := make([]int, size)
	for i := range size {
		input = input.WithSlice(slice(1, fmt.Sprintf("s-%d", i), corev1.ProtocolUDP, first+int32(i), w.Pods[0].V4))
	}
	synced(t, w, model.Build(input, nil))
	sockets := make([]int, size)
	udp := func(place *dptest.Place, port uint16) (fd int) {
		err := place.Do(func() (err error) {
			if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0); err != nil {
				return err
			}
			return unix.Bind(fd, &unix.SockaddrInet4{Port: int(port)})
		})
		if err != nil {
			t.Fatal(err)
		}
		return fd
	}
	for i := range sockets {
		sockets[i] = udp(w.Pods[0], uint16(first+i))
		defer func() { _ = unix.Close(sockets[i]) }()
	}
	to := &unix.SockaddrInet4{Port: 80, Addr: clusterIP(1).As4()}
	buffer := make([]byte, 8)
	for range draws {
		client := udp(w.Pods[1], 0)
		if err := unix.Sendto(client, []byte("x"), 0, to); err != nil {
			t.Fatal(err)
		}
		if err := unix.Close(client); err != nil {
			t.Fatal(err)
		}
	}
	received, deadline := 0, time.Now().Add(patience)
	for received < draws*99/100 && time.Now().Before(deadline) { // ports are used again while conntrack still knows them: to the same endpoint
		for i, fd := range sockets {
			for {
				if _, _, err := unix.Recvfrom(fd, buffer, 0); err != nil {
					break
				}
				counters[i]++
				received++
			}
		}
	}
	// Each is expected 60 times, with a standard deviation below 8 but for ports used again; twice the mean or a quarter would be beyond any chance.
	for i, n := range counters {
		if n < 15 || n > 130 {
			t.Errorf("endpoint %d of %d was chosen %d times of %d", i, size, n, received)
		}
	}
}

// TestOwnPorts has a pod dial an endpoint at its own address and through a Service: the endpoint sees the same address, and never the same port.
func TestOwnPorts(t *testing.T) {
	w := dptest.NewWorld(t)
	const port = 20_000
	stop, err := w.Pods[0].Serve(port)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
	}()
	input := model.Input{}.WithNetwork(dptest.Network()).WithService(serviceObject(1)).WithSlice(slice(1, "s", corev1.ProtocolTCP, port, w.Pods[0].V4))
	synced(t, w, model.Build(input, nil))
	for range 50 {
		for to, own := range map[netip.AddrPort]bool{netip.AddrPortFrom(w.Pods[0].V4, port): false, netip.AddrPortFrom(clusterIP(1), 80): true} {
			answer, err := w.Pods[1].Ask(model.TCP, to, patience)
			if err != nil {
				t.Fatal(err)
			}
			if answer.Seen.Addr() != w.Pods[1].V4 || (answer.Seen.Port() < 32768) != own || answer.Seen.Port() < 1024 {
				t.Errorf("%s dialled: the endpoint sees %s", to, answer.Seen)
			}
		}
	}
}

// slice is one of service n's with one endpoint.
func slice(n int, name string, protocol corev1.Protocol, port int32, addr netip.Addr) *discoveryv1.EndpointSlice {
	noName := ""
	return &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "default", Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: fmt.Sprintf("s-%d", n)}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: &noName, Port: &port, Protocol: &protocol}},
		Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{addr.String()}}},
	}
}

// TestSCTP sends the first packet of an association by hand, for not every kernel has SCTP sockets.
func TestSCTP(t *testing.T) {
	w := dptest.NewWorld(t)
	object := serviceObject(1)
	object.Spec.Ports[0].Protocol = corev1.ProtocolSCTP
	var input model.Input
	input = input.WithNetwork(dptest.Network()).WithService(object).WithSlice(slice(1, "s-1", corev1.ProtocolSCTP, 8080, w.Pods[0].V4))
	synced(t, w, model.Build(input, nil))
	raw := func(place *dptest.Place) (fd int) {
		err := place.Do(func() (err error) {
			fd, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_SCTP)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return fd
	}
	server, client := raw(w.Pods[0]), raw(w.Pods[1])
	defer func() { _, _ = unix.Close(server), unix.Close(client) }()
	timeout := unix.NsecToTimeval(int64(patience))
	if err := unix.SetsockoptTimeval(server, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout); err != nil {
		t.Fatal(err)
	}
	if err := unix.Sendto(client, sctpInit(4000, 80), 0, &unix.SockaddrInet4{Addr: clusterIP(1).As4()}); err != nil {
		t.Fatal(err)
	}
	buffer := make([]byte, 256)
	n, _, err := unix.Recvfrom(server, buffer, 0)
	if err != nil {
		t.Fatalf("nothing came: %v", err)
	}
	const header = 20
	packet := buffer[header:n]
	if port := binary.BigEndian.Uint16(packet[2:]); port != 8080 {
		t.Errorf("it came to port %d", port)
	}
	if !validSCTP(packet) {
		t.Error("its checksum is wrong")
	}
}

// sctpInit is a packet with the chunk INIT (RFC 9260 §3.3.2).
func sctpInit(from, to uint16) []byte {
	b := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, from), to)
	b = append(b, 0, 0, 0, 0 /* tag */, 0, 0, 0, 0 /* checksum */, 1, 0, 0, 20)
	b = append(b, 0, 0, 0, 7 /* tag */, 0, 1, 0, 0 /* window */, 0, 1, 0, 1 /* streams */, 0, 0, 0, 1 /* sequence */)
	binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
	return b
}

func validSCTP(b []byte) bool {
	sum := binary.LittleEndian.Uint32(b[8:])
	clear(b[8:12])
	return sum == crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli))
}

// TestLoopbackNodePort holds what works of NodePorts at 127.0.0.1: the node reaches endpoints to which its routes lead through links that
// route local addresses, as those to its pods do where there are host ports.
func TestLoopbackNodePort(t *testing.T) {
	w := dptest.NewWorld(t)
	input, _ := served(t, w)
	network := dptest.Network()
	loopback := netip.MustParseAddr("127.0.0.1")
	network.NodePortAddrs = append([]netip.Addr{loopback}, network.NodePortAddrs...)
	object := serviceObject(1)
	object.Spec.Type, object.Spec.Ports[0].NodePort = corev1.ServiceTypeNodePort, 30001
	synced(t, w, model.Build(input.WithNetwork(network).WithService(object), nil))
	to := netip.AddrPortFrom(loopback, 30001)
	if _, err := w.Node.Ask(model.TCP, to, 300*time.Millisecond); err == nil {
		t.Error("it works without route_localnet; then say so in the documentation")
	}
	in(t, w, func() error {
		return errors.Join(os.WriteFile("/proc/sys/net/ipv4/conf/pod-a/route_localnet", []byte("1"), 0o644))
	})
	answer, err := w.Node.Ask(model.TCP, to, patience)
	if err != nil || answer.Seen.Addr().IsLoopback() {
		t.Errorf("with route_localnet: %v, %v", answer, err)
	}
}
