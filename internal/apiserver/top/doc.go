// Package top serves metrics.k8s.io/v1beta1, which kubectl top reads: what nodes and pods use of CPU and memory.
//
// In: which nodes and pods there are (Source), and the summaries of the nodes' agents (Ask). Out: the storages of the group's two
// resources, for an API server to serve. Both can be listed and read, nothing else.
//
// Agents tell CPU time as a counter, so usage is the average between two looks at a node. The later one is now, or at most a second
// ago (fresh). The earlier one is that of the request before, if that was at most a minute ago (stale), else one is
// taken first and the second 200 ms after it (pause): so the first kubectl top in a while takes that longer. A container that
// started between the two looks has all its use between them. Window in the API says how far apart they were.
//
// Invariants: nothing runs when nobody asks, and a minute after the last request nothing is kept. Nodes are asked in parallel, each
// by one request at a time, for 2 s at most (limit). A node whose agent does not answer is left out, with its pods; it never
// fails a list. Pods of which no container runs are left out, too, and those that their agent does not run itself (runtime class external).
//
// It refuses: watches (upstream's metrics have none, either), custom metrics, history. To test: go test ./internal/apiserver/top.
package top
