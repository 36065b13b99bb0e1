package controllertest

import (
	"context"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func pod(name string, labels map[string]string) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, Labels: labels}}
}

func slice(name string) *discovery.EndpointSlice {
	return &discovery.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "default", Name: name},
		AddressType: discovery.AddressTypeIPv4,
	}
}

// must gives the value of a call that may not fail.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func TestEveryWriteGetsALaterVersion(t *testing.T) {
	c := NewClient(pod("a", nil))
	pods := c.CoreV1().Pods("default")
	seen := map[string]bool{}
	note := func(p *corev1.Pod) *corev1.Pod {
		if p.ResourceVersion == "" || seen[p.ResourceVersion] {
			t.Errorf("version %q is empty or was given before", p.ResourceVersion)
		}
		seen[p.ResourceVersion] = true
		return p
	}
	a := note(must(pods.Get(t.Context(), "a", metav1.GetOptions{})))
	note(must(pods.Create(t.Context(), pod("b", nil), metav1.CreateOptions{})))
	a.Labels = map[string]string{"x": "y"}
	note(must(pods.Update(t.Context(), a, metav1.UpdateOptions{})))
	note(must(pods.Patch(t.Context(), "a", types.MergePatchType, []byte(`{"metadata":{"labels":{"x":"z"}}}`), metav1.PatchOptions{})))
}

func TestUpdateThatChangesNothingIsNoWrite(t *testing.T) {
	api := NewAPI(pod("a", nil))
	pods := api.Client().CoreV1().Pods("default")
	a := must(pods.Get(t.Context(), "a", metav1.GetOptions{}))
	before := api.Revision()
	must(pods.Update(t.Context(), a, metav1.UpdateOptions{}))
	if api.Revision() != before {
		t.Errorf("revision %s became %s", before, api.Revision())
	}
}

