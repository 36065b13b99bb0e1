package app

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/endpointd/endpointd/internal/apiserver/etcd"
	"github.com/endpointd/endpointd/internal/dataplane/dptest"
	"github.com/endpointd/endpointd/internal/testkit"
)

// The test binary is also a server, for tests that kill one: with childDir it runs one in that folder, on childEtcd. With childPackets it runs
// tests in namespaces of their own, see packets.
const (
	childDir     = "ENDPOINTD_TEST_DATA_DIR"
	childEtcd    = "ENDPOINTD_TEST_ETCD"
	childPackets = "ENDPOINTD_TEST_PACKETS"
)

func TestMain(m *testing.M) {
	if os.Getenv(childPackets) != "" {
		dptest.Main(m, false)
	}
	if dir := os.Getenv(childDir); dir != "" {
		o := serverOptions(dir)
		if endpoint := os.Getenv(childEtcd); endpoint != "" {
			o.Etcd.Servers = []string{endpoint}
		}
		o.Logger = slog.New(slog.NewTextHandler(os.Stderr, nil))
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		defer stop()
		if err := RunServer(ctx, o); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func serverOptions(dir string) ServerOptions {
	return ServerOptions{
		DataDir: dir, Listen: "127.0.0.1:0",
		ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")},
		NodePorts:    utilnet.PortRange{Base: 30000, Size: 2768},
		Logger:       slog.New(slog.DiscardHandler),
		Ready:        func(string, string) {},
	}
}

// running is a server in this process.
type running struct {
	client kubernetes.Interface
	stop   func() error // more calls do nothing
}

func run(t *testing.T, o ServerOptions) *running {
	t.Helper()
	ready := make(chan string, 1)
	o.Ready = func(_, kubeconfig string) { ready <- kubeconfig }
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- RunServer(ctx, o) }()
	r := &running{}
	stopped := false
	r.stop = func() error {
		if stopped {
			return nil
		}
		stopped = true
		cancel()
		return <-done
	}
	select {
	case kubeconfig := <-ready:
		r.client = clientFor(t, kubeconfig)
	case err := <-done:
		cancel()
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.stop(); err != nil {
			t.Errorf("stop: %v", err)
		}
	})
	return r
}

func clientFor(t *testing.T, kubeconfig string) kubernetes.Interface {
	t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	check(t, err)
	config.QPS = -1
	config.WarningHandler = rest.NoWarnings{}
	client, err := kubernetes.NewForConfig(config)
	check(t, err)
	return client
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func namespace(t *testing.T, c kubernetes.Interface, name string) {
	t.Helper()
	_, err := c.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
	check(t, err)
}

func pod(name string) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}}}
}

// What kubectl create ns and kubectl run do one after the other must work, and without a wait that people notice.
func TestPodInANewNamespace(t *testing.T) {
	s := run(t, serverOptions(t.TempDir()))
	for i := range 5 {
		name := fmt.Sprint("new-", i)
		namespace(t, s.client, name)
		begin := time.Now()
		if _, err := s.client.CoreV1().Pods(name).Create(t.Context(), pod("p"), metav1.CreateOptions{}); err != nil {
			t.Errorf("pod right after its namespace: %v", err)
		}
		took := time.Since(begin)
		t.Log("took", took)
		if took > time.Second {
			t.Errorf("pod right after its namespace took %v", took)
		}
	}
}

// restartable are the options of a server that has the same port after a restart.
func restartable(t *testing.T) ServerOptions {
	t.Helper()
	o := serverOptions(filepath.Join(t.TempDir(), "data"))
	free, err := net.Listen("tcp", o.Listen)
	check(t, err)
	o.Listen = free.Addr().String()
	check(t, free.Close())
	return o
}

func TestRestartKeepsObjectsAndClients(t *testing.T) {
	o := restartable(t)

	first := run(t, o)
	namespace(t, first.client, "kept")
	check(t, first.stop())
	second := run(t, o)
	// The client of the first start: same port, same CA, same certificate.
	if _, err := first.client.CoreV1().Namespaces().Get(t.Context(), "kept", metav1.GetOptions{}); err != nil {
		t.Error(err)
	}
	check(t, second.stop())

	// Nothing on disk is for other users.
	check(t, filepath.WalkDir(o.DataDir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err == nil && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		return err
	}))
}

func TestDisabledWorkload(t *testing.T) {
	o := serverOptions(t.TempDir())
	o.Disable = []string{workloadName}
	s := run(t, o)
	namespace(t, s.client, "bare")
	_, err := s.client.CoreV1().ServiceAccounts("bare").Get(t.Context(), "default", metav1.GetOptions{})
	if !apierrors.IsNotFound(err) {
		t.Errorf("default ServiceAccount: %v, want not found", err)
	}
}

