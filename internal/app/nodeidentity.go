package app

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/util/cert"

	"github.com/endpointd/endpointd/internal/apiserver/pki"
)

// access says how the API is reached, as which program. hint is how to make a kubeconfig.
func access(kubeconfig, program, hint string) (*rest.Config, error) {
	var config *rest.Config
	var err error
	if kubeconfig == "" {
		if config, err = rest.InClusterConfig(); err != nil {
			return nil, fmt.Errorf("no --kubeconfig, and no service account of a pod: %w: give one of the two", err)
		}
	} else if config, err = clientcmd.BuildConfigFromFlags("", kubeconfig); err != nil {
		return nil, fmt.Errorf("kubeconfig %s: %w: %s", kubeconfig, err, hint)
	}
	config.UserAgent = program
	config.ContentType, config.AcceptContentTypes = runtime.ContentTypeProtobuf, runtime.ContentTypeProtobuf+","+runtime.ContentTypeJSON
	config.DisableCompression = true // inflating lists was a fifth of the CPU of a start, and the network is not what is scarce
	return config, nil
}

// identify settles the node's name: the kubeconfig of a node is good for no other one.
func (a *agent) identify(config *rest.Config) error {
	certified := certifiedNode(config)
	switch {
	case a.o.Name == "" && certified != "":
		a.o.Name = certified
	case a.o.Name == "":
		host, err := os.Hostname()
		if err != nil {
			return fmt.Errorf("name of this machine: %w: give the node one with --name", err)
		}
		a.o.Name = strings.ToLower(host)
	case certified != "" && certified != a.o.Name:
		return fmt.Errorf("kubeconfig %s is that of node %s, not of %s: leave out --name, or make another one with endpointd kubeconfig --node %s",
			a.o.Kubeconfig, certified, a.o.Name, a.o.Name)
	}
	if problems := validation.IsDNS1123Subdomain(a.o.Name); len(problems) > 0 {
		return fmt.Errorf("node name %q: %s: give another one with --name", a.o.Name, strings.Join(problems, "; "))
	}
	return nil
}

// certifiedNode is the node that the client certificate names, "" if there is none.
func certifiedNode(config *rest.Config) string {
	text := config.CertData
	if len(text) == 0 && config.CertFile != "" {
		var err error
		if text, err = os.ReadFile(config.CertFile); err != nil {
			return "" // the client will say so
		}
	}
	certs, err := cert.ParseCertsPEM(text)
	if err != nil {
		return ""
	}
	name, ok := strings.CutPrefix(certs[0].Subject.CommonName, pki.NodeUserPrefix)
	if !ok {
		return ""
	}
	return name
}

// mayMakePods says what is missing for the agent's work, before anything is begun.
func mayMakePods() error {
	if !capable(unix.CAP_SYS_ADMIN) || !capable(unix.CAP_NET_ADMIN) {
		return errors.New("pods need namespaces and routes, which this user may not make: run endpointd node as root " +
			"(CAP_SYS_ADMIN and CAP_NET_ADMIN), or use endpointd up, which does without")
	}
	return nil
}

// capable says whether this process has a capability.
func capable(number int) bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	return unix.Capget(&header, &data[0]) == nil && data[number/32].Effective&(1<<(number%32)) != 0
}
