package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/endpointd/endpointd/internal/testkit"
)

// dnsManifest is deploy/dns.yaml.
func dnsManifest(t *testing.T) string {
	t.Helper()
	root, err := testkit.Root()
	check(t, err)
	return filepath.Join(root, "deploy", "dns.yaml")
}

// dnsAlone is a running `endpointd dns`.
type dnsAlone struct {
	*testing.T
	addr, web string // of DNS, and of health checks and metrics
	cmd       *exec.Cmd
	log       *bytes.Buffer
	exit      error
}

// freeAddr is one on loopback that nobody has, for UDP and TCP.
func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	defer l.Close() //nolint:errcheck // a test
	return l.Addr().String()
}

// startDNS runs it with a kubeconfig until it is ready; it is ended with the test.
func startDNS(t *testing.T, kubeconfig string, args ...string) *dnsAlone {
	t.Helper()
	none := filepath.Join(t.TempDir(), "resolv.conf")
	check(t, os.WriteFile(none, nil, 0o600))
	d := &dnsAlone{T: t, web: freeAddr(t), log: &bytes.Buffer{}}
	d.cmd = exec.Command(testkit.Binary(t), append([]string{"dns", "--kubeconfig", kubeconfig, "--listen", "127.0.0.1:0", "--healthz-bind-address", d.web,
		"--resolv-conf", none, "--log-level", "debug"}, args...)...)
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	d.cmd.Stderr = d.log
	out, err := d.cmd.StdoutPipe()
	check(t, err)
	check(t, d.cmd.Start())
	t.Cleanup(func() {
		_ = d.end() // a test that cares asks before
		if t.Failed() {
			t.Logf("endpointd dns said\n%s", d.log)
		}
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	d.addr = strings.TrimSpace(strings.TrimPrefix(line, "endpointd dns is ready: "))
	if _, _, bad := net.SplitHostPort(d.addr); err != nil || bad != nil {
		t.Fatalf("%q, %v", line, err)
	}
	return d
}

// end sends SIGTERM and waits. More calls do nothing.
func (d *dnsAlone) end() error {
	if d.cmd.ProcessState == nil {
		_ = d.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
		d.exit = d.cmd.Wait()
	}
	return d.exit
}

// askFor puts a question; the answer is its RCODE, and what its records say, sorted.
func askFor(ctx context.Context, server, network, name string, rtype uint16) (string, error) {
	client := &dns.Client{Net: network, Timeout: patience}
	answer, _, err := client.ExchangeContext(ctx, new(dns.Msg).SetQuestion(dns.Fqdn(name), rtype), server)
	if err != nil {
		return "", err
	}
	var records []string
	for _, rr := range answer.Answer {
		records = append(records, strings.TrimPrefix(rr.String(), rr.Header().String()))
	}
	slices.Sort(records)
	return strings.Join(append([]string{dns.RcodeToString[answer.Rcode]}, records...), " "), nil
}

// answers waits until a name is what is wanted, over UDP and TCP.
func (d *dnsAlone) answers(name string, rtype uint16, want string) {
	d.Helper()
	for _, network := range []string{"udp", "tcp"} {
		testkit.Await(d, patience, func() error {
			got, err := askFor(d.Context(), d.addr, network, name, rtype)
			if err == nil && got != want {
				err = fmt.Errorf("%s, %s %s is %s, want %s", network, name, dns.TypeToString[rtype], got, want)
			}
			return err
		})
	}
}

// dnsAccount applies deploy/dns.yaml on the server's side and writes a kubeconfig with a token of its ServiceAccount.
func dnsAccount(t *testing.T, c *cluster) (kubeconfig string) {
	t.Helper()
	for _, kubectl := range c.kubectls {
		out := kubectl.In(t).Run("apply", "--server-side", "-f", dnsManifest(t))
		for _, what := range []string{"serviceaccount/", "clusterrole.rbac.authorization.k8s.io/", "clusterrolebinding.rbac.authorization.k8s.io/", "service/", "deployment.apps/"} {
			if !strings.Contains(out, what) {
				t.Errorf("%s applied no %s\n%s", kubectl.Name, what, out)
			}
		}
		if _, err := kubectl.In(t).Try("diff", "--server-side", "-f", dnsManifest(t)); err != nil { // exit code 1 = there is a difference
			t.Errorf("%s: what was applied is not what is there: %v", kubectl.Name, err)
		}
	}
	token, err := c.client.CoreV1().ServiceAccounts("kube-system").CreateToken(t.Context(), "endpointd-dns", &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	check(t, err)
	config, err := clientcmd.LoadFromFile(c.server.Kubeconfig)
	check(t, err)
	for _, user := range config.AuthInfos {
		user.ClientCertificateData, user.ClientKeyData, user.ClientCertificate, user.ClientKey = nil, nil, "", ""
		user.Token = token.Status.Token
	}
	path := filepath.Join(t.TempDir(), "kubeconfig")
	check(t, clientcmd.WriteToFile(*config, path))
	return path
}

const dnsObjects = `
{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {type: NodePort, selector: {app: web}, ports: [{name: http, port: 80, targetPort: http}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: peers}, spec: {clusterIP: None, selector: {app: web}, ports: [{name: http, port: 80, targetPort: http}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: elsewhere}, spec: {type: ExternalName, externalName: web.NAMESPACE.svc.cluster.local}}
`

// TestDNSAlone has `endpointd dns` answer with the rights of deploy/dns.yaml, and no others.
func TestDNSAlone(t *testing.T) {
	t.Parallel()
	c := newCluster(t, testkit.ServerOptions{})
	d := startDNS(t, dnsAccount(t, c))
	s := c.space(t, c.kubectls[0])
	s.apply(strings.ReplaceAll(dnsObjects, "NAMESPACE", s.name))
	s.run("apply", "-f", played(t, "nodes.yaml"))
	s.pods("app=web", 8080, "one", "two")
	for name, ip := range map[string]string{"one": "10.1.0.11", "two": "10.1.0.12"} { // as agents and kubelets do, with the time of the change
		when := fmt.Sprintf(`"type":"Ready","lastTransitionTime":%q`, time.Now().UTC().Format(time.RFC3339))
		s.run("patch", "pod", name, "--subresource=status", "-p", strings.Replace(podStatus(true, ip), `"type":"Ready"`, when, 1))
	}
	s.pods("app=lonely", 8080, "lonely")
	s.status("lonely", true, "10.1.0.13")
	web, err := c.client.CoreV1().Services(s.name).Get(t.Context(), "web", metav1.GetOptions{})
	check(t, err)
	ip, zone := web.Spec.ClusterIP, s.name+".svc.cluster.local"
	reverse, err := dns.ReverseAddr(ip)
	check(t, err)
	for _, q := range []struct {
		name  string
		rtype uint16
		want  string
	}{
		{"web." + zone, dns.TypeA, "NOERROR " + ip},
		{"_http._tcp.web." + zone, dns.TypeSRV, "NOERROR 0 100 80 web." + zone + "."},
		{reverse, dns.TypePTR, "NOERROR web." + zone + "."},
		{"peers." + zone, dns.TypeA, "NOERROR 10.1.0.11 10.1.0.12"},
		{"elsewhere." + zone, dns.TypeA, "NOERROR " + ip + " web." + zone + "."},
		{"none." + zone, dns.TypeA, "NXDOMAIN"},
		{"10-1-0-11." + s.name + ".pod.cluster.local", dns.TypeA, "NOERROR 10.1.0.11"}, // endpoints tell of it
		{"10-1-0-13." + s.name + ".pod.cluster.local", dns.TypeA, "NOERROR 10.1.0.13"}, // the API is asked
		{"10-1-0-13.default.pod.cluster.local", dns.TypeA, "NXDOMAIN"},
		{"10-1-0-14." + s.name + ".pod.cluster.local", dns.TypeA, "NXDOMAIN"},
	} {
		d.answers(q.name, q.rtype, q.want)
	}
	s.run("delete", "pod", "one", "--force", "--grace-period=0")
	d.answers("peers."+zone, dns.TypeA, "NOERROR 10.1.0.12")

	if text := d.get("/readyz"); text != "200 ok\n" {
		t.Errorf("/readyz: %s", text)
	}
	metrics := d.get("/metrics")
	for _, want := range []string{`endpointd_dns_responses_total{transport="tcp",type="SRV",rcode="NOERROR"}`, "endpointd_dns_unresolved_total 0\n"} {
		if !strings.Contains(metrics, want) {
			t.Errorf("no %s in\n%s", want, metrics)
		}
	}
	if strings.Contains(metrics, "endpointd_dns_programming_duration_seconds_count 0\n") {
		t.Error("the endpoints changed, and no programming duration was counted")
	}
	if err := d.end(); err != nil {
		t.Errorf("exit: %v", err)
	}
	for _, bad := range []string{"orbidden", "level=WARN msg=\"watch", "level=ERROR"} {
		if strings.Contains(d.log.String(), bad) {
			t.Errorf("%s is in what it said", bad)
		}
	}
}

func (d *dnsAlone) get(path string) string {
	d.Helper()
	r, err := (&http.Client{Timeout: patience}).Get("http://" + d.web + path)
	check(d.T, err)
	defer r.Body.Close() //nolint:errcheck // read only
	text, err := io.ReadAll(r.Body)
	check(d.T, err)
	return fmt.Sprint(r.StatusCode, " ", string(text))
}

// Each of its rights is needed: TestDNSAlone would not pass by those that everybody has. What is not allowed is named.
func TestDNSAloneWithLess(t *testing.T) {
	t.Parallel()
	c := newCluster(t, testkit.ServerOptions{})
	config := dnsAccount(t, c)
	roles := c.client.RbacV1().ClusterRoles()
	role, err := roles.Get(t.Context(), "endpointd:dns", metav1.GetOptions{})
	check(t, err)
	role.Rules = slices.DeleteFunc(role.Rules, func(r rbacv1.PolicyRule) bool { return slices.Contains(r.Resources, "pods") })
	_, err = roles.Update(t.Context(), role, metav1.UpdateOptions{})
	check(t, err)
	d := startDNS(t, config)
	s := c.space(t, c.kubectls[0])
	s.run("apply", "-f", played(t, "nodes.yaml"))
	s.pods("app=lonely", 8080, "lonely")
	s.status("lonely", true, "10.1.0.13")
	d.answers("10-1-0-13."+s.name+".pod.cluster.local", dns.TypeA, "SERVFAIL")
	d.answers("kubernetes.default.svc.cluster.local", dns.TypeA, "NOERROR 10.96.0.1")
	_ = d.end()
	if !strings.Contains(d.log.String(), "pods is forbidden") {
		t.Error("it did not say what is forbidden")
	}
	list, err := c.client.CoreV1().Services("kube-system").List(t.Context(), metav1.ListOptions{LabelSelector: dnsLabel})
	check(t, err)
	if len(list.Items) != 1 || list.Items[0].Spec.ClusterIP == corev1.ClusterIPNone {
		t.Errorf("Services: %v", list.Items)
	}
}

const dnsLabel = "app.kubernetes.io/name=endpointd-dns"

// programImage is a table in which the image of deploy/dns.yaml holds nothing but the program.
func programImage(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "e2e-image-") //nolint:usetesting // pods of other users must reach it
	check(t, err)
	t.Cleanup(func() { check(t, os.RemoveAll(dir)) })
	check(t, os.Chmod(dir, 0o755))
	check(t, os.MkdirAll(filepath.Join(dir, "root", "usr", "bin"), 0o755))
	from, to := testkit.Binary(t), filepath.Join(dir, "root", "usr", "bin", "endpointd")
	if os.Link(from, to) != nil {
		text, err := os.ReadFile(from)
		check(t, err)
		check(t, os.WriteFile(to, text, 0o755))
	}
	table := filepath.Join(dir, "images.yaml")
	check(t, os.WriteFile(table, []byte("images: [{name: \"registry.example/endpointd:*\", entrypoint: [endpointd], rootfs: "+filepath.Join(dir, "root")+"}]\n"), 0o644))
	return table
}

// TestDNSManifest runs what deploy/dns.yaml says, as it is, and asks it as its users would.
func TestDNSManifest(t *testing.T) {
	t.Parallel()
	testkit.Need(t, testkit.Net())
	testkit.Need(t, rootUser()) // it runs as a user of its own
	u := testkit.Up(t, testkit.UpOptions{Nodes: 2, Args: []string{"--images", programImage(t)}})
	c := clusterOf(t, u.Server())
	n := nodesOf(t, c, u)
	n.kubectl.Run("apply", "--server-side", "-f", dnsManifest(t))
	testkit.Await(t, 3*patience, func() error {
		deployment, err := c.client.AppsV1().Deployments("kube-system").Get(t.Context(), "endpointd-dns", metav1.GetOptions{})
		if err == nil && deployment.Status.ReadyReplicas != 2 {
			described, _ := n.kubectl.Try("-n", "kube-system", "describe", "pods", "-l", dnsLabel)
			logged, _ := n.kubectl.Try("-n", "kube-system", "logs", "--prefix", "-l", dnsLabel) // what there is
			err = errors.New(described.Stdout + logged.Stdout + logged.Stderr)
		}
		return err
	})
	service, err := c.client.CoreV1().Services("kube-system").Get(t.Context(), "endpointd-dns", metav1.GetOptions{})
	check(t, err)
	list, err := c.client.CoreV1().Pods("kube-system").List(t.Context(), metav1.ListOptions{LabelSelector: dnsLabel})
	check(t, err)
	servers := []string{service.Spec.ClusterIP}
	for i := range list.Items {
		servers = append(servers, list.Items[i].Status.PodIP)
	}
	for _, server := range servers {
		for _, from := range []string{"node-1", "node-2"} {
			for name, want := range map[string]string{
				"kubernetes.default.svc.cluster.local": "10.96.0.1", "endpointd-dns.kube-system.svc.cluster.local": service.Spec.ClusterIP, "none.default.svc.cluster.local": "NXDOMAIN",
			} {
				testkit.Await(t, patience, func() error {
					out, err := u.Try(u.ExecArgs(from, self(t), helperArg, "lookup-at", server+":53", name)...)
					if err == nil && strings.TrimSpace(out.Stdout) != want {
						err = fmt.Errorf("%s asks %s for %s: %s, want %s", from, server, name, out.Stdout, want)
					}
					return err
				})
			}
		}
	}
	// One by one, and each only when the next one answers.
	n.kubectl.Run("-n", "kube-system", "rollout", "restart", "deployment/endpointd-dns")
	n.kubectl.Run("-n", "kube-system", "rollout", "status", "deployment/endpointd-dns", "--timeout=60s")
	n.kubectl.Run("delete", "-f", dnsManifest(t), "--wait=false")
}

// TestDNSDebug follows what a node's DNS server is asked, and asks how it is.
func TestDNSDebug(t *testing.T) {
	t.Parallel()
	testkit.Need(t, testkit.Net())
	u := testkit.Up(t, testkit.UpOptions{Nodes: 1})
	n := nodesOf(t, clusterOf(t, u.Server()), u)
	name := "kubernetes.default.svc.cluster.local"
	n.resolves("node-1", "", name, "10.96.0.1")

	cmd := u.Command("debug", "queries", "--data-dir", u.DataDir, "--name", name)
	out, err := cmd.StdoutPipe()
	check(t, err)
	check(t, cmd.Start())
	lines := bufio.NewReader(out)
	if head, err := lines.ReadString('\n'); err != nil || !strings.HasPrefix(head, "TIME ") {
		t.Errorf("%q, %v", head, err)
	}
	n.resolves("node-1", "", "kube-dns.kube-system.svc.cluster.local", "10.96.0.10") // which is not to be shown
	n.resolves("node-1", "", name, "10.96.0.1")
	line, err := lines.ReadString('\n')
	for err == nil && !strings.Contains(line, " A ") { // of A and AAAA, which go out together
		line, err = lines.ReadString('\n')
	}
	if fields := strings.Fields(line); err != nil || len(fields) != 8 || !slices.Equal(fields[2:6], []string{"udp", "A", name + ".", "NOERROR"}) || fields[7] != "10.96.0.1" {
		t.Errorf("%q, %v", line, err)
	}
	check(t, cmd.Process.Signal(syscall.SIGINT))
	if err := cmd.Wait(); err != nil {
		t.Errorf("Ctrl-C: %v", err)
	}

	status, err := u.Try("debug", "status", "--data-dir", u.DataDir)
	check(t, err)
	var st struct {
		DNS struct {
			Problems  []string
			Listen    []string
			Services  int
			Responses int
		}
	}
	check(t, json.Unmarshal([]byte(status.Stdout), &st))
	if len(st.DNS.Problems) > 0 || !slices.Contains(st.DNS.Listen, "10.200.0.11:53") || st.DNS.Services < 2 || st.DNS.Responses < 3 {
		t.Errorf("status: %s", status.Stdout)
	}
}

// helperLookupAt prints what a server, asked over UDP and TCP, says of a name: its records, or an RCODE.
func helperLookupAt(server, name string) error {
	for _, network := range []string{"udp", "tcp"} {
		text, err := askFor(context.Background(), server, network, name, dns.TypeA)
		if err != nil {
			return err
		}
		if text = strings.TrimPrefix(text, "NOERROR "); network == "tcp" {
			fmt.Println(text)
		}
	}
	return nil
}
