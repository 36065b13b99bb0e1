// Package register makes this machine a Node of the API and keeps saying that it lives.
//
// In: what the agent knows about the machine ([Options]). Out: the Node object, its status, and a Lease in
// kube-node-lease that is renewed twice a second, so that silence of 2.75 s means that the node is gone.
//
// Invariants: the Lease has a goroutine of its own, which waits for nothing but its own requests, each limited so that
// three in a row may be lost within the 2.75 s; the Node is written only when it differs from what should be
// there, and every five minutes; what others wrote to the Node (labels, taints, conditions of other types) is left
// alone; a Node that somebody deleted is made again. An API that is away is tried twice a second, and logged
// once when lost and once when back.
//
// It refuses a Node whose pod range is not the one given, because that field cannot be changed, and one that a kubelet keeps.
//
// Rights it needs: get, list, watch, create and update nodes, update nodes/status, get, create and update leases.
// Test it with go test -race in this folder: real clients, an API in memory, fake time.
package register

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/endpointd/endpointd/internal/node/watch"
)

// Times that are not options.
const (
	look        = time.Second            // how often conditions and capacity are looked at; costs no request
	heartbeat   = 5 * time.Minute        // status is written at least so often, as a kubelet does
	pause       = 100 * time.Millisecond // between two writes of the Node: a fight with another writer stays slow
	retryFirst  = 100 * time.Millisecond
	retryLast   = 750 * time.Millisecond
	nodeTimeout = 5 * time.Second // of a request about the Node
)

// Options describe the node.
type Options struct {
	// Client writes the Node. LeaseClient renews the Lease and should have connections of its own, see watch.Connection;
	// nil = Client.
	Client, LeaseClient kubernetes.Interface
	// ListFirst is watch.Options.ListFirst, for clients in memory.
	ListFirst bool

	Name  string
	Addrs []netip.Addr // InternalIPs, the first family first
	// PodCIDRs, at most one of each family; none = what the server gives.
	PodCIDRs []netip.Prefix
	// Labels besides those that every node has, such as topology.kubernetes.io/zone.
	Labels map[string]string
	// Annotations that are ours, asked for at each look at the Node; "" = it must not be there. Nil = none are.
	Annotations func() map[string]string
	Taints      []corev1.Taint // of a Node that is made; an existing one keeps its own
	Port        int            // of the kubelet API; 0 = 10250

	Version string // endpointd's own, for the runtime's: "process://<Version>"
	Kubelet string // kubeletVersion; "" = "v1.37.2-endpointd"
	DataDir string // whose file system counts for DiskPressure and ephemeral-storage; "" = "/"

	Capacity func() corev1.ResourceList // nil = Machine(DataDir)
	// Ready is the Ready condition; reason and message may be "" for the kubelet's own words. Nil = always ready.
	Ready func() (ready bool, reason, message string)
	// Pressure says what is scarce; nil = as measured, see Measure.
	Pressure func() Pressure

	Renew        time.Duration // of the Lease; 0 = 500 ms
	LeaseSeconds int32         // leaseDurationSeconds; 0 = 1

	Logger *slog.Logger // nil = none
}

// Registration is the Node of this machine. Make it with [New].
type Registration struct {
	o       Options
	log     *slog.Logger
	info    corev1.NodeSystemInfo
	store   *watch.Store[*corev1.Node]
	poke    chan struct{} // holds one; asks for a look at the Node
	done    chan struct{} // closed when registered
	uid     atomic.Pointer[types.UID]
	written atomic.Pointer[corev1.Node]        // as the API answered last
	give    atomic.Pointer[context.CancelFunc] // gives up the requests about the Node that are under way

	// The fields below belong to the goroutine of the Node.
	since     map[corev1.NodeConditionType]corev1.NodeCondition // as written last
	beat      time.Time                                         // of the last write of the status
	lastSaid  string                                            // the error that was logged last
	announced bool
}

