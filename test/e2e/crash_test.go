package e2e

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/endpointd/endpointd/internal/testkit"
)

const (
	crashRounds  = 12
	crashBudget  = 40 * time.Second // after that, and at least 8 rounds, it is enough
	crashLongest = 1200 * time.Millisecond
	startLongest = 500 * time.Millisecond // about what a start takes
	crashWriters = 6
	crashObjects = 12 // names that one writer uses again and again
)

// TestKillLosesNothing kills the server at a random moment, again and again, while clients write, and compares what is there
// after the next start with what was acknowledged.
func TestKillLosesNothing(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	c := newCluster(t, testkit.ServerOptions{})
	s := c.space(t, c.kubectls[0])
	s.run("apply", "-f", played(t, "nodes.yaml"))
	s.apply(webService)
	s.pods("app=web", 8080, "a", "b", "c", "d")

	all := kinds(c.client, s.name)
	writers := make([]*writer, crashWriters)
	for i := range writers {
		writers[i] = &writer{kind: all[i%len(all)], prefix: fmt.Sprintf("w%d-", i), random: rand.New(rand.NewPCG(seed, uint64(i+1))), known: map[string]known{}}
	}
	flips := &flipper{s: s, pods: []string{"a", "b", "c", "d"}, random: rand.New(rand.NewPCG(seed, crashWriters+1))}

	started, rounds, total := time.Now(), 0, 0
	for rounds < crashRounds && (rounds < 8 || time.Since(started) < crashBudget) {
		rounds++
		ctx, cancel := context.WithCancel(t.Context())
		var work sync.WaitGroup
		for _, w := range writers {
			work.Go(func() { w.write(ctx) })
		}
		work.Go(func() { flips.write(ctx) })
		moment := time.NewTimer(time.Duration(random.Int64N(int64(crashLongest))))
		<-moment.C
		c.server.Kill()
		cancel()
		work.Wait()
		if rounds%2 == 0 {
			killWhileStarting(t, c.server, time.Duration(random.Int64N(int64(startLongest))))
		}
		c.server.Start()
		for _, w := range writers {
			total += w.acknowledged
			w.acknowledged = 0
			w.compare(t)
			if w.refused != nil {
				t.Errorf("%s refused: %v", w.kind.name, w.refused)
			}
		}
		flips.converge()
		uniqueAddresses(t, c.client)
		if t.Failed() {
			t.Fatalf("in round %d", rounds)
		}
	}
	t.Logf("%d kills in %v; %d acknowledged writes, none lost", rounds, time.Since(started).Round(time.Second), total)
	if total < 100 {
		t.Errorf("only %d writes were acknowledged: too few to show anything", total)
	}
	c.server.Stop()
}

// killWhileStarting starts a server on the folder of one that does not run, and kills it after that time.
func killWhileStarting(t *testing.T, server *testkit.ServerProcess, after time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), after)
	defer cancel()
	out, err := exec.CommandContext(ctx, testkit.Binary(t), "server", "--data-dir", server.DataDir, "--listen", server.Listen).CombinedOutput()
	if ctx.Err() == nil {
		t.Errorf("it ended by itself: %v\n%s", err, out)
	}
}

// known is what a writer knows about an object.
type known struct {
	value string // "": it does not exist
	maybe string // what a request wanted to make of it that was never answered
	open  bool   // maybe is set
}

// writer makes, changes and deletes objects of one kind, and remembers what was acknowledged.
type writer struct {
	kind   kind
	prefix string
	random *rand.Rand
	known  map[string]known // object's name → what must be there

	acknowledged int
	refused      error // an answer of the server that is no acknowledgement; a kill gives none
}

// kind is how to write objects of a kind that hold a value, and to read it.
type kind struct {
	name   string
	create func(ctx context.Context, name, value string) error
	change func(ctx context.Context, name, value string) error
	remove func(ctx context.Context, name string) error
	read   func(ctx context.Context, name string) (string, error)
}

// write goes on until ctx ends.
func (w *writer) write(ctx context.Context) {
	for ctx.Err() == nil {
		name := fmt.Sprint(w.prefix, w.random.IntN(crashObjects))
		k := w.known[name]
		want, err := fmt.Sprintf("v%d", w.random.Uint64()), error(nil)
		switch {
		case k.value == "":
			err = w.kind.create(ctx, name, want)
		case w.random.IntN(3) == 0:
			want = ""
			err = w.kind.remove(ctx, name)
		default:
			err = w.kind.change(ctx, name, want)
		}
		if err != nil {
			k.maybe, k.open = want, true
			w.known[name] = k
			if status := apierrors.APIStatus(nil); errors.As(err, &status) {
				w.refused = err
			}
			return // until the server is there again
		}
		w.known[name] = known{value: want}
		w.acknowledged++
	}
}