func TestRefusals(t *testing.T) {
	uid, version := types.UID("other"), "999"
	terminating := &corev1.Namespace{
		ObjectMeta: metav1.ObjectMeta{Name: "going", DeletionTimestamp: &metav1.Time{Time: time.Now()}},
		Spec:       corev1.NamespaceSpec{Finalizers: []corev1.FinalizerName{"kubernetes"}},
	}
	preconditions := func(p metav1.Preconditions) metav1.DeleteOptions { return metav1.DeleteOptions{Preconditions: &p} }
	for name, tt := range map[string]struct {
		do   func(context.Context, *fake.Clientset) error
		want func(error) bool
	}{
		"update of an old version": {func(ctx context.Context, c *fake.Clientset) error {
			s := must(c.DiscoveryV1().EndpointSlices("default").Get(ctx, "s", metav1.GetOptions{}))
			s.Labels = map[string]string{"a": "1"}
			must(c.DiscoveryV1().EndpointSlices("default").Update(ctx, s, metav1.UpdateOptions{}))
			s.Labels = map[string]string{"a": "2"}
			_, err := c.DiscoveryV1().EndpointSlices("default").Update(ctx, s, metav1.UpdateOptions{})
			return err
		}, apierrors.IsConflict},
		"update of another object of the name": {func(ctx context.Context, c *fake.Clientset) error {
			s := slice("s")
			s.UID = uid
			_, err := c.DiscoveryV1().EndpointSlices("default").Update(ctx, s, metav1.UpdateOptions{})
			return err
		}, apierrors.IsConflict},
		"update of what is not there": {func(ctx context.Context, c *fake.Clientset) error {
			_, err := c.DiscoveryV1().EndpointSlices("default").Update(ctx, slice("none"), metav1.UpdateOptions{})
			return err
		}, apierrors.IsNotFound},
		"change of the address type": {func(ctx context.Context, c *fake.Clientset) error {
			s := slice("s")
			s.AddressType = discovery.AddressTypeIPv6
			_, err := c.DiscoveryV1().EndpointSlices("default").Update(ctx, s, metav1.UpdateOptions{})
			return err
		}, apierrors.IsInvalid},
		"patch with an old version": {func(ctx context.Context, c *fake.Clientset) error {
			_, err := c.DiscoveryV1().EndpointSlices("default").Patch(ctx, "s", types.MergePatchType,
				[]byte(`{"metadata":{"resourceVersion":"1","labels":{"x":"y"}}}`), metav1.PatchOptions{})
			return err
		}, apierrors.IsConflict},
		"create twice": {func(ctx context.Context, c *fake.Clientset) error {
			_, err := c.DiscoveryV1().EndpointSlices("default").Create(ctx, slice("s"), metav1.CreateOptions{})
			return err
		}, apierrors.IsAlreadyExists},
		"create with a version": {func(ctx context.Context, c *fake.Clientset) error {
			s := slice("new")
			s.ResourceVersion = "7"
			_, err := c.DiscoveryV1().EndpointSlices("default").Create(ctx, s, metav1.CreateOptions{})
			return err
		}, apierrors.IsBadRequest},
		"create without a name": {func(ctx context.Context, c *fake.Clientset) error {
			_, err := c.DiscoveryV1().EndpointSlices("default").Create(ctx, slice(""), metav1.CreateOptions{})
			return err
		}, apierrors.IsBadRequest},
		"create in another namespace": {func(ctx context.Context, c *fake.Clientset) error {
			_, err := c.DiscoveryV1().EndpointSlices("elsewhere").Create(ctx, slice("new"), metav1.CreateOptions{})
			return err
		}, apierrors.IsBadRequest},
		"create in a namespace that goes": {func(ctx context.Context, c *fake.Clientset) error {
			s := slice("new")
			s.Namespace = "going"
			_, err := c.DiscoveryV1().EndpointSlices("going").Create(ctx, s, metav1.CreateOptions{})
			return err
		}, func(err error) bool { return apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) }},
		"delete with another UID": {func(ctx context.Context, c *fake.Clientset) error {
			return c.DiscoveryV1().EndpointSlices("default").Delete(ctx, "s", preconditions(metav1.Preconditions{UID: &uid}))
		}, apierrors.IsConflict},
		"delete with another version": {func(ctx context.Context, c *fake.Clientset) error {
			return c.DiscoveryV1().EndpointSlices("default").Delete(ctx, "s", preconditions(metav1.Preconditions{ResourceVersion: &version}))
		}, apierrors.IsConflict},
		"delete of what is not there": {func(ctx context.Context, c *fake.Clientset) error {
			return c.DiscoveryV1().EndpointSlices("default").Delete(ctx, "none", metav1.DeleteOptions{})
		}, apierrors.IsNotFound},
		"get of what is not there": {func(ctx context.Context, c *fake.Clientset) error {
			_, err := c.DiscoveryV1().EndpointSlices("default").Get(ctx, "none", metav1.GetOptions{})
			return err
		}, apierrors.IsNotFound},
		"a field selector it does not know": {func(ctx context.Context, c *fake.Clientset) error {
			_, err := c.CoreV1().Pods("default").List(ctx, metav1.ListOptions{FieldSelector: "spec.hostNetwork=true"})
			return err
		}, apierrors.IsBadRequest},
		"a subresource it does not know": {func(ctx context.Context, c *fake.Clientset) error {
			return c.CoreV1().Pods("default").Bind(ctx, &corev1.Binding{ObjectMeta: metav1.ObjectMeta{Name: "p"}}, metav1.CreateOptions{})
		}, apierrors.IsBadRequest},
		"a dry run": {func(ctx context.Context, c *fake.Clientset) error {
			return c.DiscoveryV1().EndpointSlices("default").Delete(ctx, "s", metav1.DeleteOptions{DryRun: []string{"All"}})
		}, apierrors.IsBadRequest},
	} {
		t.Run(name, func(t *testing.T) {
			c := NewClient(slice("s"), terminating)
			if err := tt.do(t.Context(), c); !tt.want(err) {
				t.Errorf("got %v", err)
			}
			if _, err := c.DiscoveryV1().EndpointSlices("default").Get(t.Context(), "s", metav1.GetOptions{}); err != nil {
				t.Errorf("afterwards: %v", err)
			}
		})
	}
}

