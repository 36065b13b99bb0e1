// Package oracle compares our data plane with a stock kube-proxy.
//
// What it is: kube-proxy 1.37 in nftables mode, built from its Go module (folder kubeproxy, a module of its own), in a [dptest.World], fed by an
// API of two dozen lines that serves lists and watches. It goes through the cases of package dptest, so what they expect is
// not our opinion alone; and random Services are put into two Worlds, one with kube-proxy and one with our proxier, and the same clients dial the same
// frontends in both.
//
// In: nothing. Out: what differs. Differences that are meant are in a list, each with its reason; one that is no more fails the test too.
//
// Invariants: kube-proxy runs in namespaces of the test's own. It is built into .cache, outside of them, once.
//
// It refuses to measure: that is package bench's. How to test: go test ./test/oracle; it needs the program nft (Debian: nftables).
package oracle