// compare looks at every object, and takes for the truth what became of the request that was never answered.
func (w *writer) compare(t *testing.T) {
	t.Helper()
	for name, k := range w.known {
		got, err := w.kind.read(t.Context(), name)
		if apierrors.IsNotFound(err) {
			got, err = "", nil
		}
		if err != nil || got != k.value && (!k.open || got != k.maybe) {
			t.Errorf("%s %s: %q (%v), acknowledged was %q, under way %q (%t)", w.kind.name, name, got, err, k.value, k.maybe, k.open)
		}
		w.known[name] = known{value: got}
	}
}

func kinds(client *kubernetes.Clientset, namespace string) []kind {
	core := client.CoreV1()
	object := func(name, value string) metav1.ObjectMeta {
		return metav1.ObjectMeta{Name: name, Annotations: map[string]string{"v": value}}
	}
	patch := func(value string) []byte { return fmt.Appendf(nil, `{"metadata":{"annotations":{"v":%q}}}`, value) }
	return []kind{
		{
			name: "ConfigMap",
			create: func(ctx context.Context, name, value string) error {
				_, err := core.ConfigMaps(namespace).Create(ctx, &corev1.ConfigMap{ObjectMeta: object(name, value)}, metav1.CreateOptions{})
				return err
			},
			change: func(ctx context.Context, name, value string) error {
				_, err := core.ConfigMaps(namespace).Patch(ctx, name, types.MergePatchType, patch(value), metav1.PatchOptions{})
				return err
			},
			remove: func(ctx context.Context, name string) error {
				return core.ConfigMaps(namespace).Delete(ctx, name, metav1.DeleteOptions{})
			},
			read: func(ctx context.Context, name string) (string, error) {
				got, err := core.ConfigMaps(namespace).Get(ctx, name, metav1.GetOptions{})
				return got.GetAnnotations()["v"], err
			},
		},
		{
			name: "Service", // its cluster IP must stay the same, too
			create: func(ctx context.Context, name, value string) error {
				_, err := core.Services(namespace).Create(ctx, &corev1.Service{ObjectMeta: object(name, value), Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeNodePort, Ports: []corev1.ServicePort{{Port: 80}}}}, metav1.CreateOptions{})
				return err
			},
			change: func(ctx context.Context, name, value string) error {
				_, err := core.Services(namespace).Patch(ctx, name, types.MergePatchType, patch(value), metav1.PatchOptions{})
				return err
			},
			remove: func(ctx context.Context, name string) error {
				return core.Services(namespace).Delete(ctx, name, metav1.DeleteOptions{})
			},
			read: func(ctx context.Context, name string) (string, error) {
				got, err := core.Services(namespace).Get(ctx, name, metav1.GetOptions{})
				if err == nil && (got.Spec.ClusterIP == "" || got.Spec.Ports[0].NodePort == 0) {
					err = errors.New("it has no cluster IP or no node port")
				}
				return got.GetAnnotations()["v"], err
			},
		},
		{
			name: "Endpoints",
			create: func(ctx context.Context, name, value string) error {
				_, err := core.Endpoints(namespace).Create(ctx, &corev1.Endpoints{ObjectMeta: object(name, value), Subsets: []corev1.EndpointSubset{{
					Addresses: []corev1.EndpointAddress{{IP: "192.0.2.45"}}, Ports: []corev1.EndpointPort{{Port: 9376}},
				}}}, metav1.CreateOptions{})
				return err
			},
			change: func(ctx context.Context, name, value string) error {
				_, err := core.Endpoints(namespace).Patch(ctx, name, types.MergePatchType, patch(value), metav1.PatchOptions{})
				return err
			},
			remove: func(ctx context.Context, name string) error {
				return core.Endpoints(namespace).Delete(ctx, name, metav1.DeleteOptions{})
			},
			read: func(ctx context.Context, name string) (string, error) {
				got, err := core.Endpoints(namespace).Get(ctx, name, metav1.GetOptions{})
				return got.GetAnnotations()["v"], err
			},
		},
	}
}

