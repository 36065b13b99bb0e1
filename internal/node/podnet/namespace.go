package podnet

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/vishvananda/netns"
)

// inNamespace runs f on a thread of its own in a network namespace. The thread ends with it, because one that failed to
// go back must never run anything else.
func inNamespace(ns netns.NsHandle, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := netns.Set(ns); err != nil {
			done <- fmt.Errorf("enter a network namespace: %w; the agent needs CAP_SYS_ADMIN", err)
			return
		}
		done <- f()
	}()
	return <-done
}

const (
	forwardV4     = "ipv4/ip_forward"
	forwardV6     = "ipv6/conf/all/forwarding"
	ipv6Settings  = "ipv6/conf"
	disableAllV6  = "ipv6/conf/all/disable_ipv6"
	disableNextV6 = "ipv6/conf/default/disable_ipv6"
	disableLoopV6 = "ipv6/conf/lo/disable_ipv6"
)

// forwarding has the node route packets. It runs on a thread in the node's network namespace.
func forwarding(c config, around surroundings, log *slog.Logger) error {
	for _, prefix := range c.cidrs {
		if prefix.Addr().Is4() {
			if err := setting(forwardV4, "1"); err != nil {
				return err
			}
			continue
		}
		if !hasIPv6() {
			return fmt.Errorf("pod range %s: the kernel has no IPv6 here; enable it or use an IPv4 range alone (--pod-cidr)", prefix)
		}
		// A router ignores router advertisements, and the kernel drops the routes it learned from them, unless accept_ra is 2.
		for _, route := range around.routes {
			if route.advert && route.link != "" {
				if err := setting(filepath.Join(ipv6Settings, route.link, "accept_ra"), "2"); err != nil {
					return err
				}
				log.Debug("router advertisements stay accepted", "interface", route.link)
			}
		}
		if err := setting(forwardV6, "1"); err != nil {
			return err
		}
	}
	return nil
}

// hasIPv6 says whether the kernel has IPv6 in the network namespace of the thread.
func hasIPv6() bool {
	_, err := os.Stat(settingPath(ipv6Settings))
	return err == nil
}

// setting writes a setting of the thread's network namespace, if it is another.
func setting(name, value string) error {
	path := settingPath(name)
	now, err := os.ReadFile(path)
	if err == nil && strings.TrimSpace(string(now)) == value {
		return nil
	}
	if err == nil {
		err = os.WriteFile(path, []byte(value), 0)
	}
	if err != nil {
		dotted := "net." + strings.ReplaceAll(name, "/", ".")
		if errors.Is(err, fs.ErrPermission) || strings.Contains(err.Error(), "read-only") {
			return fmt.Errorf("set %s to %s: %w; /proc/sys must be writable, or set it yourself with sysctl -w %s=%s", dotted, value, err, dotted, value)
		}
		return fmt.Errorf("set %s to %s: %w", dotted, value, err)
	}
	return nil
}

func settingPath(name string) string { return filepath.Join("/proc/sys/net", name) }
