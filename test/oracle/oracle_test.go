package oracle

import (
	"testing"

	"github.com/endpointd/endpointd/internal/dataplane/dptest"
)

// tableDifferences are the cases of our suite that kube-proxy does not pass, and why that is meant: name → reason.
func tableDifferences() map[string]string {
	return map[string]string{
		"this node knows better than the API what its pods are worth":       "kube-proxy believes the API alone",
		"a packet that conntrack does not know does not reset a connection": "kube-proxy drops no INVALID packets in nftables mode; its option conntrack.tcpBeLiberal is off by default",
		"external policy Local: pods of other nodes are in the cluster too": "kube-proxy knows only this node's pods from the outside (detectLocalMode NodeCIDR), or else does not masquerade other nodes' pods, which then get no answer (ClusterCIDR)",
	}
}

// TestTable has kube-proxy go through the cases of our own suite.
func TestTable(t *testing.T) {
	kubeProxyPath(t)
	dptest.Compare(t, options(t), tableDifferences())
}
