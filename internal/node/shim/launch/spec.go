package launch

import "github.com/endpointd/endpointd/internal/node/container"

// Descriptors of a launcher, above the three streams.
const (
	MessageFD = 3 // a socket of type SEQPACKET on which Messages go out
	SpecFD    = 4 // a file with the Spec as JSON
	JoinFD    = 5 // with Spec.Join: a pidfd of the container to join
)

// Spec is all that a launcher needs to know.
type Spec struct {
	Container container.Container

	Join      bool // run Args in the mounts of a container that runs, instead of making new ones
	FreshProc bool // /proc is to show the process namespace that the launcher is in
	FreshIPC  bool // /dev/shm and /dev/mqueue are the container's, not the machine's

	Stage    string // an empty directory of the machine on which a new root is put together
	Leashed  bool   // ends with its parent: no process namespace would end it
	OOMScore int    // oom_score_adj
}

// Message is one packet from the launcher. With TTY the descriptor of the terminal's master comes with it.
type Message struct {
	PID   int      `json:",omitempty"` // in the view of the machine's /proc; the first message
	TTY   bool     `json:",omitempty"`
	Exec  bool     `json:",omitempty"` // the next thing that happens is exec
	Error *Failure `json:",omitempty"` // the last message
}

// Failure is why there is no container.
type Failure struct {
	Code int    // as container.StartError.Code
	Text string // says what is wrong and what to do
}

func (f *Failure) Error() string { return f.Text }

// Exit codes, as a shell gives them.
const (
	codeOther         = 128
	codeNotFound      = 127
	codeNotExecutable = 126
)
