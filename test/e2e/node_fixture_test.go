package e2e

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/endpointd/endpointd/internal/testkit"
)

// helperArg is the first argument with which this test binary is one of the small programs that tests run inside a sandbox, so that no
// curl and no ip is needed.
const helperArg = "e2e-helper"

// helper runs what the arguments say and returns the exit code.
func helper(args []string) int {
	var err error
	switch {
	case len(args) > 1 && args[0] == "get":
		err = helperGet(args[1:])
	case len(args) == 4 && args[0] == "api": // URL, file of the CA, file of the token
		err = helperAPI(args[1], args[2], args[3])
	case len(args) == 3 && args[0] == "link": // name, up or down
		err = helperLink(args[1], args[2])
	case len(args) == 2 && args[0] == "lookup": // name
		err = helperLookup(args[1])
	case len(args) == 3 && args[0] == "lookup-at": // address and port of a server, name
		err = helperLookupAt(args[1], args[2])
	case len(args) == 2 && args[0] == "lookups": // name
		err = helperLookups(args[1], os.Stdout)
	case len(args) > 2 && args[0] == "names": // name, addresses of DNS servers
		err = helperNames(args[1], args[2:], os.Stdin, os.Stdout)
	case len(args) == 1 && args[0] == "net":
		err = helperNet()
	case len(args) == 1 && args[0] == "load":
		err = helperLoad(os.Stdin, os.Stdout)
	case len(args) == 5 && args[0] == "traffic": // URL, kept or new, workers, pause
		err = helperTraffic(args[1:], os.Stdin, os.Stdout)
	default:
		err = fmt.Errorf("what is %q?", args)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func helperGet(urls []string) error {
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	for _, url := range urls {
		if err := show(client.Get(url)); err != nil {
			return err
		}
	}
	return nil
}

func show(r *http.Response, err error) error {
	if err != nil {
		return err
	}
	if r.StatusCode >= http.StatusBadRequest {
		fmt.Fprintln(os.Stderr, r.Status)
	}
	_, err = io.Copy(os.Stdout, r.Body)
	return errors.Join(err, r.Body.Close())
}

func helperAPI(url, ca, token string) error {
	roots := x509.NewCertPool()
	if text, err := os.ReadFile(ca); err != nil || !roots.AppendCertsFromPEM(text) {
		return fmt.Errorf("no certificate in %s: %w", ca, err)
	}
	text, err := os.ReadFile(token)
	if err != nil {
		return err
	}
	request, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	request.Header.Set("Authorization", "Bearer "+string(text))
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}}}
	return show(client.Do(request))
}

func helperLink(name, state string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	if state == "down" {
		return netlink.LinkSetDown(link)
	}
	return netlink.LinkSetUp(link)
}

// helperNet prints links, addresses and routes, without what the kernel does by itself in its own time.
func helperNet() error {
	links, err := netlink.LinkList()
	if err != nil {
		return err
	}
	name := map[int]string{0: "-"}
	for _, l := range links {
		name[l.Attrs().Index] = l.Attrs().Name
		fmt.Println("link", l.Attrs().Name, l.Type())
	}
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return err
	}
	for _, a := range addrs {
		if !a.IP.IsLinkLocalUnicast() {
			fmt.Println("address", a.IPNet, name[a.LinkIndex])
		}
	}
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return err
	}
	for _, r := range routes {
		if r.Dst == nil || !r.Dst.IP.IsLinkLocalUnicast() && !r.Dst.IP.IsMulticast() {
			fmt.Println("route", r.Dst, r.Gw, name[r.LinkIndex], r.Table, r.Type)
		}
	}
	neighbours, err := netlink.NeighList(0, 0)
	if err != nil {
		return err
	}
	for _, n := range neighbours {
		if n.State&netlink.NUD_PERMANENT != 0 {
			fmt.Println("neighbour", n.IP, name[n.LinkIndex])
		}
	}
	return nil
}

// nodes is one test's namespace on an `endpointd up`.
type nodes struct {
	*space
	u *testkit.UpProcess
}

// nodesOf makes a namespace for a test on a cluster that u runs.
func nodesOf(t *testing.T, c *cluster, u *testkit.UpProcess) *nodes {
	t.Helper()
	return &nodes{c.space(t, c.kubectls[0]), u.In(t)}
}

// get requests URLs from a node, or, with "", from the outer network, and returns the answers.
func (n *nodes) get(node string, urls ...string) string {
	n.Helper()
	text, err := n.tryGet(node, urls...)
	check(n.T, err)
	return text
}

func (n *nodes) tryGet(node string, urls ...string) (string, error) {
	out, err := n.u.Try(n.u.ExecArgs(node, append([]string{self(n.T), helperArg, "get"}, urls...)...)...)
	return out.Stdout, err
}

// self is this test binary.
func self(t *testing.T) string {
	t.Helper()
	path, err := os.Executable()
	check(t, err)
	return path
}

// control tells the echo server of a pod how to be.
func (n *nodes) control(pod *corev1.Pod, orders string) {
	n.Helper()
	n.get("", fmt.Sprintf("http://%s:8080/control?%s", pod.Status.PodIP, orders))
}

// pod is the object as it is.
func (n *nodes) pod(name string) *corev1.Pod {
	n.Helper()
	pod, err := n.client.CoreV1().Pods(n.name).Get(n.Context(), name, metav1.GetOptions{})
	check(n.T, err)
	return pod
}

// list lists the pods with a label that are not being deleted.
func (n *nodes) list(label string) []corev1.Pod {
	n.Helper()
	list, err := n.client.CoreV1().Pods(n.name).List(n.Context(), metav1.ListOptions{LabelSelector: label})
	check(n.T, err)
	return slices.DeleteFunc(list.Items, func(p corev1.Pod) bool { return p.DeletionTimestamp != nil })
}

