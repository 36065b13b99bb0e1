package shim

import (
	"bytes"
	"errors"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// killSession ends every process of the session that a container's first process began, for pods whose processes share a
// namespace where there is no cgroup. PIDs are the shim's, while /proc is the agent's: its status files give both.
func killSession(leader int) error {
	own, err := nested("/proc/self/status", "NSpid:")
	if err != nil {
		return err
	}
	level := len(own) - 1
	// A process may fork while the list is read, so until nothing is found.
	for range 100 {
		entries, err := os.ReadDir("/proc")
		if err != nil {
			return err
		}
		found := false
		for _, entry := range entries {
			if entry.Name()[0] < '1' || entry.Name()[0] > '9' {
				continue
			}
			file := "/proc/" + entry.Name() + "/status"
			sessions, err := nested(file, "NSsid:")
			if err != nil || len(sessions) <= level || sessions[level] != leader {
				continue
			}
			pids, err := nested(file, "NSpid:")
			if err != nil || len(pids) <= level || zombie(file) {
				continue
			}
			found = true
			if err := unix.Kill(pids[level], unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
				return err
			}
		}
		if !found {
			return nil
		}
	}
	return errors.New("processes of the container go on forking")
}

// nested reads the numbers of a process in the namespaces from that of /proc down to its own.
func nested(file, field string) ([]int, error) {
	line, err := statusLine(file, field)
	if err != nil {
		return nil, err
	}
	var numbers []int
	for text := range strings.FieldsSeq(line) {
		n, err := strconv.Atoi(text)
		if err != nil {
			return nil, err
		}
		numbers = append(numbers, n)
	}
	return numbers, nil
}

func zombie(file string) bool {
	state, err := statusLine(file, "State:")
	return err == nil && strings.HasPrefix(strings.TrimSpace(state), "Z")
}

func statusLine(file, field string) (string, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	for line := range bytes.Lines(data) {
		if rest, ok := bytes.CutPrefix(line, []byte(field)); ok {
			return string(rest), nil
		}
	}
	return "", errors.New(file + " has no " + field)
}
