package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// podProcess are the processes of a pod, as the machine sees them.
type podProcess struct {
	shim       int   // which holds the namespaces, and is the containers' parent
	containers []int // first processes of containers
}

// shimName is the first argument of a pod's own process; the second is the pod's namespace and name.
const shimName = "endpointd-pod"

// podProcesses finds the pods of some agents, by name.
func podProcesses(agents map[string]int) (map[string]*podProcess, error) {
	children, err := childrenOf()
	if err != nil {
		return nil, err
	}
	pods := map[string]*podProcess{}
	for _, agent := range agents {
		for _, pid := range children[agent] {
			line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
			if err != nil && !gone(err) {
				return nil, err
			}
			words := strings.Fields(string(bytes.ReplaceAll(line, []byte{0}, []byte{' '})))
			if len(words) < 2 || words[0] != shimName {
				continue // about to become one, or something else
			}
			if _, name, ok := strings.Cut(words[1], "/"); ok {
				pods[name] = &podProcess{shim: pid, containers: children[pid]}
			}
		}
	}
	return pods, nil
}

func gone(err error) bool { return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) }

// childrenOf are all processes of the machine, by their parent.
func childrenOf() (map[int][]int, error) {
	paths, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	children := map[int][]int{}
	for _, path := range paths {
		pid, err := strconv.Atoi(filepath.Base(path))
		if err != nil {
			continue
		}
		fields, err := statFields(pid)
		if gone(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		parent, err := strconv.Atoi(fields[1])
		if err != nil {
			return nil, err
		}
		children[parent] = append(children[parent], pid)
	}
	return children, nil
}

// statFields are those of /proc/PID/stat from the state on, which is the third of proc(5).
func statFields(pid int) ([]string, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil, err
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:])) // the name before may hold anything
	if len(fields) < 15 {
		return nil, fmt.Errorf("/proc/%d/stat: too short", pid)
	}
	return fields, nil
}

// cpuOf sums the CPU time of processes, leaving out those that are gone.
func cpuOf(pids ...int) time.Duration {
	var sum time.Duration
	for _, pid := range pids {
		if used, err := cpuClock(pid); err == nil {
			sum += used
		}
	}
	return sum
}

// footprint is what a process takes of memory, in bytes. PSS has its share of the pages that it shares with others.
type footprint struct{ rss, anonymous, file, pss int64 }

func footprintOf(pid int) (footprint, error) {
	var f footprint
	for _, source := range []struct {
		file   string
		fields map[string]*int64
	}{
		{"status", map[string]*int64{"VmRSS": &f.rss, "RssAnon": &f.anonymous, "RssFile": &f.file}},
		{"smaps_rollup", map[string]*int64{"Pss": &f.pss}},
	} {
		content, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, source.file))
		if err != nil {
			return f, err
		}
		for line := range strings.Lines(string(content)) {
			name, rest, _ := strings.Cut(line, ":")
			if to := source.fields[name]; to != nil {
				kB, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
				if err != nil {
					return f, fmt.Errorf("/proc/%d/%s: %w", pid, source.file, err)
				}
				*to = kB << 10
			}
		}
	}
	if f.rss == 0 || f.pss == 0 {
		return f, fmt.Errorf("memory of process %d: VmRSS or Pss is not there", pid)
	}
	return f, nil
}
