package e2e

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/endpointd/endpointd/internal/testkit"
)

const (
	// failover is the promise: a killed leader is replaced, and endpoints follow again, within it.
	failover = 5 * time.Second
	// handover is for a leader that stops cleanly: it gives its Lease back, and the others look every 0.3 to 0.7 s.
	handover = 2 * time.Second
)

// TestSeveralServers: three servers on one external etcd work as one. It is not parallel: it measures times.
func TestSeveralServers(t *testing.T) {
	flags, etcd := externalEtcd(t)
	var all []*cluster
	for range 3 {
		all = append(all, newCluster(t, testkit.ServerOptions{Args: flags}))
	}
	s := all[0].space(t, all[0].kubectls[0])
	s.run("apply", "-f", played(t, "nodes.yaml"))
	web(s)
	t.Run("one API", func(t *testing.T) { oneAPI(t, s, all) })
	t.Run("one CA", func(t *testing.T) { oneCA(t, s, all) })
	t.Run("unique addresses", func(t *testing.T) { sharedAllocation(t, s, all) })
	t.Run("refused etcd", func(t *testing.T) { refusedEtcd(t, flags, etcd) })

	// Leader after leader goes, in both ways; those that were killed come back as standbys.
	flips := 0
	for _, step := range []struct {
		name   string
		signal syscall.Signal
		limit  time.Duration
	}{
		{"killed", syscall.SIGKILL, failover},
		{"stopped", syscall.SIGTERM, handover},
		{"killed again", syscall.SIGKILL, failover},
	} {
		flips++
		t.Run("leader "+step.name, func(t *testing.T) { replaceLeader(t, s.name, all, step.signal, step.limit, flips) })
	}
}

func oneAPI(t *testing.T, s *space, all []*cluster) {
	for i, from := range all {
		name := fmt.Sprint("from-", i)
		from.kubectls[i%2].In(t).Run("-n", s.name, "create", "configmap", name, "--from-literal=a="+name)
		for _, to := range all { // at once: what one server has acknowledged all others know
			if got := to.kubectls[0].In(t).Run("-n", s.name, "get", "configmap", name, "-o", "jsonpath={.data.a}"); got != name {
				t.Errorf("server %d wrote %s, another one reads %q", i, name, got)
			}
		}
	}
	// A watch on one sees what happens on another.
	w, err := all[1].client.CoreV1().ConfigMaps(s.name).Watch(t.Context(), metav1.ListOptions{FieldSelector: "metadata.name=seen"})
	check(t, err)
	defer w.Stop()
	all[2].kubectls[0].In(t).Run("-n", s.name, "create", "configmap", "seen")
	select {
	case event := <-w.ResultChan():
		if got, ok := event.Object.(*corev1.ConfigMap); !ok || got.Name != "seen" {
			t.Errorf("event %v", event)
		}
	case <-time.After(patience):
		t.Error("no event on the other server")
	}
	// A CRD made on one is served by all.
	all[0].kubectls[0].In(t).WithInput(yaml(`{apiVersion: apiextensions.k8s.io/v1, kind: CustomResourceDefinition, metadata: {name: things.several.example.test}, spec: {group: several.example.test, scope: Namespaced,
  names: {plural: things, kind: Thing}, versions: [{name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object}}}]}}`)).Run("apply", "-f", "-")
	for _, c := range all {
		testkit.Await(t, patience, func() error {
			_, err := c.kubectls[1].In(t).Try("-n", s.name, "get", "things")
			return err
		})
	}
}

// oneCA: credentials of one server work at the others.
func oneCA(t *testing.T, s *space, all []*cluster) {
	ca := func(c *cluster) []byte {
		content, err := os.ReadFile(filepath.Join(c.server.DataDir, "pki", "ca.crt"))
		check(t, err)
		return content
	}
	token := strings.TrimSpace(s.In(t).run("create", "token", "default"))
	for _, c := range all {
		if !bytes.Equal(ca(c), ca(all[0])) {
			t.Error("the servers have different CAs")
		}
		config := rest.CopyConfig(all[0].config)
		config.Host = c.config.Host
		_, err := clientFor(t, config).CoreV1().Namespaces().List(t.Context(), metav1.ListOptions{})
		check(t, err)
		out := (&space{T: t, cluster: c, kubectl: c.kubectls[0].In(t), name: s.name})
		out.has(out.run(out.bearer(token), "auth", "whoami"), "system:serviceaccount:"+s.name+":default")
		private(t, c.server.DataDir)
	}
}

// In returns a copy that reports to another test.
func (s *space) In(t *testing.T) *space {
	t.Helper()
	return &space{T: t, cluster: s.cluster, kubectl: s.kubectl.In(t), name: s.name}
}

