// Package container is what the node agent asks of a container runtime: the nouns (Sandbox, Container, Status, Event)
// and the verbs (Runtime).
//
// The agent decides what is to run and when; a Runtime makes it so and says what became of it. Nothing here knows the
// Kubernetes API: pod specs are resolved to these types by package podspec.
// The runtime that is built in is package process; one over CRI would stand behind the same interface.
//
// A Runtime outlives the agent's process: what it runs goes on when the agent ends, and Pods gives it back to the next one.
// It refuses to decide anything about restarts, probes or readiness. Test a user of it with a fake Runtime, and a Runtime
// with the suite in package process.
package container

import (
	"context"
	"fmt"
	"io"
	"syscall"
	"time"
)

// Sandbox is what a pod's containers share: namespaces and a cgroup. It is written once, when the pod starts.
type Sandbox struct {
	UID             string // the pod's UID; unique on the node, safe as a file name
	Namespace, Name string // the pod's, for people

	Hostname              string // of the pod; ignored with HostNetwork
	HostNetwork           bool   // the node's network namespace instead of a new one
	HostPID               bool   // the node's process namespace
	HostIPC               bool   // the node's IPC namespace
	ShareProcessNamespace bool   // containers see each other's processes; else each is PID 1 of its own namespace

	Sysctls   map[string]string // name → value, such as net.core.somaxconn
	Resources Resources         // limits of all containers together

	// Labels are the agent's own notes, name → value. The runtime keeps them with the pod and does not read them.
	Labels map[string]string
}

// Resources are limits. Zero = no limit.
type Resources struct {
	CPUMillis   int64 // thousandths of a core that may be used at most
	CPUShares   int64 // relative weight when cores are scarce, as cgroup v1's cpu.shares (1024 = one core)
	MemoryBytes int64 // above it the kernel kills
	PIDs        int64 // number of tasks
}

// Container is one container to start.
type Container struct {
	Pod     string // UID of its Sandbox
	Name    string // unique within the pod
	Attempt int    // counts the starts of this name from 0: the restart count

	Args       []string // argv, not empty; Args[0] is looked up in Env's PATH within the container's root
	Env        []string // NAME=value, complete: nothing is inherited
	WorkingDir string   // "" = /; made when it does not exist and Rootfs is set
	Rootfs     string   // directory that becomes the root; "" = the machine's files
	Mounts     []Mount  // in order; a mount point that does not exist is provided without touching the machine's files

	User            User
	Capabilities    []string // what the process may have at most, such as CAP_NET_BIND_SERVICE; nil = none
	Privileged      bool     // all capabilities, and nothing read-only
	NoNewPrivileges bool     // allowPrivilegeEscalation: false
	ReadOnlyRootfs  bool

	Stdin     bool // keeps a pipe (or terminal) open for Attach
	StdinOnce bool // closes it when the first client that attached leaves
	TTY       bool // a terminal for all three streams

	Resources Resources

	// Labels are the agent's own notes, as Sandbox.Labels.
	Labels map[string]string
}

// User is who the process is.
type User struct {
	UID, GID uint32
	Groups   []uint32 // supplementary
}

// Mount makes a path of the node seen in the container.
type Mount struct {
	Source   string // directory or file on the node; "tmpfs" for a new file system in memory
	Target   string // absolute path in the container
	ReadOnly bool
	Size     int64 // of a tmpfs, in bytes; zero = the kernel's default
	// Propagate makes mounts made in one place seen in the other: "" = none, "HostToContainer", "Bidirectional".
	Propagate string
}

// State says where a container is in its life.
type State string

// The states of a container. There is none before it has started: Start returns when the process runs, or fails.
const (
	Running State = "running"
	Exited  State = "exited"
)

// Status is what became of a container.
type Status struct {
	Pod     string // UID
	Name    string
	Attempt int
	ID      string // unique for ever: pod UID, name and attempt

	State      State
	PID        int // of the first process in the agent's view, while it runs
	StartedAt  time.Time
	FinishedAt time.Time
	ExitCode   int    // 128 + signal when a signal ended it
	Signal     int    // 0 = it exited by itself
	OOMKilled  bool   // the kernel killed it for memory
	Message    string // what it wrote to its termination log, or the end of its output when asked; may be empty

	Labels map[string]string // as given
}

// Pod is a sandbox with all containers that were started in it and not forgotten: of each name the last attempt.
type Pod struct {
	Sandbox    Sandbox
	CreatedAt  time.Time
	PID        int    // of the process that holds the namespaces; 0 = it is gone, and so are all containers
	NetNS      string // path of the network namespace while PID lives; "" with HostNetwork
	Containers []Status
}

// Event tells of a change that the agent did not cause by waiting for it: a container has exited, or a whole sandbox died.
type Event struct {
	Pod       string  // UID
	Container *Status // nil = the sandbox died, with everything in it
}

// StartError is why a container could not be started. Nothing of it is left.
type StartError struct {
	// Reason is the kubelet's word: "RunContainerError", "CreateContainerError".
	Reason string
	// Code is the exit code that a shell would give: 126 not executable, 127 not found, else 128.
	Code int
	Err  error // says what is wrong and what to do
}

func (e *StartError) Error() string { return fmt.Sprintf("%s: %v", e.Reason, e.Err) }
func (e *StartError) Unwrap() error { return e.Err }

// Streams are the three streams of Exec and Attach. A nil one is not connected. With a TTY there is no Stderr.
type Streams struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	Resize         <-chan Size // sizes of the terminal as they change; nil without a TTY
}

// Size is that of a terminal, in characters.
type Size struct{ Columns, Rows uint16 }

// ExecOptions is a command to run in a container that runs.
type ExecOptions struct {
	Pod, Container string
	Args           []string // as Container.Args
	TTY            bool
}

// Runtime runs containers. All methods may be called concurrently, also for one pod; those with a context return early
// when it ends, and what they began goes on or not. Errors name the pod and the container.
type Runtime interface {
	// StartPod makes the namespaces and the cgroup. It fails with an error that Is fs.ErrExist when the UID is there already.
	StartPod(ctx context.Context, s Sandbox) (Pod, error)
	// Pods lists everything that runs or ran and was not removed: after a start of the agent, what its predecessor left.
	Pods(ctx context.Context) ([]Pod, error)
	// RemovePod ends all processes of the pod at once, waits until they are gone and removes everything, logs too.
	// A pod that is not there is no error.
	RemovePod(ctx context.Context, uid string) error

	// Start runs a container and returns when its program was executed, or a *StartError.
	// A container of this name must not be running.
	Start(ctx context.Context, c Container) (Status, error)
	// Signal sends sig to the container's first process. A container that does not run is no error.
	// SIGKILL ends all its processes.
	Signal(ctx context.Context, pod, name string, sig syscall.Signal) error
	// Events gives every exit exactly once to the one reader, those between two agents' lives included only through Pods.
	// The channel is never closed, and never blocks a container.
	Events() <-chan Event

	// Exec runs a command in the namespaces, as the user and with the environment of a running container, and returns its
	// exit code.
	Exec(ctx context.Context, o ExecOptions, s Streams) (code int, err error)
	// Attach connects to the streams of a running container until it exits, ctx ends or a client's stream fails.
	Attach(ctx context.Context, pod, name string, s Streams) error
	// LogFile is where the output of one attempt goes, in the CRI log format; rotated files lie beside it as LogFile.1 (the
	// newest) and so on.
	LogFile(pod, name string, attempt int) string

	// Close lets go of everything and leaves all pods running.
	Close() error
}