// Each error is one line that names the object and says what to do.
func TestErrors(t *testing.T) {
	base := t.TempDir()
	in := func(name string) string { return filepath.Join(base, name) }
	used := in("used")
	run(t, serverOptions(used))
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	defer taken.Close() //nolint:errcheck // a test
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	check(t, closed.Close())
	check(t, os.WriteFile(in("file"), nil, 0o600))
	check(t, os.MkdirAll(in("damaged/pki"), 0o700))
	check(t, os.WriteFile(in("damaged/pki/ca.key"), nil, 0o600))
	cluster, err := etcd.Start(t.Context(), etcd.Options{Dir: in("cluster")})
	check(t, err)
	defer cluster.Close()
	external := func(o *ServerOptions) { o.Etcd.Servers = cluster.Endpoints() }
	seed := serverOptions(in("seed"))
	external(&seed)
	check(t, run(t, seed).stop())

	tests := map[string]struct {
		change func(*ServerOptions)
		want   string
	}{
		"folder of another server": {func(o *ServerOptions) { o.DataDir = used },
			"data folder BASE/used: in use by another endpointd (pid PID): stop that one, or choose another folder with --data-dir"},
		"folder is a file": {func(o *ServerOptions) { o.DataDir = in("file") },
			"data folder BASE/file: mkdir BASE/file: not a directory: choose another one with --data-dir"},
		"folder can not be written": {func(o *ServerOptions) { o.DataDir = "/proc/1/endpointd" },
			"data folder /proc/1/endpointd: mkdir /proc/1/endpointd: no such file or directory: choose another one with --data-dir"},
		"port taken": {func(o *ServerOptions) { o.Listen = taken.Addr().String() },
			"listen tcp TAKEN: bind: address already in use: another program has this port: stop it, or choose another one with --listen"},
		"address of nobody": {func(o *ServerOptions) { o.Listen = "192.0.2.1:6443" },
			"listen tcp 192.0.2.1:6443: bind: cannot assign requested address: no interface of this machine has this address: choose one of its own with --listen"},
		"damaged key": {func(o *ServerOptions) { o.DataDir = in("damaged") },
			"BASE/damaged/pki/ca.key is not an ECDSA P-256 private key in PEM: restore it from a backup, or move the folder BASE/damaged/pki away to have everything made anew"},
		"no etcd there": {func(o *ServerOptions) { o.Etcd.Servers = []string{"http://" + closed.Addr().String()} },
			"etcd http://CLOSED: dial tcp CLOSED: connect: connection refused: is etcd running there? start it, or correct --etcd-servers"},
		"etcd with another CA": {func(o *ServerOptions) { o.DataDir = in("other"); external(o) },
			"BASE/other/pki/ca.crt is not the CA of this etcd cluster: move the folder BASE/other/pki away to take the cluster's, or correct --etcd-servers"},
	}
	check(t, run(t, serverOptions(in("other"))).stop())
	names := strings.NewReplacer(base, "BASE", fmt.Sprintf("(pid %d)", os.Getpid()), "(pid PID)",
		taken.Addr().String(), "TAKEN", closed.Addr().String(), "CLOSED")
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			o := serverOptions(in("fresh-" + strings.ReplaceAll(name, " ", "-")))
			test.change(&o)
			begin := time.Now()
			err := RunServer(t.Context(), o)
			if err == nil {
				t.Fatal("it ran")
			}
			if got := names.Replace(err.Error()); got != test.want {
				t.Errorf("got  %s\nwant %s", got, test.want)
			}
			if took := time.Since(begin); took > 5*time.Second {
				t.Errorf("took %v", took)
			}
		})
	}
	for err, want := range map[error]string{
		syscall.EACCES: "make it writable for this user", syscall.EROFS: "make it writable for this user", syscall.ENOSPC: "free some space there",
	} {
		if got := folderError("/data", &fs.PathError{Op: "open", Path: "/data/server.lock", Err: err}); !strings.Contains(got.Error(), want) {
			t.Errorf("%v: %v, want %q in it", err, got, want)
		}
	}
}

// A clean start and stop says just that: no line of a library, no stack trace.
func TestQuietStop(t *testing.T) {
	c := startChild(t, t.TempDir(), "")
	led(t, c.client, "some-work")
	watch, err := c.client.CoreV1().Pods("").Watch(t.Context(), metav1.ListOptions{})
	check(t, err)
	defer watch.Stop()
	check(t, c.cmd.Process.Signal(syscall.SIGTERM))
	if err := c.cmd.Wait(); err != nil {
		t.Errorf("exit: %v", err)
	}
	text, err := os.ReadFile(c.log)
	check(t, err)
	for line := range strings.Lines(string(text)) {
		if !strings.Contains(line, "level=INFO") {
			t.Errorf("said: %s", line)
		}
	}
	if !strings.Contains(string(text), "msg=stopping") {
		t.Errorf("did not say that it stops:\n%s", text)
	}
}

