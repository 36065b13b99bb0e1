package dptest

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// A Place is a network namespace with somebody in it: a node, a pod or a client outside.
type Place struct {
	Name string
	// V4 and V6 are its addresses.
	V4, V6 netip.Addr

	ns     netns.NsHandle
	jobs   chan func() // for the one thread that is in the namespace
	cgroup string      // of the place's threads; "" is that of the process

	mu       sync.Mutex // guards nextPort
	nextPort uint16     // source port of the next UDP client
}

// newPlace makes an empty namespace. The thread that is in it ends with close.
func newPlace(name string) (*Place, error) {
	p := &Place{Name: name, jobs: make(chan func()), nextPort: firstClientPort}
	made := make(chan error)
	onThread(func() {
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			p.ns, err = netns.Get()
		}
		made <- err
		if err != nil {
			return
		}
		for job := range p.jobs {
			job()
		}
	})
	if err := <-made; err != nil {
		return nil, fmt.Errorf("make network namespace %s: %w", name, err)
	}
	return p, p.Do(func() error { return errors.Join(settings(), up("lo")) })
}

// onThread runs f on a thread that ends with it. That is not the process's first one, which would not end but stay where f has led it.
func onThread(f func()) {
	go func() {
		runtime.LockOSThread() // not unlocked: the thread ends with the goroutine
		if unix.Gettid() != unix.Getpid() {
			f()
			return
		}
		done := make(chan struct{})
		onThread(func() {
			defer close(done)
			f()
		})
		<-done
		runtime.UnlockOSThread()
	}()
}

// Do runs f in the place, after what others do there. It should be short.
func (p *Place) Do(f func() error) error {
	done := make(chan error)
	p.jobs <- func() { done <- f() }
	if err := <-done; err != nil {
		return fmt.Errorf("in %s: %w", p.Name, err)
	}
	return nil
}

// Enter runs f on a new thread in the place, beside what others do there.
func (p *Place) Enter(f func() error) error {
	done := make(chan error)
	onThread(func() {
		err := errors.Join(netns.Set(p.ns), joinCgroup(p.cgroup))
		if err == nil {
			err = f()
		}
		done <- err
	})
	if err := <-done; err != nil {
		return fmt.Errorf("in %s: %w", p.Name, err)
	}
	return nil
}

// NetNS is the namespace; it is closed with the World.
func (p *Place) NetNS() netns.NsHandle { return p.ns }

// Addr is the place's address of a family.
func (p *Place) Addr(v6 bool) netip.Addr {
	if v6 {
		return p.V6
	}
	return p.V4
}

// join has the clients in the place be in a cgroup from now on: sockets stay in the one in which they are made.
func (p *Place) join(cgroup string) error {
	p.cgroup = cgroup
	return p.Do(func() error { return joinCgroup(cgroup) })
}

// joinCgroup moves the thread; "" moves it nowhere.
func joinCgroup(path string) error {
	if path == "" {
		return nil
	}
	return os.WriteFile(filepath.Join(path, "cgroup.threads"), []byte("0"), 0)
}

func (p *Place) close() error {
	close(p.jobs)
	return p.ns.Close()
}

// settings of a namespace that has no interface yet but lo.
func settings() error {
	for name, value := range map[string]string{
		"ipv6/conf/all/disable_ipv6":         "0",
		"ipv6/conf/default/disable_ipv6":     "0",
		"ipv6/conf/lo/disable_ipv6":          "0",
		"ipv6/conf/default/accept_dad":       "0", // addresses work at once
		"ipv6/conf/default/accept_ra":        "0",
		"ipv4/conf/all/rp_filter":            "0",
		"ipv4/conf/default/rp_filter":        "0",
		"ipv4/conf/all/accept_redirects":     "0",
		"ipv4/conf/all/send_redirects":       "0",
		"ipv4/conf/default/send_redirects":   "0",
		"ipv6/conf/default/accept_redirects": "0",
		"ipv4/icmp_ratelimit":                "0", // every refusal is told at once, however many cases run
		"ipv6/icmp/ratelimit":                "0",
	} {
		if err := os.WriteFile(filepath.Join("/proc/sys/net", name), []byte(value), 0); err != nil {
			return err
		}
	}
	return nil
}

func forwarding() error {
	for _, name := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
		if err := os.WriteFile(filepath.Join("/proc/sys/net", name), []byte("1"), 0); err != nil {
			return err
		}
	}
	return nil
}

func up(name string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(link)
}

// addAddrs gives an interface addresses, such as 10.0.0.1/24.
func addAddrs(link netlink.Link, addrs ...netip.Prefix) error {
	for _, a := range addrs {
		err := netlink.AddrAdd(link, &netlink.Addr{IPNet: ipNet(a), Flags: unix.IFA_F_NODAD})
		if err != nil {
			return fmt.Errorf("address %s: %w", a, err)
		}
	}
	return nil
}

// route leads a range through an interface, to a gateway if that is valid, with a source address if that is valid.
func route(link netlink.Link, to netip.Prefix, via, src netip.Addr) error {
	r := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(to)}
	if via.IsValid() {
		r.Gw, r.Flags = via.AsSlice(), int(netlink.FLAG_ONLINK)
	} else {
		r.Scope = netlink.SCOPE_LINK
	}
	if src.IsValid() {
		r.Src = src.AsSlice()
	}
	if err := netlink.RouteAdd(r); err != nil {
		return fmt.Errorf("route to %s via %s: %w", to, via, err)
	}
	return nil
}