func TestGenerateName(t *testing.T) {
	c := NewClient()
	names := map[string]bool{}
	for range 3 {
		s := slice("")
		s.GenerateName = strings.Repeat("x", 70)
		got := must(c.DiscoveryV1().EndpointSlices("default").Create(t.Context(), s, metav1.CreateOptions{}))
		if len(got.Name) != 63 || !strings.HasPrefix(got.Name, "xxx") || got.UID == "" {
			t.Errorf("name %q, uid %q", got.Name, got.UID)
		}
		names[got.Name] = true
	}
	if len(names) != 3 {
		t.Errorf("names are not unique: %v", names)
	}
}

func TestStatusIsASubresource(t *testing.T) {
	c := NewClient(pod("a", nil))
	p := pod("a", map[string]string{"x": "y"})
	p.Status.PodIP = "10.0.0.1"
	got := must(c.CoreV1().Pods("default").UpdateStatus(t.Context(), p, metav1.UpdateOptions{}))
	if got.Status.PodIP != "10.0.0.1" || len(got.Labels) != 0 {
		t.Errorf("status %v, labels %v", got.Status, got.Labels)
	}
	got = must(c.CoreV1().Pods("default").Patch(t.Context(), "a", types.StrategicMergePatchType,
		[]byte(`{"status":{"podIP":"10.0.0.2"},"metadata":{"labels":{"x":"y"}}}`), metav1.PatchOptions{}, "status"))
	if got.Status.PodIP != "10.0.0.2" || len(got.Labels) != 0 {
		t.Errorf("status %v, labels %v", got.Status, got.Labels)
	}
	got = must(c.CoreV1().Pods("default").Patch(t.Context(), "a", types.JSONPatchType,
		[]byte(`[{"op":"add","path":"/metadata/labels","value":{"x":"z"}}]`), metav1.PatchOptions{}))
	if got.Status.PodIP != "10.0.0.2" || got.Labels["x"] != "z" {
		t.Errorf("status %v, labels %v", got.Status, got.Labels)
	}
}