// sharedAllocation makes Services on all servers at once.
func sharedAllocation(t *testing.T, s *space, all []*cluster) {
	var work sync.WaitGroup
	for i, c := range all {
		work.Go(func() {
			for n := range 40 {
				service := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("s-%d-%d", i, n)}, Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeNodePort, Ports: []corev1.ServicePort{{Port: 80}}}}
				if _, err := c.client.CoreV1().Services(s.name).Create(t.Context(), service, metav1.CreateOptions{}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	work.Wait()
	uniqueAddresses(t, all[0].client)
}

func refusedEtcd(t *testing.T, flags []string, etcd *authority) {
	foreign := newAuthority(t)
	foreign.issue(t, "client", etcd.cert)
	with := func(change ...string) []string { // pairs of flag and value
		args := append([]string{"--data-dir", filepath.Join(t.TempDir(), "data"), "--listen", "127.0.0.1:0"}, flags...)
		for i := 0; i < len(change); i += 2 {
			args[slices.Index(args, change[i])+1] = change[i+1]
		}
		return args
	}
	for want, args := range map[string][]string{
		"give the CA that signed its certificate with --etcd-cafile": with("--etcd-cafile", foreign.file("ca.crt")),
		"--etcd-certfile and --etcd-keyfile":                         with("--etcd-certfile", foreign.file("client.crt"), "--etcd-keyfile", foreign.file("client.key")),
		"no such file or directory":                                  with("--etcd-cafile", foreign.file("nothing")),
		"is etcd running there?":                                     with("--etcd-servers", "https://"+freePort(t)),
	} {
		if line := failure(t, args...); !strings.Contains(line, want) || !strings.Contains(line, "etcd") {
			t.Errorf("%q is not in %s", want, line)
		}
	}
}

// leaderOf is the server that holds the Lease; its holder names the process.
func leaderOf(t *testing.T, all []*cluster, ask *cluster) *cluster {
	t.Helper()
	lease, err := ask.client.CoordinationV1().Leases(metav1.NamespaceSystem).Get(t.Context(), "endpointd-controllers", metav1.GetOptions{})
	check(t, err)
	if lease.Spec.HolderIdentity == nil {
		return nil
	}
	for _, c := range all {
		if strings.Contains(*lease.Spec.HolderIdentity, fmt.Sprintf("_%d_", c.server.PID)) {
			return c
		}
	}
	return nil
}

// leads says whether a server thinks that it leads, by its own words.
func leads(c *cluster) bool {
	leads := false
	for line := range strings.Lines(c.server.Log()) {
		switch {
		case strings.Contains(line, "leading: controllers start"):
			leads = true
		case strings.Contains(line, "lost the lease"), strings.Contains(line, "msg=stopping"), strings.Contains(line, "endpointd is ready"):
			leads = false
		}
	}
	return leads
}

// replaceLeader sends the leader a signal, flips a pod when it does not lead any more, and measures from the signal to the first
// slice that says so.
func replaceLeader(t *testing.T, namespace string, all []*cluster, signal syscall.Signal, limit time.Duration, flip int) {
	var leading *cluster
	testkit.Await(t, patience, func() error {
		if leading = leaderOf(t, all, all[flip%len(all)]); leading == nil {
			return fmt.Errorf("nobody leads")
		}
		return nil
	})
	var others []*cluster
	for _, c := range all {
		if c != leading {
			others = append(others, c)
		}
		if leads(c) != (c == leading) {
			t.Errorf("server %s says that it leads: %t; the holder of the Lease is %s", c.server.Listen, leads(c), leading.server.Listen)
		}
	}
	write, read := others[0], others[1]
	w, err := read.client.DiscoveryV1().EndpointSlices(namespace).Watch(t.Context(), metav1.ListOptions{LabelSelector: discovery.LabelServiceName + "=web"})
	check(t, err)
	defer w.Stop()

	began := time.Now()
	check(t, syscall.Kill(leading.server.PID, signal))
	if signal == syscall.SIGKILL {
		<-leading.server.Done()
	} else { // until then the old leader might do it
		testkit.Await(t, patience, func() error {
			if leaderOf(t, others, read) == nil {
				return fmt.Errorf("the leader did not change")
			}
			return nil
		})
	}
	gone := time.Since(began)
	address := fmt.Sprintf("10.2.8.%d", flip)
	_, err = write.client.CoreV1().Pods(namespace).Patch(t.Context(), "a", types.StrategicMergePatchType, []byte(podStatus(true, address)), metav1.PatchOptions{}, "status")
	check(t, err)
	late := time.After(2 * failover)
	for seen := false; !seen; {
		select {
		case event := <-w.ResultChan():
			slice, ok := event.Object.(*discovery.EndpointSlice)
			seen = ok && endpointOf([]discovery.EndpointSlice{*slice}, address) != nil
		case <-late:
			t.Fatalf("no slice with %s after %v", address, time.Since(began))
		}
	}
	took := time.Since(began)
	t.Logf("%v: a pod was flipped after %v; the first slice came %v after the signal", signal, gone, took)
	if took > limit {
		t.Errorf("from the signal to the first slice: %v, want at most %v", took, limit)
	}
	if next := leaderOf(t, others, read); next == nil || !leads(next) {
		t.Errorf("the leader is %v, want one of the others", next)
	}
	if err := leading.server.Ended(); (err == nil) != (signal == syscall.SIGTERM) {
		t.Errorf("%v: the leader ended with %v", signal, err)
	}
	leading.server.Start() // as a standby
	testkit.Await(t, patience, func() error {
		if !strings.Contains(afterLast(leading.server.Log(), "endpointd is ready"), "standby:") {
			return fmt.Errorf("the old leader does not say that it is a standby")
		}
		return nil
	})
}

func afterLast(text, mark string) string { return text[max(0, strings.LastIndex(text, mark)):] }