// New checks the options and reads what does not change while the machine runs.
func New(o Options) (*Registration, error) {
	if o.Name == "" {
		return nil, errors.New("register a node: it has no name; give one with --name")
	}
	if len(o.Addrs) == 0 {
		return nil, fmt.Errorf("node %s has no address; give one with --node-ip", o.Name)
	}
	if o.LeaseClient == nil {
		o.LeaseClient = o.Client
	}
	if o.Port == 0 {
		o.Port = 10250
	}
	if o.Kubelet == "" {
		o.Kubelet = "v1.37.2-endpointd"
	}
	if o.DataDir == "" {
		o.DataDir = "/"
	}
	if o.Renew == 0 {
		o.Renew = 500 * time.Millisecond
	}
	if o.LeaseSeconds == 0 {
		o.LeaseSeconds = 1
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Capacity == nil {
		o.Capacity = func() corev1.ResourceList { return Machine(o.DataDir) }
	}
	if o.Pressure == nil {
		o.Pressure = func() Pressure { return Measure(o.DataDir) }
	}
	if o.Ready == nil {
		o.Ready = func() (bool, string, string) { return true, "", "" }
	}
	r := &Registration{
		o: o, log: o.Logger, info: systemInfo(o), poke: make(chan struct{}, 1), done: make(chan struct{}),
		since: map[corev1.NodeConditionType]corev1.NodeCondition{},
	}
	r.store = watch.New(watch.Options[*corev1.Node]{
		Name: "node", Source: watch.From(o.Client.CoreV1().Nodes()), Fields: "metadata.name=" + o.Name,
		Changed: func(_, _ *corev1.Node) { r.Refresh() }, ListFirst: o.ListFirst, Logger: o.Logger,
	})
	return r, nil
}

// Registered is closed when the Node and its status are in the API for the first time.
func (r *Registration) Registered() <-chan struct{} { return r.done }

// Node is the newest that is known of the Node, with its pod ranges and UID; shared, do not modify it.
// It stays known while the API is away.
func (r *Registration) Node() (*corev1.Node, bool) {
	if n, ok := r.store.Get("", r.o.Name); ok {
		return n, true
	}
	n := r.written.Load()
	return n, n != nil
}

// Refresh has Ready, Capacity and Pressure asked now instead of within a second, and the Node looked at in the API.
func (r *Registration) Refresh() {
	select {
	case r.poke <- struct{}{}:
	default:
	}
}

// Run registers the node and keeps it alive until ctx ends; then it returns nil. The Node stays in the API.
// It returns an error when the Node that exists cannot be this one.
func (r *Registration) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { _ = r.store.Run(ctx) }) // never fails
	wg.Go(func() { r.renew(ctx) })
	return r.keep(ctx)
}

// keep makes the Node what it should be whenever something may have changed.
func (r *Registration) keep(ctx context.Context) error {
	ticker := time.NewTicker(look)
	defer ticker.Stop()
	retry := retryFirst
	for first := true; ; first = false {
		asked := first
		if !first {
			select {
			case <-ctx.Done():
				return nil
			case <-r.poke:
				asked = true
			case <-ticker.C:
			}
		}
		if !asked && !r.due() {
			continue
		}
		wait := pause
		if err := r.reconcile(ctx); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			if errors.Is(err, errRange) || errors.Is(err, ErrKubelet) {
				return err
			}
			if errors.Is(err, context.Canceled) { // the lease is back, so this request would be too
				retry = retryFirst
			} else {
				r.say(err)
			}
			wait, retry = retry, min(2*retry, retryLast)
			r.Refresh()
		} else {
			r.say(nil)
			retry = retryFirst
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}

// due says whether the status has to be written though nobody asked.
func (r *Registration) due() bool {
	if time.Since(r.beat) >= heartbeat {
		return true
	}
	for _, c := range r.conditions() {
		if was, ok := r.since[c.Type]; !ok || !sameCondition(was, c) {
			return true
		}
	}
	return !equality.Semantic.DeepEqual(r.written.Load().Status.Capacity, r.o.Capacity())
}

// say logs an error once, and that it is over once.
func (r *Registration) say(err error) {
	switch {
	case err != nil && r.lastSaid == "":
		r.log.Warn("cannot write the node object, trying on", "error", err)
		r.lastSaid = err.Error()
	case err == nil && r.lastSaid != "":
		r.log.Info("node object written again", "node", r.o.Name)
		r.lastSaid = ""
	}
}

// reconcile compares the Node in the API with what it should be, and writes what differs.
func (r *Registration) reconcile(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, nodeTimeout)
	defer cancel()
	r.give.Store(&cancel)
	nodes := r.o.Client.CoreV1().Nodes()
	node, err := nodes.Get(ctx, r.o.Name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		if node, err = nodes.Create(ctx, r.fresh(), metav1.CreateOptions{}); err != nil {
			return fmt.Errorf("create node %s: %w", r.o.Name, err)
		}
		r.log.Info("registered", "node", r.o.Name)
	case err != nil:
		return fmt.Errorf("read node %s: %w", r.o.Name, err)
	}
	if err := CheckKeeper(node); err != nil {
		return err
	}
	if err := r.checkRange(node); err != nil {
		return err
	}
	if want := r.adopt(node); !equality.Semantic.DeepEqual(want, node) {
		if node, err = nodes.Update(ctx, want, metav1.UpdateOptions{}); err != nil {
			return fmt.Errorf("update node %s: %w", r.o.Name, err)
		}
	}
	uid := node.UID
	r.uid.Store(&uid)
	want := node.DeepCopy()
	r.status(&want.Status)
	if time.Since(r.beat) >= heartbeat || !equality.Semantic.DeepEqual(withoutBeats(want.Status), withoutBeats(node.Status)) {
		if node, err = nodes.UpdateStatus(ctx, want, metav1.UpdateOptions{}); err != nil {
			return fmt.Errorf("update status of node %s: %w", r.o.Name, err)
		}
		r.beat = time.Now()
	}
	for _, c := range want.Status.Conditions {
		r.since[c.Type] = c
	}
	r.written.Store(node)
	if !r.announced {
		r.announced = true
		close(r.done)
	}
	return nil
}

