package process_test

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	_ "github.com/endpointd/endpointd/internal/reexec" // the test binary is the shim and the launcher, too
	"github.com/endpointd/endpointd/internal/testkit"
)

// inside names the world that this process runs the tests in: "" = none yet.
const inside = "PROCESS_TEST_WORLD"

const (
	worldRoot = "root" // root of the machine, in namespaces of its own
	worldUser = "user" // nobody, root of a user namespace in which nothing but user 0 is known
)

// agentDir has the test binary be an agent that starts pods in this folder until it is killed.
const agentDir = "PROCESS_TEST_AGENT"

// TestMain runs all tests once in each world that this user can make: none of them touches the machine.
func TestMain(m *testing.M) {
	flag.Parse()
	if dir := os.Getenv(agentDir); dir != "" {
		os.Exit(beAgent(dir))
	}
	if os.Getenv(inside) != "" {
		if err := settle(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		testkit.Main(m)
	}
	worlds := []string{worldUser}
	if os.Getuid() == 0 {
		worlds = append(worlds, worldRoot)
	}
	code := 0
	for _, world := range worlds {
		err := enter(world)
		switch {
		case errors.Is(err, syscall.EPERM), errors.Is(err, syscall.ENOSPC):
			fmt.Println("user namespaces are not allowed here; skipped:", err)
		case err != nil:
			fmt.Println("in the world of", world+":", err)
			code = 1
		}
	}
	os.Exit(code)
}

func enter(world string) error {
	const flags = syscall.CLONE_NEWNS | syscall.CLONE_NEWNET | syscall.CLONE_NEWPID | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS
	// The list of files that were opened is the parent's to write; /tmp is another one inside.
	args := slices.DeleteFunc(slices.Clone(os.Args[1:]), func(arg string) bool { return strings.HasPrefix(arg, "-test.testlogfile") })
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Args[0] = os.Args[0]
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), inside+"="+world)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags, Pdeathsig: syscall.SIGKILL}
	if world == worldUser {
		uid, gid := os.Getuid(), os.Getgid()
		if uid == 0 {
			uid, gid = 65534, 65534
		}
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: uid, Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: gid, Size: 1}}
		cmd.SysProcAttr.Credential = &syscall.Credential{NoSetGroups: true}
	}
	runtime.LockOSThread() // Pdeathsig is about the thread
	return cmd.Run()
}

// settle makes the new world whole: its own /proc and a /tmp that everybody may write.
func settle() error {
	return errors.Join(
		unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""),
		unix.Mount("proc", "/proc", "proc", 0, ""),
		unix.Mount("tmpfs", "/tmp", "tmpfs", 0, "mode=1777"),
	)
}
