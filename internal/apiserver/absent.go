package apiserver

import (
	"context"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	policyclient "k8s.io/client-go/kubernetes/typed/policy/v1"
)

// This file answers for kinds that the upstream registries ask about and that are not served.

// noDisruptionBudgets makes an eviction behave as in a namespace without PodDisruptionBudgets: it deletes the pod
// with its grace period. Budgets are not served, because without their controller they would refuse every eviction.
type noDisruptionBudgets struct {
	policyclient.PodDisruptionBudgetInterface // nil: evictions list and do nothing else when the list is empty
}

func (n noDisruptionBudgets) PodDisruptionBudgets(string) policyclient.PodDisruptionBudgetInterface {
	return n
}

func (noDisruptionBudgets) List(context.Context, metav1.ListOptions) (*policyv1.PodDisruptionBudgetList, error) {
	return &policyv1.PodDisruptionBudgetList{}, nil
}

type (
	validatingWebhook = admissionregistrationv1.ValidatingWebhookConfiguration
	mutatingWebhook   = admissionregistrationv1.MutatingWebhookConfiguration
)

// noWebhooks knows no webhook configurations, the one kind of object a token can be bound to that is not served.
type noWebhooks[T interface {
	*validatingWebhook | *mutatingWebhook
}] struct{}

func (noWebhooks[T]) Get(_ context.Context, name string, _ metav1.GetOptions) (T, error) {
	var none T
	return none, apierrors.NewNotFound(admissionregistrationv1.Resource("webhookconfigurations"), name)
}
