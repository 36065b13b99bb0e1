package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// accessScenarios: who may do what.
func accessScenarios() []scenario {
	return []scenario{
		{"token", accessToken},
		{"can-i", accessCanI},
		{"anonymous", accessAnonymous},
		{"files", accessFiles},
	}
}

// bearer is a kubeconfig file with a token, and no more, for the server.
func (s *space) bearer(token string) string {
	file := filepath.Join(s.TempDir(), "kubeconfig")
	check(s.T, os.WriteFile(file, fmt.Appendf(nil, `{apiVersion: v1, kind: Config, current-context: c, contexts: [{name: c, context: {cluster: c, user: u}}],
clusters: [{name: c, cluster: {server: "https://%s", certificate-authority: %q}}], users: [{name: u, user: {token: %q}}]}`,
		s.server.Listen, filepath.Join(s.server.DataDir, "pki", "ca.crt"), token), 0o600))
	return "--kubeconfig=" + file
}

func accessToken(s *space) {
	s.run("create", "serviceaccount", "robot")
	s.run("create", "secret", "generic", "secret", "--from-literal=a=b")
	user := s.bearer(strings.TrimSpace(s.run("create", "token", "robot")))
	name := "system:serviceaccount:" + s.name + ":robot"
	s.has(s.run(user, "auth", "whoami"), "Username "+name, "system:serviceaccounts:"+s.name)
	forbidden := func(args ...string) {
		s.Helper()
		s.has(s.refused(append([]string{user}, args...)...), `forbidden: User "`+name+`" cannot `)
	}
	forbidden("get", "secrets")
	forbidden("get", "secret", "secret")
	forbidden("get", "secrets", "-A")
	forbidden("get", "services")
	forbidden("create", "configmap", "c")
	forbidden("delete", "namespace", s.name)

	// A role gives exactly what it says.
	s.run("create", "role", "reader", "--verb=get,list", "--resource=services")
	s.run("create", "rolebinding", "reader", "--role=reader", "--serviceaccount="+s.name+":robot")
	s.await(func(context.Context) error {
		_, err := s.try(user, "get", "services")
		return err
	})
	forbidden("get", "secrets")
	forbidden("get", "services", "-n", "default")
	s.has(s.refused(user, "create", "service", "clusterip", "x", "--tcp=80"), "is forbidden")

	// A token ends with what it is bound to.
	s.run("delete", "serviceaccount", "robot")
	s.await(func(context.Context) error {
		out, err := s.try(user, "get", "services")
		if err == nil || !strings.Contains(out.Stderr, "Unauthorized") {
			return fmt.Errorf("the token of a deleted account works: %s%s", out.Stdout, out.Stderr)
		}
		return nil
	})
	s.has(s.refused(s.bearer("nonsense"), "get", "services"), "Unauthorized")
	s.has(s.run("create", "token", "default", "--audience=a", "--duration=1h"), ".")
	s.has(s.refused(s.bearer(strings.TrimSpace(s.run("create", "token", "default", "--audience=another"))), "get", "services"), "Unauthorized")
}

func accessCanI(s *space) {
	if got := strings.TrimSpace(s.run("auth", "can-i", "delete", "secrets")); got != "yes" {
		s.Errorf("the administrator: %s", got)
	}
	as := func(user, want string, args ...string) {
		s.Helper()
		out, err := s.try(append([]string{"auth", "can-i", "--as=" + user}, args...)...)
		if got := strings.TrimSpace(out.Stdout); got != want || (err == nil) != (want == "yes") {
			s.Errorf("can %s %s: %s (%v), want %s", user, strings.Join(args, " "), got, err, want)
		}
	}
	as("jane", "no", "get", "services")
	s.run("create", "rolebinding", "jane", "--clusterrole=view", "--user=jane")
	s.await(func(context.Context) error {
		_, err := s.try("auth", "can-i", "get", "services", "--as=jane")
		return err
	})
	as("jane", "yes", "list", "endpointslices.discovery.k8s.io")
	as("jane", "no", "get", "secrets")
	as("jane", "no", "delete", "services")
	as("jane", "no", "get", "services", "--namespace=default")
	as("system:serviceaccount:"+s.name+":default", "no", "get", "secrets")
	s.has(s.run("auth", "can-i", "--list", "--as=jane"), "services [] [] [get list watch]")
}

func (s *space) httpClient() *http.Client {
	ca, err := os.ReadFile(filepath.Join(s.server.DataDir, "pki", "ca.crt"))
	check(s.T, err)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}}}
	s.Cleanup(client.CloseIdleConnections)
	return client
}

// Without credentials there is health, and nothing else.
func accessAnonymous(s *space) {
	client := s.httpClient()
	for path, want := range map[string]int{
		"/readyz": 200, "/livez": 200, "/healthz": 200,
		"/": 401, "/api": 401, "/apis": 401, "/api/v1/namespaces": 401, "/api/v1/secrets": 401, "/metrics": 401, "/openapi/v3": 401, "/openapi/v2": 401,
		"/debug/pprof/": 401, "/logs": 401, "/nothing": 401, "/.well-known/openid-configuration": 401, "/openid/v1/jwks": 401, "/readyz/etcd": 401, "/configz": 401,
	} {
		response, err := client.Get("https://" + s.server.Listen + path)
		check(s.T, err)
		body, err := io.ReadAll(response.Body)
		check(s.T, err)
		check(s.T, response.Body.Close())
		if response.StatusCode != want && (want != http.StatusUnauthorized || response.StatusCode != http.StatusForbidden) {
			s.Errorf("%s: %d %.200s, want %d", path, response.StatusCode, body, want)
		}
	}
	plain, err := http.Get("http://" + s.server.Listen + "/readyz")
	check(s.T, err)
	check(s.T, plain.Body.Close())
	if plain.StatusCode != http.StatusBadRequest {
		s.Errorf("without TLS: %d", plain.StatusCode)
	}
	http.DefaultClient.CloseIdleConnections()
	if _, err := (&http.Client{}).Get("https://" + s.server.Listen + "/readyz"); err == nil {
		s.Error("a client that does not know the CA trusts the server")
	}
}

// No file under the data folder is for other users.
func accessFiles(s *space) {
	info, err := os.Stat(s.server.Kubeconfig)
	check(s.T, err)
	if info.Mode().Perm() != 0o600 {
		s.Errorf("%s has mode %v", s.server.Kubeconfig, info.Mode())
	}
	private(s.T, s.server.DataDir)
}

// private fails for each file or folder that others could reach: by its own mode, for files, and by that of its folder.
func private(t *testing.T, dir string) {
	t.Helper()
	files := 0
	check(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		files++
		// What counts for a socket is its folder: on connect, not every system looks at the mode of the socket.
		if info.Mode().Perm()&0o077 != 0 && info.Mode().Type() != fs.ModeSocket {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		return nil
	}))
	if files < 10 {
		t.Errorf("only %d files in %s", files, dir)
	}
}