func TestDeletionWaits(t *testing.T) {
	api := NewAPI()
	c := api.Client()
	pods := c.CoreV1().Pods("default")
	held, graceful := pod("held", nil), pod("graceful", nil)
	held.Finalizers = []string{"example.com/x"}
	graceful.Spec.NodeName = "n"
	graceful.Spec.TerminationGracePeriodSeconds = new(int64(30))
	for _, p := range []*corev1.Pod{held, graceful} {
		must(pods.Create(t.Context(), p, metav1.CreateOptions{}))
		if err := pods.Delete(t.Context(), p.Name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		if got := must(pods.Get(t.Context(), p.Name, metav1.GetOptions{})); got.DeletionTimestamp == nil {
			t.Errorf("%s has no deletionTimestamp", p.Name)
		}
	}
	must(pods.Patch(t.Context(), "held", types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`), metav1.PatchOptions{}))
	if err := pods.Delete(t.Context(), "graceful", metav1.DeleteOptions{GracePeriodSeconds: new(int64(0))}); err != nil {
		t.Fatal(err)
	}
	if left := must(pods.List(t.Context(), metav1.ListOptions{})).Items; len(left) != 0 {
		t.Errorf("left: %v", left)
	}
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "n"}, Spec: corev1.NamespaceSpec{Finalizers: []corev1.FinalizerName{"kubernetes"}}}
	must(c.CoreV1().Namespaces().Create(t.Context(), ns, metav1.CreateOptions{}))
	if err := c.CoreV1().Namespaces().Delete(t.Context(), "n", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if got := must(c.CoreV1().Namespaces().Get(t.Context(), "n", metav1.GetOptions{})); got.Status.Phase != corev1.NamespaceTerminating {
		t.Errorf("phase %q", got.Status.Phase)
	}
}

func TestDeleteCollectionAndSelectors(t *testing.T) {
	c := NewClient(pod("a", map[string]string{"x": "1"}), pod("b", map[string]string{"x": "2"}), pod("c", nil))
	pods := c.CoreV1().Pods("default")
	if err := pods.DeleteCollection(t.Context(), metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: "x"}); err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, p := range must(c.CoreV1().Pods("").List(t.Context(), metav1.ListOptions{FieldSelector: "metadata.name!=z"})).Items {
		names = append(names, p.Name)
	}
	if !slices.Equal(names, []string{"c"}) {
		t.Errorf("left: %v", names)
	}
}

func TestWatchSeesEveryChangeFromAVersionOn(t *testing.T) {
	c := NewClient(pod("old", nil))
	pods := c.CoreV1().Pods("default")
	list := must(pods.List(t.Context(), metav1.ListOptions{}))
	// Far more events than anybody reads in between.
	const n = 1000
	for i := range n {
		must(pods.Create(t.Context(), pod(fmt.Sprintf("p%d", i), map[string]string{"x": "1"}), metav1.CreateOptions{}))
	}
	must(pods.Patch(t.Context(), "p0", types.MergePatchType, []byte(`{"metadata":{"labels":{"x":"2"}}}`), metav1.PatchOptions{}))
	w := must(pods.Watch(t.Context(), metav1.ListOptions{ResourceVersion: list.ResourceVersion, LabelSelector: "x=1"}))
	defer w.Stop()
	for i := range n {
		if e := <-w.ResultChan(); e.Type != watch.Added || e.Object.(*corev1.Pod).Name != fmt.Sprintf("p%d", i) {
			t.Fatalf("event %d: %v", i, e)
		}
	}
	if e := <-w.ResultChan(); e.Type != watch.Deleted || e.Object.(*corev1.Pod).Name != "p0" {
		t.Fatalf("an object that stops to match: %v", e)
	}
	must(pods.Patch(t.Context(), "p0", types.MergePatchType, []byte(`{"metadata":{"labels":{"x":"1"}}}`), metav1.PatchOptions{}))
	if e := <-w.ResultChan(); e.Type != watch.Added {
		t.Fatalf("an object that matches again: %v", e)
	}
}

func TestCompactMakesInformersListAgain(t *testing.T) {
	api := NewAPI(pod("a", nil))
	c := api.Client()
	old := must(c.CoreV1().Pods("default").List(t.Context(), metav1.ListOptions{})).ResourceVersion
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	factory := informers.NewSharedInformerFactory(c, 0)
	lister := factory.Core().V1().Pods().Lister()
	factory.Start(ctx.Done())
	defer factory.Shutdown()
	defer cancel()
	factory.WaitForCacheSync(ctx.Done())

	other := api.Client()
	must(other.CoreV1().Pods("default").Create(ctx, pod("b", nil), metav1.CreateOptions{}))
	api.Compact()
	if _, err := c.CoreV1().Pods("default").Watch(ctx, metav1.ListOptions{ResourceVersion: old}); !apierrors.IsResourceExpired(err) {
		t.Errorf("watch from before: %v", err)
	}
	must(other.CoreV1().Pods("default").Create(ctx, pod("c", nil), metav1.CreateOptions{}))
	if err := api.Eventually(ctx, func() error {
		for _, name := range []string{"a", "b", "c"} {
			if _, err := lister.Pods("default").Get(name); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	if got, want := Writes(other), map[string]int{"create pods": 2}; !maps.Equal(got, want) {
		t.Errorf("writes of the other client: %v, want %v", got, want)
	}
	if got := Writes(c); len(got) != 0 {
		t.Errorf("writes of the informers' client: %v", got)
	}
}

func TestObjectsAreCopies(t *testing.T) {
	c := NewClient()
	pods := c.CoreV1().Pods("default")
	w := must(pods.Watch(t.Context(), metav1.ListOptions{}))
	defer w.Stop()
	given := pod("a", map[string]string{"x": "1"})
	created := must(pods.Create(t.Context(), given, metav1.CreateOptions{}))
	want := created.DeepCopy()
	given.Labels["x"], created.Labels["x"] = "broken", "broken"
	(<-w.ResultChan()).Object.(*corev1.Pod).Labels["x"] = "broken"
	must(pods.List(t.Context(), metav1.ListOptions{})).Items[0].Labels["x"] = "broken"
	if got := must(pods.Get(t.Context(), "a", metav1.GetOptions{})); !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestEventuallyGivesTheLastError(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := NewAPI().Eventually(ctx, func() error { return fmt.Errorf("three are missing") })
	if err == nil || !strings.Contains(err.Error(), "three are missing") {
		t.Errorf("got %v", err)
	}
}
