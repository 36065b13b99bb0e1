package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// partNames is the name of -run: answers of DNS beside CoreDNS's.
const partNames = "names"

const (
	oursDNSName = "endpointd dns"
	coreDNSName = "CoreDNS"
)

// namesOptions are the flags of the part names.
type namesOptions struct {
	coreDNS    string
	asking     time.Duration // one measurement
	namesFlips int
}

func (o *options) namesFlags(flags *flag.FlagSet) {
	flags.StringVar(&o.coreDNS, "coredns", ".cache/bin/coredns", "a stock CoreDNS, the `program` that the part names compares with")
	flags.DurationVar(&o.asking, "asking", 2*time.Second, "how long one kind of question is asked there")
	flags.IntVar(&o.namesFlips, "names-flips", 100, "changes of a record there, of each server")
}

// A kindOf question is a row of the tables.
type kindOfQuestion struct {
	name   string
	names  []string
	rtype  uint16
	size   uint16 // of UDP, by EDNS
	rcode  int
	target float64 // CPU an answer: ours divided by CoreDNS's, at most; 0 = none
	fresh  bool    // each is asked with another first label, which nobody has asked for before
}

// headlessEndpoints is how many endpoints the headless Service has.
const headlessEndpoints = 100

func namesKinds(services int) []kindOfQuestion {
	domain := "." + namespace + ".svc.cluster.local."
	var a, ptr, srv, none, outside []string
	for i := range min(services, 500) {
		n := i * (services - 1) / max(min(services, 500)-1, 1)
		a = append(a, "f"+strconv.Itoa(n)+domain)
		srv = append(srv, "_http._tcp.f"+strconv.Itoa(n)+domain)
		none = append(none, "none"+strconv.Itoa(n)+domain)
		outside = append(outside, "host"+strconv.Itoa(i)+".example.com.")
		reverse, _ := dns.ReverseAddr(fillerService(n).Addr().String()) // it is one
		ptr = append(ptr, reverse)
	}
	const third = 1.0 / 3
	return []kindOfQuestion{
		{"A of a Service", a, dns.TypeA, 1232, dns.RcodeSuccess, third, false},
		{fmt.Sprintf("A of a headless one with %d endpoints", headlessEndpoints), []string{"headless" + domain}, dns.TypeA, 4096, dns.RcodeSuccess, third, false},
		{"SRV of a port", srv, dns.TypeSRV, 1232, dns.RcodeSuccess, third, false},
		{"PTR of a ClusterIP", ptr, dns.TypePTR, 1232, dns.RcodeSuccess, third, false},
		{"a name that is not there", none, dns.TypeA, 1232, dns.RcodeNameError, third, false},
		{"a name of elsewhere, remembered", outside, dns.TypeA, 1232, dns.RcodeSuccess, 0, false},
		{"a name of elsewhere, asked for the first time", []string{strings.Repeat("0", freshLabel) + ".example.com."}, dns.TypeA, 1232, dns.RcodeSuccess, 0, true},
	}
}

// packets are the questions.
func (k *kindOfQuestion) packets() ([][]byte, error) {
	var all [][]byte
	for _, name := range k.names {
		m := new(dns.Msg)
		m.SetQuestion(name, k.rtype)
		m.SetEdns0(k.size, false)
		packet, err := m.Pack()
		if err != nil {
			return nil, fmt.Errorf("question for %s: %w", name, err)
		}
		all = append(all, packet)
	}
	return all, nil
}

// namesPart measures at each size.
func (b *bench) namesPart(ctx context.Context) (err error) {
	if !b.wants(partNames) {
		return nil
	}
	if _, err := os.Stat(b.coreDNS); err != nil {
		b.note("the part names is left out: %v; name a CoreDNS with -coredns", err)
		return nil
	}
	if b.server, err = newServer(b.binary, filepath.Join(b.dir, "names")); err != nil {
		return err
	}
	if _, err := b.server.start(ctx, true); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.server.stop()) }()
	if b.fill, err = prepareTraffic(ctx, b.server.writes, fillerEndpoints); err != nil {
		return err
	}
	if err := b.headless(ctx); err != nil {
		return err
	}
	for _, n := range b.sizes {
		if err := b.filled(ctx, n); err != nil {
			return err
		}
		if err := b.namesAt(ctx, n); err != nil {
			return err
		}
	}
	return nil
}

// headless makes the headless Services: one with many endpoints, and one that is flipped.
func (b *bench) headless(ctx context.Context) error {
	client := b.server.writes
	for name, count := range map[string]int{"headless": headlessEndpoints, "flip": 1} {
		_, err := client.CoreV1().Services(namespace).Create(ctx, &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Name: name},
			Spec:       corev1.ServiceSpec{ClusterIP: corev1.ClusterIPNone, Ports: []corev1.ServicePort{{Name: "http", Port: servicePort, Protocol: corev1.ProtocolTCP}}},
		}, metav1.CreateOptions{})
		if err != nil {
			return err
		}
		var addrs []netip.Addr
		for i := range count {
			addrs = append(addrs, offset(endpointRange, 2000+i))
		}
		_, err = client.DiscoveryV1().EndpointSlices(namespace).Create(ctx, &discovery.EndpointSlice{
			ObjectMeta:  metav1.ObjectMeta{Name: name, Labels: map[string]string{discovery.LabelServiceName: name, discovery.LabelManagedBy: "bench.endpointd.io"}},
			AddressType: discovery.AddressTypeIPv4,
			Ports:       []discovery.EndpointPort{{Name: new("http"), Port: new(int32(httpPort)), Protocol: new(corev1.ProtocolTCP)}},
			Endpoints:   endpointsOf(addrs),
		}, metav1.CreateOptions{})
		if err != nil {
			return err
		}
	}
	return nil
}
