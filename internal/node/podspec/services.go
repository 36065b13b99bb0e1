package podspec

import (
	"fmt"
	"net"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// The Service of the API itself, which every pod has variables of.
const (
	apiNamespace = "default"
	apiService   = "kubernetes"
)

// serviceVariables are those of the Services of the pod's namespace, when the pod wants them, and of the API's Service
// (https://kubernetes.io/docs/concepts/services-networking/service/, "Environment variables").
func (b *Builder) serviceVariables(pod *corev1.Pod) (map[string]string, error) {
	vars := map[string]string{}
	services, err := b.options.Source.Services(apiNamespace)
	if err != nil {
		return nil, fmt.Errorf("services of namespace %s: %w", apiNamespace, err)
	}
	for _, s := range services {
		if s.Name == apiService {
			addServiceVariables(vars, s)
		}
	}
	if links := pod.Spec.EnableServiceLinks; links != nil && !*links {
		return vars, nil
	}
	if pod.Namespace != apiNamespace {
		if services, err = b.options.Source.Services(pod.Namespace); err != nil {
			return nil, fmt.Errorf("services of namespace %s: %w", pod.Namespace, err)
		}
	}
	for _, s := range services {
		addServiceVariables(vars, s)
	}
	return vars, nil
}

func addServiceVariables(vars map[string]string, s *corev1.Service) {
	ip := s.Spec.ClusterIP
	if ip == "" || ip == corev1.ClusterIPNone || len(s.Spec.Ports) == 0 {
		return
	}
	prefix := variableName(s.Name)
	vars[prefix+"_SERVICE_HOST"] = ip
	vars[prefix+"_SERVICE_PORT"] = strconv.Itoa(int(s.Spec.Ports[0].Port))
	for i, p := range s.Spec.Ports {
		port := strconv.Itoa(int(p.Port))
		if p.Name != "" {
			vars[prefix+"_SERVICE_PORT_"+variableName(p.Name)] = port
		}
		protocol := p.Protocol
		if protocol == "" {
			protocol = corev1.ProtocolTCP
		}
		lower := strings.ToLower(string(protocol))
		url := lower + "://" + net.JoinHostPort(ip, port)
		if i == 0 {
			vars[prefix+"_PORT"] = url
		}
		one := prefix + "_PORT_" + port + "_" + strings.ToUpper(string(protocol))
		vars[one], vars[one+"_PROTO"], vars[one+"_PORT"], vars[one+"_ADDR"] = url, lower, port, ip
	}
}

func variableName(name string) string {
	return strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
}
