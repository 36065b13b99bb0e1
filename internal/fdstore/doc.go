// Package fdstore has descriptors outlive the process that uses them: sockets collect on while a process is made anew, and the next one reads.
//
// It is the file descriptor store of systemd, both of its sides. A process gives its sockets to whoever supervises it, by the protocol of
// sd_notify(3) (FDSTORE=1, FDSTOREREMOVE=1, FDNAME), and gets them back when it is started again, by that of sd_listen_fds_with_names(3). [Keeper]
// is the side of the process, under systemd or any other supervisor; [Store] is the side of a supervisor that is not systemd.
//
// In: the environment (NOTIFY_SOCKET, LISTEN_PID, LISTEN_FDS, LISTEN_FDNAMES), sockets and their names. Out: messages, and the sockets of an earlier run.
//
// Invariants:
//   - A process without a supervisor works as if this package were not there.
//   - What is passed on is not inherited by children: neither descriptors nor variables.
//   - A Store listens to the process that it started and to nobody else. What it keeps is bounded, and the same socket is kept once.
//   - A message that the process sent before it died counts for the next one.
//
// One variable is ours. LISTEN_PID says whom descriptors are for, so that a child that got the variables by mistake leaves alone what it has at these
// numbers. It is set between fork and exec, where a Go program cannot do anything. So a Store sets LISTEN_PPID to its own process: the
// descriptors are for a child of it.
//
// It refuses to know what the descriptors are, and never reads from one.
//
// How to test: go test -race ./internal/fdstore: a process of the test binary is killed, and the next one reads what came between them. FuzzStore
// leads messages through a Store.
package fdstore
