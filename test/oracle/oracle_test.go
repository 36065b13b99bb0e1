package oracle

import "testing"

import "github.com/endpointd/endpointd/internal/dataplane/dptest"

// TestTable has kube-proxy go through the cases of our own suite.
func TestTable(t *testing.T) {
	program(t)
	dptest.Compare(t, options(t), map[string]string{
	"this node knows better: a pod whose process died gets nothing": "kube-proxy believes the API alone",
	"a packet that conntrack does not know does not reset a connection": "kube-proxy in nftables mode drops no INVALID packets (conntrack.tcpBeLiberal would help, and is not the default)",
	"external policy Local: pods of other nodes are in the cluster too": "NodeCIDR",
	})
}
