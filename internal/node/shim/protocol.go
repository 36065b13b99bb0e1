package shim

import (
	"time"

	"github.com/endpointd/endpointd/internal/node/container"
	"github.com/endpointd/endpointd/internal/node/shim/launch"
)

// Names within a pod's folder.
const (
	BundleFile    = "bundle.json"
	SocketFile    = "sock"
	StateDir      = "state" // <container>.json, each a container.Status
	LogDir        = "logs"
	StageDir      = "root"
	ComplaintFile = "shim.log" // what the shim has to say when it fails
)

// ReadyFD is the descriptor on which a shim writes Ready, or why it cannot be.
const ReadyFD = 3

// LockFD is a descriptor of the locked file that says, while it is open, that the shim lives. The shim writes its PID there.
const LockFD = 4

// Ready is what a shim writes when the pod stands and its socket answers.
const Ready = "ready\n"

// Bundle is what the shim is told, and what another agent finds.
type Bundle struct {
	Sandbox   container.Sandbox
	CreatedAt time.Time
	BootID    string // of the kernel, to tell PIDs of this life from others
	Cgroup    string `json:",omitempty"` // the pod's group; "" = none
}

// Request is what a client sends first on a connection, as JSON in one line; it names one of these. The answers are lines, too. A
// stream goes on in frames.
//
// This is not HTTP, because net/http, and net as well, initialise after most of Kubernetes: their imports below "vendor/" sort last.
type Request struct {
	Watch  bool                 `json:",omitempty"` // answered by Changes: first all states, then each change
	Start  *container.Container `json:",omitempty"` // answered by a StartReply
	Signal *SignalRequest       `json:",omitempty"` // answered by a Reply
	Exec   *StreamRequest       `json:",omitempty"` // answered by a Reply, then frames
	Attach *StreamRequest       `json:",omitempty"` // the same
}

// Reply says whether a request was taken.
type Reply struct {
	Error string `json:",omitempty"`
}

// Change is one line of the stream of events.
type Change struct {
	Containers []container.Status
}

// StartReply is a Status or a Failure.
type StartReply struct {
	Status  *container.Status `json:",omitempty"`
	Failure *launch.Failure   `json:",omitempty"`
}

// SignalRequest sends a signal to a container's first process.
type SignalRequest struct {
	Container string
	Signal    int
}

// StreamRequest begins an exec or, without Args, an attachment.
type StreamRequest struct {
	Container string
	Args      []string `json:",omitempty"`
	TTY       bool     `json:",omitempty"`
	Stdin     bool     `json:",omitempty"` // the client will send Stdin frames
	Output    bool     `json:",omitempty"` // the client wants Stdout and Stderr frames
}

// Result ends a stream.
type Result struct {
	Code    int
	Failure *launch.Failure `json:",omitempty"` // the command did not start
	Error   string          `json:",omitempty"` // it did, and something else went wrong
}

// ContainerID is unique for ever. The API shows it behind the name of the runtime.
func ContainerID(pod, name string, attempt int) string {
	return pod + "/" + name + "/" + itoa(attempt)
}
