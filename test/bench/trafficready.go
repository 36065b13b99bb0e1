package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes"
)

// readyNodes are as many as there are rows: the pod's own node, and another.
const readyNodes = 2

const (
	readyService = "ready"
	readyLabel   = "ready-of"
)

// stand is where pods come and go on one node, and are dialled from pods of both.
type stand struct {
	*bench
	client kubernetes.Interface
	view   *fleetView
	probes []*lookout // of the nodes, in the order of their names
	nodes  []string
	made   int // pods ever made
}

// readyPart measures from a pod that is seen Ready to the first connection, on its node and on another.
func (b *bench) readyPart(ctx context.Context) (err error) {
	s := &sandbox{binary: b.binary, dir: filepath.Join(b.dir, "ready"), nodes: readyNodes}
	if _, err := s.up(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.down(ctx)) }()
	config, err := clientConfig(s.kubeconfig())
	if err != nil {
		return err
	}
	st := &stand{bench: b}
	if st.client, err = kubernetes.NewForConfig(config); err != nil {
		return err
	}
	if _, err := st.client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}, metav1.CreateOptions{}); err != nil {
		return err
	}
	agents, err := s.parts(ctx)
	if err != nil {
		return err
	}
	delete(agents, serverPart)
	st.nodes = slices.Sorted(maps.Keys(agents))
	if st.view, err = viewFleet(ctx, st.client); err != nil {
		return err
	}
	defer st.view.close()
	if err := st.open(ctx, agents); err != nil {
		return err
	}
	defer func() {
		for _, p := range st.probes {
			err = errors.Join(err, p.close())
		}
	}()
	b.fill = &filler{client: st.client, made: shape{0, fillerEndpoints}}
	for _, n := range b.sizes {
		if err := b.filled(ctx, n); err != nil {
			return err
		}
		if err := st.measure(ctx); err != nil {
			return fmt.Errorf("%d Services: %w", n, err)
		}
	}
	return nil
}

// open makes the Service, a pod on each node, and has each of these pods dial the Service.
func (s *stand) open(ctx context.Context, agents map[string]int) error {
	service, err := s.client.CoreV1().Services(namespace).Create(ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: readyService},
		Spec: corev1.ServiceSpec{
			Selector: map[string]string{readyLabel: "yes"}, Ports: []corev1.ServicePort{{Port: servicePort, TargetPort: intstr.FromInt32(echoPort)}},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	for _, node := range s.nodes {
		name := "client-" + node
		if err := s.pod(ctx, name, node, false); err != nil {
			return err
		}
		if err := s.view.until(ctx, name+" Ready", podWait, func() bool { return s.view.pods[name].ready }); err != nil {
			return err
		}
		at, err := inPod(agents, name)
		if err != nil {
			return err
		}
		p, err := s.probe(ctx, at, probeSpec{
			Targets: targetsOf(addrPortOf(service)), Every: dialPace, Timeout: time.Second, Longest: time.Hour,
		})
		if err := errors.Join(err, at.place.close(), at.group.fd.Close()); err != nil {
			return err
		}
		s.probes = append(s.probes, p)
	}
	return nil
}

// inPod is where a pod's processes are.
func inPod(agents map[string]int, name string) (at spot, err error) {
	pods, err := podProcesses(agents)
	if err != nil {
		return at, err
	}
	p := pods[name]
	if p == nil || len(p.containers) == 0 {
		return at, fmt.Errorf("pod %s has no process", name)
	}
	if at.place, err = placeOf(name, p.containers[0]); err != nil {
		return at, err
	}
	path, err := cgroupOf(strconv.Itoa(p.containers[0]))
	if err != nil {
		return at, err
	}
	fd, err := os.Open(path)
	at.group = &cgroup{path: path, fd: fd}
	return at, err
}

// pod makes an echo server on a node, which the Service selects or not.
func (s *stand) pod(ctx context.Context, name, node string, selected bool) error {
	grace := int64(0)
	object := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PodSpec{
			NodeName: node, TerminationGracePeriodSeconds: &grace,
			EnableServiceLinks: new(false), // with thousands of Services no program starts: their variables are too long
			Containers: []corev1.Container{{
				Name: "echo", Image: echoImage, Ports: []corev1.ContainerPort{{ContainerPort: echoPort}},
				ReadinessProbe: &corev1.Probe{PeriodSeconds: 1, ProbeHandler: corev1.ProbeHandler{
					HTTPGet: &corev1.HTTPGetAction{Path: "/readyz", Port: intstr.FromInt32(echoPort)},
				}},
			}},
		},
	}
	if selected {
		object.Labels = map[string]string{readyLabel: "yes"}
	}
	_, err := s.client.CoreV1().Pods(namespace).Create(ctx, object, metav1.CreateOptions{})
	return err
}

