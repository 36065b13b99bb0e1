package apitest_test

import (
	"testing"
	"testing/synctest"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/endpointd/endpointd/internal/controller/controllertest"
	"github.com/endpointd/endpointd/internal/node/apitest"
	"github.com/endpointd/endpointd/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

func TestOrdinaryClientIsServed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := apitest.New(controllertest.NewAPI())
		defer s.Close()
		c := s.Client().CoreV1().Nodes()
		made, err := c.Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}}, metav1.CreateOptions{})
		if err != nil || made.UID == "" {
			t.Fatal(made, err)
		}
		made.Status.NodeInfo.KernelVersion = "7"
		if _, err = c.UpdateStatus(t.Context(), made, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		list, err := c.List(t.Context(), metav1.ListOptions{})
		if err != nil || len(list.Items) != 1 || list.Items[0].Status.NodeInfo.KernelVersion != "7" {
			t.Fatal(list, err)
		}
		w, err := c.Watch(t.Context(), metav1.ListOptions{ResourceVersion: list.ResourceVersion})
		if err != nil {
			t.Fatal(err)
		}
		defer w.Stop()
		if err := c.Delete(t.Context(), "n", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		if e := <-w.ResultChan(); e.Type != "DELETED" || e.Object.(*corev1.Node).Name != "n" {
			t.Errorf("saw %v, want the deletion", e)
		}
		s.Down()
		if _, err := c.Get(t.Context(), "n", metav1.GetOptions{}); err == nil {
			t.Error("answered while it was away")
		}
	})
}
