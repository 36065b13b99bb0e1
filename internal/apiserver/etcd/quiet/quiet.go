// Package quiet keeps the etcd client inside k8s.io/apiserver from writing JSON lines to standard error.
//
// In and out: nothing; importing it is all. That client's logger is made by an init function of
// k8s.io/apiserver/pkg/storage/storagebackend/factory, from a configuration that etcd exports as a variable; no option,
// flag or environment variable reaches it. What it reports comes back as errors of requests, which are logged.
//
// Invariant: this package imports nothing but that variable's, so it is initialized first. Go initializes packages in the
// order of their import paths as soon as their imports are (Go specification, Program initialization), and
// github.com/endpointd comes before k8s.io.
//
// To test it: TestQuietStop in internal/app.
package quiet

import "go.etcd.io/etcd/client/pkg/v3/logutil"

// It must be init: the variable is read during initialization.
func init() {
	logutil.DefaultZapLoggerConfig.OutputPaths = nil
	logutil.DefaultZapLoggerConfig.ErrorOutputPaths = nil
}
