package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"github.com/miekg/dns"
)

// namesCommand makes this program a DNS client that asks as fast as it can, upstreamCommand a server that knows all names, and echoCommand one that
// sends all packets back as they are.
const (
	namesCommand    = "names-client"
	upstreamCommand = "names-upstream"
	echoCommand     = "names-echo"
)

// namesSpec is what such a client does.
type namesSpec struct {
	Server    netip.AddrPort `json:"server"`
	Questions [][]byte       `json:"questions"` // packets, asked in turn
	Sockets   int            `json:"sockets"`
	Window    int            `json:"window"` // questions on their way, of each socket
	Warm      time.Duration  `json:"warm"`   // not counted
	For       time.Duration  `json:"for"`
	RCode     int            `json:"rcode"` // of a right answer
	Fresh     bool           `json:"fresh"` // the first label, of freshLabel octets, is another one in each
}

// namesResult is what it prints.
type namesResult struct {
	Answers int     `json:"answers"` // in For
	All     int     `json:"all"`     // from the first to the last, as CPU is counted
	Wrong   int     `json:"wrong"`   // another RCODE, or cut off
	Lost    int     `json:"lost"`
	Seconds float64 `json:"seconds"`
	P50     float64 `json:"p50"` // microseconds
	P99     float64 `json:"p99"`
}

// freshLabel is how long a label is that is to be replaced.
const freshLabel = 16

// questionAt is where the question begins in a packet.
const questionAt = 12

// most answers whose time is kept.
const namesMost = 3_000_000

func namesMain(args []string) error {
	debug.SetGCPercent(-1) // bounded by namesMost
	if len(args) != 0 {
		return errors.New("want no argument: what to do is on standard input, as JSON")
	}
	var spec namesSpec
	if err := json.NewDecoder(os.Stdin).Decode(&spec); err != nil {
		return err
	}
	clients := make([]namesClient, spec.Sockets)
	errs := make([]error, spec.Sockets)
	began := time.Now()
	var work sync.WaitGroup
	for i := range clients {
		work.Go(func() { errs[i] = clients[i].run(&spec, i, began) })
	}
	work.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	result := namesResult{Seconds: spec.For.Seconds()}
	var took []float64
	for i := range clients {
		c := &clients[i]
		took = append(took, c.took...)
		result.All, result.Wrong, result.Lost = result.All+c.all, result.Wrong+c.wrong, result.Lost+c.lost
	}
	result.Answers = len(took)
	if len(took) > 0 {
		result.P50, result.P99 = quantile(took, 0.5), quantile(took, 0.99)
	}
	return json.NewEncoder(os.Stdout).Encode(result)
}

// namesClient is one socket.
type namesClient struct {
	all, wrong, lost int
	took             []float64
	sent             [1 << 16]time.Time // by ID; zero = not asked
}

func (c *namesClient) run(spec *namesSpec, number int, began time.Time) (err error) {
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(spec.Server))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	counting, ends := began.Add(spec.Warm), began.Add(spec.Warm+spec.For)
	packet, answer := make([]byte, 512), make([]byte, 65535)
	next, id, fresh := number, uint16(0), rand.Uint64()
	ask := func() error {
		q := spec.Questions[next%len(spec.Questions)]
		next++
		id++
		n := copy(packet, q)
		binary.BigEndian.PutUint16(packet, id)
		if spec.Fresh {
			fresh++
			copy(packet[questionAt+1:], fmt.Sprintf("%0*x", freshLabel, fresh))
		}
		c.sent[id] = time.Now()
		_, err := conn.Write(packet[:n])
		return err
	}
	for range spec.Window {
		if err := ask(); err != nil {
			return err
		}
	}
	for now := began; now.Before(ends); {
		if err := conn.SetReadDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
			return err
		}
		n, err := conn.Read(answer)
		now = time.Now()
		if errors.Is(err, os.ErrDeadlineExceeded) { // all of them are lost
			for range spec.Window {
				c.lost++
				if err := ask(); err != nil {
					return err
				}
			}
			continue
		}
		if err != nil {
			return err
		}
		got := binary.BigEndian.Uint16(answer)
		if n < 12 || c.sent[got].IsZero() {
			continue
		}
		c.all++
		if int(answer[3]&0xf) != spec.RCode || answer[2]&2 != 0 {
			c.wrong++
		}
		if now.After(counting) && len(c.took) < namesMost/spec.Sockets {
			c.took = append(c.took, float64(now.Sub(c.sent[got]))/float64(time.Microsecond))
		}
		c.sent[got] = time.Time{}
		if err := ask(); err != nil {
			return err
		}
	}
	return nil
}

// upstreamMain answers each name with an address until SIGTERM; its first line is where.
func upstreamMain() error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return err
	}
	server := &dns.Server{PacketConn: conn, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg)
		m.SetReply(q)
		m.RecursionAvailable = true
		if q.Question[0].Qtype == dns.TypeA {
			m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 3600}, A: net.IPv4(192, 0, 2, 1)}}
		}
		_ = w.WriteMsg(m) // the client may have left
	})}
	server.NotifyStartedFunc = func() { fmt.Println(conn.LocalAddr()) }
	context.AfterFunc(ctx, func() { _ = server.Shutdown() })
	return server.ActivateAndServe()
}

// echoMain sends packets back until it is killed; its first line is where.
func echoMain() error {
	conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return err
	}
	fmt.Println(conn.LocalAddr())
	for packet := make([]byte, 512); ; {
		n, from, err := conn.ReadFromUDPAddrPort(packet)
		if err != nil {
			return err
		}
		_, _ = conn.WriteToUDPAddrPort(packet[:n], from) // the client may have left
	}
}
