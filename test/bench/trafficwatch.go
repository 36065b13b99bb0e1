package main

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	discovery "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
)

func targetsOf(at netip.AddrPort) []netip.AddrPort { return []netip.AddrPort{at} }

// flipWatch is a watch of one slice that notes when each of its endpoints was shown.
type flipWatch struct {
	watch   watch.Interface
	running sync.WaitGroup

	mu    sync.Mutex               // guards what follows
	shown map[string]time.Duration // address → when
	ended error                    // why the server has ended it
}

func watchFlips(ctx context.Context, client kubernetes.Interface, slice *discovery.EndpointSlice) (*flipWatch, error) {
	timeout, one := watchTime, "metadata.name="+slice.Name
	list, err := client.DiscoveryV1().EndpointSlices(namespace).List(ctx, metav1.ListOptions{FieldSelector: one})
	if err != nil {
		return nil, err
	}
	w, err := client.DiscoveryV1().EndpointSlices(namespace).Watch(ctx, metav1.ListOptions{
		FieldSelector: one, ResourceVersion: list.ResourceVersion, TimeoutSeconds: &timeout,
	})
	if err != nil {
		return nil, err
	}
	f := &flipWatch{watch: w, shown: map[string]time.Duration{}}
	f.running.Go(func() {
		for event := range w.ResultChan() {
			at := monotonic()
			f.mu.Lock()
			if s, ok := event.Object.(*discovery.EndpointSlice); ok && len(s.Endpoints) == 1 {
				f.shown[s.Endpoints[0].Addresses[0]] = at
			} else {
				f.ended = apierrors.FromObject(event.Object)
			}
			f.mu.Unlock()
		}
	})
	return f, nil
}

func (f *flipWatch) close() {
	f.watch.Stop()
	f.running.Wait()
}

// fill notes when each change was shown, of which first is the number of the first.
func (f *flipWatch) fill(ctx context.Context, times []flipTimes, first int) error {
	last := flippedEndpoint(first + len(times) - 1).String()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for until := time.Now().Add(readyWait); ; {
		f.mu.Lock()
		_, ok := f.shown[last]
		err := f.ended
		f.mu.Unlock()
		if err != nil {
			return fmt.Errorf("watch: %w", err)
		}
		if ok {
			break
		}
		if time.Now().After(until) {
			return fmt.Errorf("a watch does not show the last change after %v", readyWait)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range times {
		at, ok := f.shown[flippedEndpoint(first+i).String()]
		if !ok {
			return fmt.Errorf("a watch has not shown change %d of %d", i+1, len(times))
		}
		times[i].shown = at
	}
	return nil
}

// cpu is what the processes of a group have used so far, also those that are gone.
func (c *cgroup) cpu() (time.Duration, error) {
	text, err := os.ReadFile(filepath.Join(c.path, "cpu.stat"))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, "usage_usec "); ok {
			us, err := strconv.ParseInt(strings.TrimSpace(value), 10, 64)
			return time.Duration(us) * time.Microsecond, err
		}
	}
	return 0, fmt.Errorf("%s/cpu.stat has no usage_usec", c.path)
}
