package testkit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// ErrNotAllowed is wrapped by the error of a [Feature.Probe] where the kernel could, but the machine's
// owner does not let us.
var ErrNotAllowed = errors.New("not allowed here")

// A Feature is something that not every machine has.
type Feature struct {
	// Name is how REQUIRE calls it.
	Name string
	// Since is the first Linux version that has it, such as "5.13"; "" if it is no part of the kernel.
	Since string
	// Probe returns nil if the feature works. It leaves nothing behind.
	Probe func(ctx context.Context) error
}

// Program is an executable in PATH, for example the stock kubectl.
func Program(name string) Feature {
	return Feature{Name: name, Probe: func(context.Context) error {
		_, err := exec.LookPath(name)
		return err
	}}
}

// Net is a user namespace with a network of its own, for which nobody needs to be root.
func Net() Feature { return namespaces("net", "3.8", syscall.CLONE_NEWNET) }

// Mount is a user namespace with mounts of its own, for which nobody needs to be root.
func Mount() Feature { return namespaces("mount", "3.12", syscall.CLONE_NEWNS) }

func namespaces(name, since string, flags uintptr) Feature {
	return Feature{Name: name, Since: since, Probe: func(ctx context.Context) error {
		cmd := exec.CommandContext(ctx, "true")
		cmd.SysProcAttr = AsRootOf(flags)
		err := cmd.Run()
		if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.ENOSPC) {
			return fmt.Errorf("user namespaces: %w: %w", ErrNotAllowed, err)
		}
		return err
	}}
}

// AsRootOf has a child be root in a user namespace of its own and in the others that flags ask for
// (syscall.CLONE_NEWNET and the like).
func AsRootOf(flags uintptr) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | flags,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
}

// Need skips the test if the machine lacks the feature. A skip is earned: it becomes a failure if the kernel
// is new enough to have the feature and nobody forbids it, and for the features named in the environment
// variable REQUIRE (such as REQUIRE=net,kubectl), which CI sets.
func Need(t testing.TB, feature Feature) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	switch verdict, reason := judge(ctx, feature, os.Getenv("REQUIRE"), kernelRelease()); verdict {
	case verdictSkip:
		t.Skip(reason)
	case verdictFail:
		t.Fatal(reason)
	case verdictRun:
	}
}

type verdict int

const (
	verdictRun verdict = iota
	verdictSkip
	verdictFail
)

func judge(ctx context.Context, f Feature, require, kernel string) (verdict, string) {
	err := f.Probe(ctx)
	switch {
	case err == nil:
		return verdictRun, ""
	case slices.Contains(strings.Split(require, ","), f.Name):
		return verdictFail, fmt.Sprintf("%s is required (REQUIRE=%s) and does not work: %v", f.Name, require, err)
	case f.Since != "" && !errors.Is(err, ErrNotAllowed) && !older(kernel, f.Since):
		return verdictFail, fmt.Sprintf("Linux %s has %s (since %s), but it does not work: %v", kernel, f.Name, f.Since, err)
	default:
		return verdictSkip, fmt.Sprintf("needs %s: %v", f.Name, err)
	}
}

// older compares the first two numbers of two kernel versions. A version that cannot be read is taken for new.
func older(kernel, than string) bool {
	a, b := version(kernel), version(than)
	return slices.Compare(a[:], b[:]) < 0
}

func version(release string) [2]int {
	unknown := [2]int{1 << 30, 0}
	var v [2]int
	parts := strings.SplitN(release, ".", 3)
	if len(parts) < 2 {
		return unknown
	}
	for i := range v {
		digits := strings.TrimRight(parts[i], "+-abcdefghijklmnopqrstuvwxyz") // 6.1-rc1
		number, err := strconv.Atoi(strings.SplitN(digits, "-", 2)[0])
		if err != nil {
			return unknown
		}
		v[i] = number
	}
	return v
}

func kernelRelease() string {
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(release))
}
