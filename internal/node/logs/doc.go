// Package logs reads what a container wrote: one attempt's log in the CRI format, as `kubectl logs` wants it.
//
// In: the path of a log that another process writes and rotates (FILE is the current one, FILE.1 the newest that was
// rotated away, FILE.2 the one before), and [Options]. Out: the lines, on an io.Writer.
//
// Invariants: lines come in the order in which they were written, none twice and none left out, whatever is rotated
// meanwhile, unless a file was deleted before this package could open it. The pieces of a long line (tag P) are joined.
// Memory is bounded by the longest line that is kept whole, never by the size of a log. Asking for the last lines reads only the end.
//
// What it refuses: to write, rotate or delete logs (the runtime does), to know pods, and to fail on a line that is no
// log entry: such lines are left out.
//
// How to test: go test -race ./internal/node/logs; go test -fuzz FuzzParse ./internal/node/logs. No privileges are needed.
package logs
