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
	var data [3]string // CA, certificate, key in base64
	for i, part := range []string{f.CACert, f.AdminCert, f.AdminKey} {
		text, err := os.ReadFile(part)
		if err != nil {
			return hint(err)
		}
		data[i] = base64.StdEncoding.EncodeToString(text)
	}
	text := fmt.Appendf(nil, `apiVersion: v1
kind: Config
clusters:
- name: endpointd
  cluster:
    server: %s
    certificate-authority-data: %s
users:
- name: admin
  user:
    client-certificate-data: %s
    client-key-data: %s
contexts:
- name: endpointd
  context:
    cluster: endpointd
    user: admin
current-context: endpointd
`, server, data[0], data[1], data[2])
	if have, err := os.ReadFile(path); err == nil && bytes.Equal(have, text) {
		if err := os.Chmod(path, fileMode); err != nil {
			return hint(err)
		}
		return nil
	}
	return writeFile(path, text)
}
