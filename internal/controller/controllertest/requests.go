package controllertest

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strconv"
	"time"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	corev1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/client-go/kubernetes/scheme"
	clienttesting "k8s.io/client-go/testing"
)

// react answers every request but watches.
func (a *API) react(action clienttesting.Action) (handled bool, ret runtime.Object, err error) {
	gvr, ns, sub := action.GetResource(), action.GetNamespace(), action.GetSubresource()
	if sub != "" && sub != "status" {
		return true, nil, apierrors.NewBadRequest(fmt.Sprintf("controllertest knows no subresource %s of %s", sub, gvr.Resource))
	}
	var obj object
	// By type, because some of the interfaces have the same methods.
	switch action := action.(type) {
	case clienttesting.GetActionImpl:
		obj, err = a.get(gvr, ns, action.Name)
	case clienttesting.ListActionImpl:
		ret, err = a.listOf(gvr, ns, action.Kind, action.ListOptions)
		return true, ret, err
	case clienttesting.CreateActionImpl:
		obj, err = a.create(gvr, ns, copyOf(action.Object.(object)), action.CreateOptions)
	case clienttesting.UpdateActionImpl:
		if len(action.UpdateOptions.DryRun) > 0 {
			return true, nil, errDryRun()
		}
		obj, err = a.update(gvr, ns, sub, copyOf(action.Object.(object)))
	case clienttesting.PatchActionImpl:
		if len(action.PatchOptions.DryRun) > 0 {
			return true, nil, errDryRun()
		}
		obj, err = a.patch(action)
	case clienttesting.DeleteActionImpl:
		return true, nil, a.delete(gvr, ns, action.Name, action.DeleteOptions)
	case clienttesting.DeleteCollectionActionImpl:
		return true, nil, a.deleteAll(gvr, ns, action)
	default:
		err = apierrors.NewBadRequest(fmt.Sprintf("controllertest knows no %T", action))
	}
	if err != nil {
		return true, nil, err
	}
	return true, obj, nil
}

func errDryRun() error { return apierrors.NewBadRequest("controllertest knows no dry runs") }

func (a *API) get(gvr schema.GroupVersionResource, ns, name string) (object, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	obj := a.objects[gvr][types.NamespacedName{Namespace: ns, Name: name}]
	if obj == nil {
		return nil, apierrors.NewNotFound(gvr.GroupResource(), name)
	}
	return copyOf(obj), nil
}

func (a *API) listOf(gvr schema.GroupVersionResource, ns string, kind schema.GroupVersionKind, opts metav1.ListOptions) (runtime.Object, error) {
	sel, err := selectionOf(ns, opts)
	if err != nil {
		return nil, err
	}
	kind.Kind += "List"
	list, err := scheme.Scheme.New(kind)
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", gvr.Resource, err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	var items []runtime.Object
	for _, obj := range a.list(gvr, sel) {
		items = append(items, copyOf(obj))
	}
	if err := meta.SetList(list, items); err != nil {
		return nil, fmt.Errorf("list %s: %w", gvr.Resource, err)
	}
	list.(metav1.ListInterface).SetResourceVersion(strconv.FormatUint(a.revision, 10))
	return list, nil
}