// runtimeName begins the containerRuntimeVersion of the Nodes that this package keeps.
const runtimeName = "process://"

// ErrKubelet says that a Node is somebody else's: a kubelet's, of a machine that is a node already.
var ErrKubelet = errors.New("is kept by a kubelet")

// Ours says whether an agent of this program keeps the Node.
func Ours(node *corev1.Node) bool {
	return strings.HasPrefix(node.Status.NodeInfo.ContainerRuntimeVersion, runtimeName)
}

// CheckKeeper is ErrKubelet if another program than this one keeps the Node, or did so last.
func CheckKeeper(node *corev1.Node) error {
	info := node.Status.NodeInfo
	if info.ContainerRuntimeVersion == "" || Ours(node) {
		return nil
	}
	return fmt.Errorf("node %s %w (%s, %s): use --proxy-only to forward Services beside it, or another --name; if it is no more, "+
		"delete the Node first (kubectl delete node %s)", node.Name, ErrKubelet, info.KubeletVersion, info.ContainerRuntimeVersion, node.Name)
}

// errRange is an error that trying on does not mend.
var errRange = errors.New("the pod range of a node cannot be changed")

func (r *Registration) checkRange(node *corev1.Node) error {
	if len(r.o.PodCIDRs) == 0 || len(node.Spec.PodCIDRs) == 0 {
		return nil
	}
	given, has := r.ranges(), node.Spec.PodCIDRs
	if slices.Equal(given, has) {
		return nil
	}
	return fmt.Errorf("node %s exists with pod range %s, but %s was given, and %w: start with --pod-cidr %s, or delete "+
		"the Node first (kubectl delete node %s)", r.o.Name, strings.Join(has, ","), strings.Join(given, ","), errRange,
		strings.Join(has, ","), r.o.Name)
}

func (r *Registration) ranges() []string {
	var all []string
	for _, p := range r.o.PodCIDRs {
		all = append(all, p.Masked().String())
	}
	return all
}

// fresh is the Node as it is made.
func (r *Registration) fresh() *corev1.Node {
	node := r.adopt(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: r.o.Name}})
	node.Spec.Taints = slices.Clone(r.o.Taints)
	r.status(&node.Status)
	return node
}

func annotate(node *corev1.Node, annotations map[string]string) {
	for key, value := range annotations {
		switch {
		case value == "":
			delete(node.Annotations, key)
		case node.Annotations == nil:
			node.Annotations = map[string]string{key: value}
		default:
			node.Annotations[key] = value
		}
	}
}

// adopt returns node with the labels, annotations and ranges that are ours.
func (r *Registration) adopt(node *corev1.Node) *corev1.Node {
	node = node.DeepCopy()
	if node.Labels == nil {
		node.Labels = map[string]string{}
	}
	maps.Copy(node.Labels, map[string]string{
		corev1.LabelHostname:      r.o.Name,
		corev1.LabelOSStable:      runtime.GOOS,
		corev1.LabelArchStable:    runtime.GOARCH,
		"beta.kubernetes.io/os":   runtime.GOOS,
		"beta.kubernetes.io/arch": runtime.GOARCH,
	})
	maps.Copy(node.Labels, r.o.Labels)
	if r.o.Annotations != nil {
		annotate(node, r.o.Annotations())
	}
	if all := r.ranges(); len(all) > 0 && len(node.Spec.PodCIDRs) == 0 {
		node.Spec.PodCIDR, node.Spec.PodCIDRs = all[0], all
	}
	return node
}
