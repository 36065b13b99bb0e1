package pki

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"os"
)

// WriteKubeconfig writes the administrator's kubeconfig, with the certificates inside, for the given server URL; mode
// 0600. A file that is right already is not touched.
func WriteKubeconfig(path, server string, f *Files) error {
	var data [3][]byte // CA, certificate, key
	for i, part := range []string{f.CACert, f.AdminCert, f.AdminKey} {
		var err error
		if data[i], err = os.ReadFile(part); err != nil {
			return hint(err)
		}
	}
	text := kubeconfig(server, "admin", data[0], data[1], data[2])
	if have, err := os.ReadFile(path); err == nil && bytes.Equal(have, text) {
		if err := os.Chmod(path, fileMode); err != nil {
			return hint(err)
		}
		return nil
	}
	return writeFile(path, text)
}

// kubeconfig holds everything itself; ca, cert and key are in PEM.
func kubeconfig(server, user string, ca, cert, key []byte) []byte {
	text := base64.StdEncoding.EncodeToString
	return fmt.Appendf(nil, `apiVersion: v1
kind: Config
clusters:
- name: endpointd
  cluster:
    server: %s
    certificate-authority-data: %s
users:
- name: %s
  user:
    client-certificate-data: %s
    client-key-data: %s
contexts:
- name: endpointd
  context:
    cluster: endpointd
    user: %s
current-context: endpointd
`, server, text(ca), user, text(cert), text(key), user)
}