// create takes ownership of obj.
func (a *API) create(gvr schema.GroupVersionResource, ns string, obj object, opts metav1.CreateOptions) (object, error) {
	if len(opts.DryRun) > 0 {
		return nil, errDryRun()
	}
	if obj.GetResourceVersion() != "" {
		return nil, apierrors.NewBadRequest("resourceVersion should not be set on objects to be created")
	}
	if obj.GetNamespace() == "" {
		obj.SetNamespace(ns)
	}
	if obj.GetNamespace() != ns {
		return nil, apierrors.NewBadRequest("the namespace of the provided object does not match the namespace sent on the request")
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if obj.GetName() == "" {
		if obj.GetGenerateName() == "" {
			return nil, apierrors.NewBadRequest("name or generateName is required")
		}
		obj.SetName(generateName(obj.GetGenerateName(), a.revision+1))
	}
	if err := a.checkNamespace(gvr, obj); err != nil {
		return nil, err
	}
	if a.objects[gvr][types.NamespacedName{Namespace: ns, Name: obj.GetName()}] != nil {
		return nil, apierrors.NewAlreadyExists(gvr.GroupResource(), obj.GetName())
	}
	if obj.GetUID() == "" {
		obj.SetUID(types.UID(fmt.Sprintf("00000000-0000-4000-8000-%012d", a.revision+1)))
	}
	if created := obj.GetCreationTimestamp(); created.IsZero() {
		obj.SetCreationTimestamp(metav1.NewTime(time.Now().Truncate(time.Second)))
	}
	return copyOf(a.commit(gvr, nil, obj)), nil
}

// generateName does what the API server does, with the revision instead of
// chance.
func generateName(base string, revision uint64) string {
	const longest, random = 63, 5
	suffix := fmt.Sprintf("%0*s", random, strconv.FormatUint(revision, 36))
	return base[:min(len(base), longest-random)] + suffix[len(suffix)-random:]
}

// checkNamespace refuses new objects where the Namespace is being deleted. A
// Namespace that does not exist is good enough: most tests do not care.
func (a *API) checkNamespace(gvr schema.GroupVersionResource, obj object) error {
	ns := a.objects[corev1.SchemeGroupVersion.WithResource("namespaces")][types.NamespacedName{Name: obj.GetNamespace()}]
	if ns == nil || ns.GetDeletionTimestamp() == nil {
		return nil
	}
	err := apierrors.NewForbidden(gvr.GroupResource(), obj.GetName(),
		fmt.Errorf("unable to create new content in namespace %s because it is being terminated", ns.GetName()))
	err.ErrStatus.Details.Causes = append(err.ErrStatus.Details.Causes, metav1.StatusCause{
		Type: corev1.NamespaceTerminatingCause, Message: "namespace " + ns.GetName() + " is being terminated", Field: "metadata.namespace",
	})
	return err
}

// update takes ownership of obj.
func (a *API) update(gvr schema.GroupVersionResource, ns, sub string, obj object) (object, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.replace(gvr, ns, sub, obj)
}

// replace is update with mu held.
func (a *API) replace(gvr schema.GroupVersionResource, ns, sub string, obj object) (object, error) {
	name := obj.GetName()
	old := a.objects[gvr][types.NamespacedName{Namespace: ns, Name: name}]
	if old == nil {
		return nil, apierrors.NewNotFound(gvr.GroupResource(), name)
	}
	if v := obj.GetResourceVersion(); v != "" && v != old.GetResourceVersion() {
		return nil, apierrors.NewConflict(gvr.GroupResource(), name,
			fmt.Errorf("the object has been modified; please apply your changes to the latest version and try again"))
	}
	if uid := obj.GetUID(); uid != "" && uid != old.GetUID() {
		return nil, errUID(gvr, name, uid, old)
	}
	if sub == "status" {
		next := copyOf(old)
		status := reflect.ValueOf(next).Elem().FieldByName("Status")
		if !status.IsValid() {
			return nil, apierrors.NewNotFound(gvr.GroupResource(), name+"/status")
		}
		status.Set(reflect.ValueOf(obj).Elem().FieldByName("Status"))
		obj = next
	}
	obj.SetNamespace(ns)
	obj.SetUID(old.GetUID())
	obj.SetResourceVersion(old.GetResourceVersion())
	if created := obj.GetCreationTimestamp(); created.IsZero() {
		obj.SetCreationTimestamp(old.GetCreationTimestamp())
	}
	if err := checkImmutable(old, obj); err != nil {
		return nil, err
	}
	if equality.Semantic.DeepEqual(old, obj) {
		return copyOf(old), nil
	}
	if obj.GetDeletionTimestamp() != nil && held(old) && !held(obj) {
		a.commit(gvr, old, nil)
		return obj, nil
	}
	return copyOf(a.commit(gvr, old, obj)), nil
}

func errUID(gvr schema.GroupVersionResource, name string, want types.UID, got object) error {
	return apierrors.NewConflict(gvr.GroupResource(), name,
		fmt.Errorf("Precondition failed: UID in precondition: %v, UID in object meta: %v", want, got.GetUID())) //nolint:staticcheck // the server's words
}

func checkImmutable(old, obj object) error {
	was, ok := old.(*discovery.EndpointSlice)
	if !ok {
		return nil
	}
	if is := obj.(*discovery.EndpointSlice); is.AddressType != was.AddressType {
		return apierrors.NewInvalid(discovery.SchemeGroupVersion.WithKind("EndpointSlice").GroupKind(), old.GetName(),
			field.ErrorList{field.Invalid(field.NewPath("addressType"), is.AddressType, "field is immutable")})
	}
	return nil
}

// held says whether something has to happen before the object may go.
func held(obj object) bool {
	ns, ok := obj.(*corev1.Namespace)
	return len(obj.GetFinalizers()) > 0 || ok && len(ns.Spec.Finalizers) > 0
}

func (a *API) patch(action clienttesting.PatchActionImpl) (object, error) {
	gvr, ns, name := action.GetResource(), action.GetNamespace(), action.Name
	a.mu.Lock()
	defer a.mu.Unlock()
	old := a.objects[gvr][types.NamespacedName{Namespace: ns, Name: name}]
	if old == nil {
		return nil, apierrors.NewNotFound(gvr.GroupResource(), name)
	}
	next := emptyOf(old)
	if err := patched(old, next, action.PatchType, action.Patch); err != nil {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("patch %s %s: %v", gvr.Resource, name, err))
	}
	if next.GetName() != name || next.GetNamespace() != ns {
		return nil, apierrors.NewBadRequest("the name of the object does not match the name on the URL")
	}
	return a.replace(gvr, ns, action.GetSubresource(), next)
}