// measure makes pods, one after the other, on the nodes in turn.
func (s *stand) measure(ctx context.Context) error {
	own, other := []float64{}, []float64{}
	for range s.readies {
		took, err := s.one(ctx, s.made%len(s.nodes))
		if err != nil {
			return err
		}
		own, other = append(own, took[0]), append(other, took[1:]...)
	}
	n := s.fill.made.services
	s.say("ready, %d Services: own node %s ms, another %s ms p50", n, number(quantile(own, 0.5)), number(quantile(other, 0.5)))
	t := nodeTable{title: fmt.Sprintf("a pod is seen Ready → the first connection through its Service, %d nodes, %d Services", readyNodes, n)}
	limit := 50.0
	if n > 1000 {
		limit = 100
	}
	for _, row := range []struct {
		name    string
		samples []float64
	}{{"from a pod of the same node", own}, {"from a pod of another node", other}} {
		p50, p99 := t.spread(row.name, "ms", row.samples)
		p99.atMost(limit)
		if n <= 1000 {
			p50.atMost(15)
		}
	}
	t.rows[0].published("1.5 s p50, 6.8 s p99 at 100 nodes (kubernetes #124272)")
	s.report.Sections = append(s.report.Sections, t.section())
	return nil
}

// one makes a pod and takes it away again. It returns milliseconds: of its own node first.
func (s *stand) one(ctx context.Context, on int) ([]float64, error) {
	s.made++
	name := fmt.Sprintf("ready-%d", s.made)
	from := make([]int, len(s.probes))
	for i, p := range s.probes {
		from[i] = len(p.sights())
	}
	ready := s.view.when(name+" Ready", func() bool { return s.view.pods[name].ready })
	if err := s.pod(ctx, name, s.nodes[on], true); err != nil {
		return nil, err
	}
	at, err := s.view.seen(ctx, ready, podWait)
	if err != nil {
		return nil, err
	}
	was := monotonic() - time.Since(at)
	took := make([]float64, 0, len(s.probes))
	for i := range s.probes {
		i = (i + on) % len(s.probes)
		seen, err := s.probes[i].until(ctx, podWait, from[i], func(g sight) bool { return g.where == here })
		if err != nil {
			return nil, fmt.Errorf("a connection from %s: %w", s.nodes[i], err)
		}
		took = append(took, milliseconds(max(seen.done-was, 0)))
		from[i] = len(s.probes[i].sights())
	}
	now := int64(0)
	if err := s.client.CoreV1().Pods(namespace).Delete(ctx, name, metav1.DeleteOptions{GracePeriodSeconds: &now}); err != nil {
		return nil, err
	}
	for i, p := range s.probes {
		if _, err := p.until(ctx, podWait, from[i], func(g sight) bool { return g.where == nowhere }); err != nil {
			return nil, fmt.Errorf("from %s, after the pod was deleted: %w", s.nodes[i], err)
		}
	}
	err = s.view.until(ctx, name+" gone", podWait, func() bool { _, there := s.view.pods[name]; return !there })
	return took, errors.Join(err, pause(ctx, killPause))
}

func addrPortOf(s *corev1.Service) netip.AddrPort {
	addr, _ := netip.ParseAddr(s.Spec.ClusterIP) // the server has made it
	return netip.AddrPortFrom(addr, servicePort)
}