// awaitPod waits until what is true of the pod, and returns the pod. What says what is not so yet.
func (n *nodes) awaitPod(name string, limit time.Duration, what func(*corev1.Pod) error) *corev1.Pod {
	n.Helper()
	var pod *corev1.Pod
	testkit.Await(n, limit, func() (err error) {
		pod, err = n.client.CoreV1().Pods(n.name).Get(n.Context(), name, metav1.GetOptions{})
		if err == nil {
			if err = what(pod); err != nil {
				err = fmt.Errorf("pod %s: %w; status %s", name, err, briefly(pod))
			}
		}
		return err
	})
	return pod
}

func briefly(pod *corev1.Pod) string {
	text := fmt.Sprintf("%s %s", pod.Status.Phase, pod.Status.Reason)
	for _, c := range pod.Status.Conditions {
		text += fmt.Sprintf("; %s %s %s", c.Type, c.Status, c.Reason)
	}
	for _, c := range slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses) {
		text += fmt.Sprintf("; container %s ready %v restarts %d state %s", c.Name, c.Ready, c.RestartCount, squeeze(c.State.String()))
	}
	return text
}

func isReady(pod *corev1.Pod) error { return hasCondition(pod, corev1.PodReady, corev1.ConditionTrue) }

func isUnready(pod *corev1.Pod) error {
	return hasCondition(pod, corev1.PodReady, corev1.ConditionFalse)
}

func hasCondition(pod *corev1.Pod, kind corev1.PodConditionType, want corev1.ConditionStatus) error {
	for _, c := range pod.Status.Conditions {
		if c.Type == kind && c.Status == want {
			return nil
		}
	}
	return fmt.Errorf("%s is not %s", kind, want)
}

// awaitPods waits until there are count ready pods with a label, and returns them.
func (n *nodes) awaitPods(label string, count int) []corev1.Pod {
	n.Helper()
	var list []corev1.Pod
	testkit.Await(n, patience, func() error {
		list = n.list(label)
		if len(list) != count {
			return fmt.Errorf("%d pods with %s, want %d", len(list), label, count)
		}
		for i := range list {
			if err := isReady(&list[i]); err != nil {
				return fmt.Errorf("pod %s: %w: %s", list[i].Name, err, briefly(&list[i]))
			}
		}
		return nil
	})
	return list
}

// leadTo is what slices lead to when these pods are all.
func leadTo(port int, pods ...corev1.Pod) string {
	var addrs []string
	for i := range pods {
		addrs = append(addrs, fmt.Sprintf("%s:%d", pods[i].Status.PodIP, port))
	}
	return sortedWords(addrs)
}

// awaitPodGone waits until there is no object of this name.
func (n *nodes) awaitPodGone(name string, limit time.Duration) {
	n.Helper()
	testkit.Await(n, limit, func() error {
		pod, err := n.client.CoreV1().Pods(n.name).Get(n.Context(), name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		check(n.T, err)
		return fmt.Errorf("pod %s is there: %s", name, briefly(pod))
	})
}

// awaitEvent waits for an event about an object, of this reason and with this text in its message.
func (n *nodes) awaitEvent(object, reason, text string) {
	n.Helper()
	testkit.Await(n, patience, func() error {
		list, err := n.client.CoreV1().Events(n.name).List(n.Context(), metav1.ListOptions{FieldSelector: "involvedObject.name=" + object})
		check(n.T, err)
		var said []string
		for _, e := range list.Items {
			if e.Reason == reason && strings.Contains(e.Message, text) {
				return nil
			}
			said = append(said, e.Reason+": "+e.Message)
		}
		return fmt.Errorf("no event %s with %q about %s: %q", reason, text, object, said)
	})
}

// process is one of a sandbox's.
type process struct {
	pid, parent int
	line        string // arguments
}

// processesOf lists the processes of a sandbox.
func processesOf(t *testing.T, u *testkit.UpProcess) map[int]process {
	t.Helper()
	all := map[int]process{}
	folders, err := filepath.Glob("/proc/[0-9]*")
	check(t, err)
	for _, folder := range folders {
		pid, err := strconv.Atoi(filepath.Base(folder))
		check(t, err)
		stat, err := os.ReadFile(folder + "/stat")
		if err != nil {
			continue // it has ended
		}
		fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		parent, _ := strconv.Atoi(fields[1])
		line, _ := os.ReadFile(folder + "/cmdline")
		all[pid] = process{pid, parent, strings.TrimSpace(strings.ReplaceAll(string(line), "\x00", " "))}
	}
	within := map[int]process{}
	for pid, p := range all {
		above := pid
		for above > 1 && above != u.PID {
			above = all[above].parent
		}
		if above == u.PID {
			within[pid] = p
		}
	}
	return within
}

// shim is the process that holds a pod's namespaces.
func (n *nodes) shim(pod string) int {
	n.Helper()
	found := 0
	testkit.Await(n, patience, func() error {
		for _, p := range processesOf(n.T, n.u) {
			if p.line == "endpointd-pod "+n.name+"/"+pod {
				found = p.pid
				return nil
			}
		}
		return fmt.Errorf("no process of pod %s/%s", n.name, pod)
	})
	return found
}

// first is the first process of a pod's only container.
func (n *nodes) first(pod string) int {
	n.Helper()
	shim := n.shim(pod)
	var found []process
	for _, p := range processesOf(n.T, n.u) {
		if p.parent == shim {
			found = append(found, p)
		}
	}
	if len(found) != 1 {
		n.Fatalf("pod %s has the processes %v, want one", pod, found)
	}
	return found[0].pid
}