// A server that is told to stop while it starts stops, without an error.
func TestStopWhileStarting(t *testing.T) {
	dir := t.TempDir()
	for _, after := range []time.Duration{0, 20 * time.Millisecond, 150 * time.Millisecond, 300 * time.Millisecond} {
		ctx, cancel := context.WithTimeout(t.Context(), after)
		if err := RunServer(ctx, serverOptions(dir)); err != nil && !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("stopped after %v: %v", after, err)
		}
		cancel()
	}
}

func TestCertNames(t *testing.T) {
	cidrs := []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:96::/112")}
	o, err := certNames([]netip.Addr{netip.MustParseAddr("192.0.2.7")}, cidrs)
	check(t, err)
	for _, want := range []string{"127.0.0.1", "::1", "10.96.0.1", "fd00:96::1", "192.0.2.7"} {
		if !strings.Contains(fmt.Sprint(o.IPs), want) {
			t.Errorf("%s is not in %v", want, o.IPs)
		}
	}
	if got := clientURL(netip.MustParseAddrPort("[::]:6443")); got != "https://127.0.0.1:6443" {
		t.Errorf("wildcard: %s", got)
	}
	if got := clientURL(netip.MustParseAddrPort("[fd00::1]:6443")); got != "https://[fd00::1]:6443" {
		t.Errorf("IPv6: %s", got)
	}
}

// child is a server in a process of its own, so that it can be killed.
type child struct {
	cmd    *exec.Cmd
	client kubernetes.Interface
	log    string // path of its standard error
}

func startChild(t *testing.T, dir, endpoint string) *child {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), childDir+"="+dir, childEtcd+"="+endpoint)
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	check(t, err)
	cmd.Stderr = log
	check(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if text, err := os.ReadFile(log.Name()); err == nil && t.Failed() {
			t.Logf("%s:\n%s", dir, text)
		}
		_ = log.Close()
	})
	c := &child{cmd: cmd, log: log.Name()}
	testkit.Await(t, 30*time.Second, func() error {
		if _, err := os.Stat(Kubeconfig(dir)); err != nil {
			return err
		}
		c.client = clientFor(t, Kubeconfig(dir))
		_, err := c.client.CoreV1().Namespaces().Get(t.Context(), "kube-system", metav1.GetOptions{})
		return err
	})
	return c
}

func leader(t *testing.T, c kubernetes.Interface) string {
	t.Helper()
	lease, err := c.CoordinationV1().Leases(leaseNamespace).Get(t.Context(), leaseName, metav1.GetOptions{})
	if err != nil || lease.Spec.HolderIdentity == nil {
		return ""
	}
	return *lease.Spec.HolderIdentity
}

// led waits until some leader's controllers have worked on a new namespace, and returns how long that took.
func led(t *testing.T, c kubernetes.Interface, name string) time.Duration {
	t.Helper()
	begin := time.Now()
	namespace(t, c, name)
	testkit.Await(t, 30*time.Second, func() error {
		_, err := c.CoreV1().ServiceAccounts(name).Get(t.Context(), "default", metav1.GetOptions{})
		return err
	})
	return time.Since(begin)
}

func TestLeaderIsReplaced(t *testing.T) {
	cluster, err := etcd.Start(t.Context(), etcd.Options{Dir: filepath.Join(t.TempDir(), "etcd")})
	check(t, err)
	t.Cleanup(cluster.Close)
	first := startChild(t, filepath.Join(t.TempDir(), "a"), cluster.Endpoints()[0])
	led(t, first.client, "before")
	o := serverOptions(filepath.Join(t.TempDir(), "b"))
	o.Etcd.Servers = cluster.Endpoints()
	second := run(t, o)
	if got := leader(t, second.client); !strings.Contains(got, fmt.Sprintf("_%d_", first.cmd.Process.Pid)) {
		t.Fatalf("leader is %q, want the first server, pid %d", got, first.cmd.Process.Pid)
	}

	check(t, first.cmd.Process.Kill())
	_ = first.cmd.Wait()
	took := led(t, second.client, "after-kill")
	t.Logf("a killed leader was replaced and its successor worked after %v", took)
	if took > 5*time.Second {
		t.Errorf("a killed leader was replaced after %v, want at most 5 s", took)
	}

	third := startChild(t, filepath.Join(t.TempDir(), "c"), cluster.Endpoints()[0])
	check(t, second.stop())
	took = led(t, third.client, "after-stop")
	t.Logf("after a clean stop the successor worked after %v", took)
	if took > 1500*time.Millisecond {
		t.Errorf("after a clean stop the lease was taken after %v, want at most 1.5 s: it is given back", took)
	}
}
