package apiserver

import (
	"io"

	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/admission/initializer"
	"k8s.io/apiserver/pkg/admission/plugin/namespace/lifecycle"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	basecompatibility "k8s.io/component-base/compatibility"
	"k8s.io/kubernetes/plugin/pkg/admission/network/defaultingressclass"
	"k8s.io/kubernetes/plugin/pkg/admission/serviceaccount"
)

// newAdmission chains the plugins that the package comment names, in upstream's order.
func newAdmission(nodes nodeAdmission, client kubernetes.Interface, inf informers.SharedInformerFactory, authz authorizer.Authorizer, version basecompatibility.EffectiveVersion, stop <-chan struct{}) (admission.Interface, error) {
	plugins := admission.NewPlugins()
	lifecycle.Register(plugins)
	serviceaccount.Register(plugins)
	defaultingressclass.Register(plugins)
	plugins.Register(nodeAdmissionName, func(io.Reader) (admission.Interface, error) { return nodes, nil })
	init := initializer.New(client, nil, inf, authz, utilfeature.DefaultFeatureGate, version, stop, nil)
	return plugins.NewFromPlugins([]string{lifecycle.PluginName, serviceaccount.PluginName, defaultingressclass.PluginName, nodeAdmissionName}, noPluginConfig{}, init, nil)
}

// noPluginConfig: none of the plugins takes any.
type noPluginConfig struct{}

func (noPluginConfig) ConfigFor(string) (io.Reader, error) { return nil, nil }
