package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"

	"github.com/spf13/cobra"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/endpointd/endpointd/internal/apiserver/pki"
	"github.com/endpointd/endpointd/internal/app"
)

// kubeconfigFlags are as given on the command line.
type kubeconfigFlags struct {
	node, dataDir, server, out string
	addresses                  []string
}

func newKubeconfig(streams IO) *cobra.Command {
	var f kubeconfigFlags
	cmd := &cobra.Command{
		Use:   "kubeconfig --node NAME",
		Short: "Issue the certificate of a node, in a kubeconfig",
		Long: `Issue a new key and certificate for a node and print a kubeconfig that holds them; --out writes it to a file of
mode 0600. Run it where the server's data folder is, and carry the file to the node:

  endpointd kubeconfig --node vm-1 --address 192.0.2.11 --server https://192.0.2.1:6443 --out vm-1.kubeconfig
  endpointd node --kubeconfig vm-1.kubeconfig

The node is the user system:node:NAME of the group system:nodes, which may do what an agent needs for its own Node and
pods. The same certificate serves the agent's port 10250: for kubectl logs, exec and port-forward it must hold the
addresses of the node, so name them all with --address.

The certificate ends after a year. To renew it, run the same command again, replace the file and restart the agent; the
earlier one stays valid until its own end.`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return f.run(streams) },
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.StringVar(&f.node, "node", "", "`name` of the node")
	flags.StringSliceVar(&f.addresses, "address", nil, "`addresses` at which the server reaches the node, comma-separated")
	flags.StringVar(&f.dataDir, "data-dir", dataDir(), "folder of the server")
	flags.StringVar(&f.server, "server", "", "`URL` at which the node reaches the server; empty is the one in admin.kubeconfig")
	flags.StringVar(&f.out, "out", "", "`file` to write; empty is standard output")
	return cmd
}

func (f *kubeconfigFlags) run(streams IO) error {
	node, err := f.parse()
	if err != nil {
		return err
	}
	server := f.server
	if server == "" {
		if server, err = adminServer(f.dataDir); err != nil {
			return err
		}
		if onLoopback(server) {
			fmt.Fprintf(streams.Err, "endpointd: note: %s works on this machine only; name what the node reaches with --server\n", server)
		}
	}
	text, err := pki.NodeKubeconfig(app.PKI(f.dataDir), server, node)
	if err != nil {
		return err
	}
	if f.out != "" {
		return pki.WriteNodeKubeconfig(f.out, text)
	}
	_, err = streams.Out.Write(text)
	return err
}

func (f *kubeconfigFlags) parse() (pki.Node, error) {
	node := pki.Node{Name: f.node}
	if f.node == "" {
		return node, flagError("node", "name the node")
	}
	for _, text := range f.addresses {
		addr, err := netip.ParseAddr(text)
		if err != nil {
			return node, flagError("address", "%q is not an IP address", text)
		}
		node.Addrs = append(node.Addrs, addr)
	}
	if f.server != "" {
		if u, err := url.Parse(f.server); err != nil || u.Scheme != "https" || u.Host == "" || (u.Path != "" && u.Path != "/") {
			return node, flagError("server", "%q is not https://HOST:PORT", f.server)
		}
	}
	return node, nil
}

// adminServer is the URL that the server wrote for the administrator.
func adminServer(dataDir string) (string, error) {
	path := app.Kubeconfig(dataDir)
	config, err := clientcmd.LoadFromFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("there is no server in %s: start `endpointd server` with this --data-dir first", filepath.Dir(path))
	}
	if err != nil {
		return "", fmt.Errorf("%s: %w: name the server with --server", path, err)
	}
	if c := config.Contexts[config.CurrentContext]; c != nil {
		if cluster := config.Clusters[c.Cluster]; cluster != nil {
			return cluster.Server, nil
		}
	}
	return "", fmt.Errorf("%s names no server: name it with --server", path)
}

func onLoopback(server string) bool {
	u, err := url.Parse(server)
	if err != nil {
		return false
	}
	ip := net.ParseIP(u.Hostname())
	return u.Hostname() == "localhost" || ip != nil && ip.IsLoopback()
}
