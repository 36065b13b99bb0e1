// Command kubeproxy is a stock kube-proxy, the oracle of the tests in test/oracle.
//
// What it is: upstream's program and nothing of ours, in a module of its own, so that what it needs is no requirement of endpointd. In and
// out: as upstream's. It refuses to be more: no flag and no default differs. How to test: go test ./test/oracle, in the module above.
package main

import (
	"os"

	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	"k8s.io/kubernetes/cmd/kube-proxy/app"
)

func main() { os.Exit(cli.Run(app.NewProxyCommand())) }