// patched writes old with the patch applied into next, which is empty.
func patched(old, next object, kind types.PatchType, patch []byte) error {
	doc, err := json.Marshal(old)
	if err != nil {
		return err
	}
	switch kind {
	case types.MergePatchType:
		doc, err = jsonpatch.MergePatch(doc, patch)
	case types.StrategicMergePatchType:
		doc, err = strategicpatch.StrategicMergePatch(doc, patch, next)
	case types.JSONPatchType:
		var p jsonpatch.Patch
		if p, err = jsonpatch.DecodePatch(patch); err == nil {
			doc, err = p.Apply(doc)
		}
	default:
		err = fmt.Errorf("controllertest knows no %s", kind)
	}
	if err != nil {
		return err
	}
	return json.Unmarshal(doc, next)
}

func (a *API) delete(gvr schema.GroupVersionResource, ns, name string, opts metav1.DeleteOptions) error {
	if len(opts.DryRun) > 0 {
		return errDryRun()
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	old := a.objects[gvr][types.NamespacedName{Namespace: ns, Name: name}]
	if old == nil {
		return apierrors.NewNotFound(gvr.GroupResource(), name)
	}
	if p := opts.Preconditions; p != nil {
		if p.UID != nil && *p.UID != old.GetUID() {
			return errUID(gvr, name, *p.UID, old)
		}
		if v := p.ResourceVersion; v != nil && *v != old.GetResourceVersion() {
			return apierrors.NewConflict(gvr.GroupResource(), name, fmt.Errorf( //nolint:staticcheck // the server's words
				"Precondition failed: ResourceVersion in precondition: %v, ResourceVersion in object meta: %v", *v, old.GetResourceVersion()))
		}
	}
	grace := graceOf(old, opts)
	switch {
	case grace == 0 && !held(old):
		a.commit(gvr, old, nil)
	case old.GetDeletionTimestamp() == nil:
		next := copyOf(old)
		at := metav1.NewTime(time.Now().Add(time.Duration(grace) * time.Second).Truncate(time.Second))
		next.SetDeletionTimestamp(&at)
		next.SetDeletionGracePeriodSeconds(&grace)
		if ns, ok := next.(*corev1.Namespace); ok {
			ns.Status.Phase = corev1.NamespaceTerminating
		}
		a.commit(gvr, old, next)
	}
	return nil
}

// graceOf is how many seconds a Pod keeps: as asked for, else as its spec says,
// which has no default here. A Pod without a node keeps none, and other kinds
// do not either.
func graceOf(obj object, opts metav1.DeleteOptions) int64 {
	pod, ok := obj.(*corev1.Pod)
	switch {
	case !ok || pod.Spec.NodeName == "":
		return 0
	case opts.GracePeriodSeconds != nil:
		return *opts.GracePeriodSeconds
	case pod.Spec.TerminationGracePeriodSeconds != nil:
		return *pod.Spec.TerminationGracePeriodSeconds
	}
	return 0
}

func (a *API) deleteAll(gvr schema.GroupVersionResource, ns string, action clienttesting.DeleteCollectionActionImpl) error {
	sel, err := selectionOf(ns, action.ListOptions)
	if err != nil {
		return err
	}
	a.mu.Lock()
	found := a.list(gvr, sel)
	a.mu.Unlock()
	for _, obj := range found {
		err := a.delete(gvr, obj.GetNamespace(), obj.GetName(), action.DeleteOptions)
		if err != nil && !apierrors.IsNotFound(err) {
			return err
		}
	}
	return nil
}
