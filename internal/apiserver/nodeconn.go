package apiserver

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"

	"k8s.io/apimachinery/pkg/types"
	kubeletclient "k8s.io/kubernetes/pkg/kubelet/client"
)

// nodeConnections is how pods' subresources reach nodes. It says what to do when a node's certificate does not verify:
// mostly it lacks the address that the Node states, or has ended.
type nodeConnections struct {
	kubeletclient.ConnectionInfoGetter
}

// GetConnectionInfo implements kubeletclient.ConnectionInfoGetter.
func (n nodeConnections) GetConnectionInfo(ctx context.Context, node types.NodeName) (*kubeletclient.ConnectionInfo, error) {
	info, err := n.ConnectionInfoGetter.GetConnectionInfo(ctx, node)
	if err != nil {
		return nil, err
	}
	info.Transport = nodeTransport{info.Transport, string(node)}
	return info, nil
}

type nodeTransport struct {
	http.RoundTripper
	node string
}

// RoundTrip implements http.RoundTripper.
func (t nodeTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	response, err := t.RoundTripper.RoundTrip(r)
	if _, unverified := errors.AsType[*tls.CertificateVerificationError](err); unverified {
		return nil, fmt.Errorf("node %s: its certificate does not verify: %w: issue one with `endpointd kubeconfig --node %s --address %s`, and restart its agent with it",
			t.node, err, t.node, r.URL.Hostname())
	}
	return response, err
}

// WrappedRoundTripper is for upgraded connections (exec, attach, port-forward), which are dialed past RoundTrip.
func (t nodeTransport) WrappedRoundTripper() http.RoundTripper { return t.RoundTripper }