// uniqueAddresses: no cluster IP and no node port belongs to two Services, and each cluster IP is allocated.
func uniqueAddresses(t *testing.T, client *kubernetes.Clientset) {
	t.Helper()
	services, err := client.CoreV1().Services("").List(t.Context(), metav1.ListOptions{})
	check(t, err)
	allocated, err := client.NetworkingV1().IPAddresses().List(t.Context(), metav1.ListOptions{})
	check(t, err)
	owner := map[string]string{} // cluster IP → the Service that it is allocated to
	for _, ip := range allocated.Items {
		owner[ip.Name] = ip.Spec.ParentRef.Namespace + "/" + ip.Spec.ParentRef.Name
	}
	holder := map[string]string{} // cluster IP or node port → Service
	for _, service := range services.Items {
		name := service.Namespace + "/" + service.Name
		held := append([]string{}, service.Spec.ClusterIPs...)
		for _, port := range service.Spec.Ports {
			if port.NodePort != 0 {
				held = append(held, fmt.Sprint("node port ", port.NodePort))
			}
		}
		for _, what := range held {
			if other, taken := holder[what]; taken {
				t.Errorf("%s belongs to %s and to %s", what, name, other)
			}
			holder[what] = name
		}
		for _, ip := range service.Spec.ClusterIPs {
			if ip != corev1.ClusterIPNone && owner[ip] != name {
				t.Errorf("%s of %s is allocated to %q", ip, name, owner[ip])
			}
		}
	}
}

// flipper makes pods ready, with another address each time, or not ready.
type flipper struct {
	s      *space
	random *rand.Rand
	pods   []string
	next   int
}

func (f *flipper) write(ctx context.Context) {
	for ctx.Err() == nil {
		pod := f.pods[f.random.IntN(len(f.pods))]
		f.next++
		ip, up := fmt.Sprintf("10.9.%d.%d", f.next/250, f.next%250+1), f.random.IntN(2) == 0
		_, err := f.s.client.CoreV1().Pods(f.s.name).Patch(ctx, pod, types.StrategicMergePatchType, []byte(podStatus(up, ip)), metav1.PatchOptions{}, "status")
		if status := apierrors.APIStatus(nil); errors.As(err, &status) {
			f.s.Errorf("pod %s: %v", pod, err)
		}
		if err != nil {
			return // whether it happened shows after the next start
		}
	}
}

// converge waits until the endpoints of the Service are those of the pods as they are now.
func (f *flipper) converge() {
	f.s.Helper()
	pods, err := f.s.client.CoreV1().Pods(f.s.name).List(f.s.Context(), metav1.ListOptions{LabelSelector: "app=web"})
	check(f.s.T, err)
	var up, down []string
	for _, pod := range pods.Items {
		if len(pod.Status.Conditions) == 0 {
			continue
		}
		if pod.Status.Conditions[0].Status == corev1.ConditionTrue {
			up = append(up, pod.Status.PodIP+":8080")
		} else {
			down = append(down, "("+pod.Status.PodIP+":8080)")
		}
	}
	f.s.awaitReady("web", endpointsManager, sortedWords(up))
	f.s.awaitEndpoints("web", sortedWords(append(down, up...)))
}

// TestWhileNobodyWatched: what happens to Services and pods while the controllers are off is put right when they are back.
func TestWhileNobodyWatched(t *testing.T) {
	t.Parallel()
	c := newCluster(t, testkit.ServerOptions{})
	s := c.space(t, c.kubectls[0])
	s.run("apply", "-f", played(t, "nodes.yaml"), "-f", example(t, "my-service.yaml"))
	web(s)
	s.apply(`{apiVersion: v1, kind: Service, metadata: {name: gone}, spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: turned}, spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}}`)
	for _, service := range []string{"gone", "turned"} {
		s.awaitReady(service, endpointsManager, webReady)
		s.awaitEndpoints(service, webReady)
	}
	s.awaitReady("my-service", mirrorManager, "192.0.2.45:9376")
	c.server.Stop()

	off := testkit.Server(t, testkit.ServerOptions{DataDir: c.server.DataDir, Listen: c.server.Listen, Args: []string{"--disable-controllers", "endpoints,mirror,workload"}})
	s.run("delete", "service", "gone")
	s.run("patch", "service", "turned", "--type=json", "-p", `[{"op":"remove","path":"/spec/selector"}]`)
	s.status("a", false, "10.2.0.1")
	s.run("delete", "pod", "b", "--force", "--grace-period=0")
	s.pods("app=web", 8080, "c")
	s.status("c", true, "10.2.0.3")
	s.run("patch", "endpoints", "my-service", "--type=json", "-p", `[{"op":"replace","path":"/subsets/0/addresses/0/ip","value":"192.0.2.46"}]`)
	if got := ready(s.slices("web")...); got != webReady {
		t.Errorf("with the controllers off, slices lead to %q", got)
	}
	off.Kill()

	c.server.Start()
	s.awaitReady("web", endpointsManager, "10.2.0.3:8080")
	s.awaitEndpoints("web", "(10.2.0.1:8080) 10.2.0.3:8080")
	s.awaitReady("my-service", mirrorManager, "192.0.2.46:9376")
	s.awaitReady("turned", mirrorManager, webReady)
	s.awaitGone("gone")
	c.server.Stop()
}
