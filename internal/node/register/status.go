package register

import (
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// maxPods is how many pods a node takes where Capacity does not say.
const maxPods = 250

// Below these, something is scarce. The agent evicts nothing: the conditions keep new pods away.
const (
	scarceMemory      = 100 << 20 // bytes available, the kubelet's own threshold
	scarceDisk        = 1 << 30   // bytes available, if they are
	scarceDiskPercent = 10        // less than this part of the file system, too
	scarcePIDPercent  = 5         // of the machine's limit of tasks
)

// Pressure says what is scarce.
type Pressure struct{ Memory, Disk, PID bool }

// Measure looks at the machine's memory and tasks and the file system of dir. What cannot be read is not scarce.
func Measure(dir string) Pressure {
	var p Pressure
	if available := meminfo("MemAvailable:"); available > 0 {
		p.Memory = available < scarceMemory
	}
	var fs unix.Statfs_t
	if unix.Statfs(dir, &fs) == nil && fs.Blocks > 0 {
		p.Disk = fs.Bavail*uint64(fs.Bsize) < scarceDisk && fs.Bavail*100/fs.Blocks < scarceDiskPercent //nolint:gosec // positive
	}
	// The fourth field is "running/all".
	if fields := strings.Fields(read("/proc/loadavg")); len(fields) > 3 {
		_, all, _ := strings.Cut(fields[3], "/")
		tasks, err := strconv.Atoi(all)
		limit, limitErr := strconv.Atoi(read("/proc/sys/kernel/pid_max"))
		p.PID = err == nil && limitErr == nil && (limit-tasks)*100 < limit*scarcePIDPercent
	}
	return p
}

// Machine is the capacity of this machine, with the file system of dir as storage.
func Machine(dir string) corev1.ResourceList {
	list := corev1.ResourceList{
		corev1.ResourceCPU:    *resource.NewQuantity(int64(runtime.NumCPU()), resource.DecimalSI),
		corev1.ResourceMemory: *resource.NewQuantity(meminfo("MemTotal:"), resource.BinarySI),
		corev1.ResourcePods:   *resource.NewQuantity(maxPods, resource.DecimalSI),
	}
	var fs unix.Statfs_t
	if unix.Statfs(dir, &fs) == nil {
		list[corev1.ResourceEphemeralStorage] = *resource.NewQuantity(int64(fs.Blocks)*fs.Bsize, resource.BinarySI) //nolint:gosec // a size
	}
	return list
}

// meminfo is a value of /proc/meminfo in bytes; 0 = not there.
func meminfo(name string) int64 {
	for line := range strings.Lines(read("/proc/meminfo")) {
		if fields := strings.Fields(line); len(fields) >= 2 && fields[0] == name {
			kib, _ := strconv.ParseInt(fields[1], 10, 64)
			return kib << 10
		}
	}
	return 0
}

// read is a small file without its last line break; "" = not readable.
func read(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

func systemInfo(o Options) corev1.NodeSystemInfo {
	info := corev1.NodeSystemInfo{
		MachineID:               read("/etc/machine-id"),
		SystemUUID:              read("/sys/class/dmi/id/product_uuid"),
		BootID:                  read("/proc/sys/kernel/random/boot_id"),
		KernelVersion:           read("/proc/sys/kernel/osrelease"),
		OSImage:                 "Linux",
		ContainerRuntimeVersion: runtimeName + o.Version,
		KubeletVersion:          o.Kubelet,
		OperatingSystem:         runtime.GOOS,
		Architecture:            runtime.GOARCH,
	}
	if info.SystemUUID == "" {
		info.SystemUUID = info.MachineID
	}
	for line := range strings.Lines(read("/etc/os-release")) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "PRETTY_NAME="); ok {
			info.OSImage = strings.Trim(name, `"'`)
		}
	}
	return info
}

// status writes what is ours into s.
func (r *Registration) status(s *corev1.NodeStatus) {
	s.Addresses = nil
	for _, a := range r.o.Addrs {
		s.Addresses = append(s.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a.Unmap().String()})
	}
	s.Addresses = append(s.Addresses, corev1.NodeAddress{Type: corev1.NodeHostName, Address: r.o.Name})
	s.Capacity = r.o.Capacity()
	s.Allocatable = s.Capacity.DeepCopy()
	s.DaemonEndpoints.KubeletEndpoint.Port = int32(r.o.Port) //nolint:gosec // a port
	s.NodeInfo = r.info
	now := metav1.NewTime(time.Now().Truncate(time.Second))
	for _, c := range r.conditions() {
		c.LastHeartbeatTime, c.LastTransitionTime = now, now
		i := slices.IndexFunc(s.Conditions, func(was corev1.NodeCondition) bool { return was.Type == c.Type })
		if i < 0 {
			s.Conditions = append(s.Conditions, c)
			continue
		}
		if s.Conditions[i].Status == c.Status {
			c.LastTransitionTime = s.Conditions[i].LastTransitionTime
		}
		s.Conditions[i] = c
	}
}

// conditions are ours, in the kubelet's words and without times.
func (r *Registration) conditions() []corev1.NodeCondition {
	p := r.o.Pressure()
	ready, reason, message := r.o.Ready()
	c := corev1.NodeCondition{Type: corev1.NodeReady, Status: corev1.ConditionTrue,
		Reason: "KubeletReady", Message: "endpointd node is posting ready status"}
	if !ready {
		c.Status, c.Reason, c.Message = corev1.ConditionFalse, "KubeletNotReady", "endpointd node is not ready"
	}
	if reason != "" {
		c.Reason = reason
	}
	if message != "" {
		c.Message = message
	}
	return []corev1.NodeCondition{
		pressure(corev1.NodeMemoryPressure, p.Memory, "KubeletHasSufficientMemory", "KubeletHasInsufficientMemory", "memory available"),
		pressure(corev1.NodeDiskPressure, p.Disk, "KubeletHasNoDiskPressure", "KubeletHasDiskPressure", "disk space available"),
		pressure(corev1.NodePIDPressure, p.PID, "KubeletHasSufficientPID", "KubeletHasInsufficientPID", "PID available"),
		c,
	}
}

func pressure(kind corev1.NodeConditionType, scarce bool, well, ill, what string) corev1.NodeCondition {
	if scarce {
		return corev1.NodeCondition{Type: kind, Status: corev1.ConditionTrue, Reason: ill, Message: "kubelet has insufficient " + what}
	}
	return corev1.NodeCondition{Type: kind, Status: corev1.ConditionFalse, Reason: well, Message: "kubelet has sufficient " + what}
}

func sameCondition(a, b corev1.NodeCondition) bool {
	return a.Status == b.Status && a.Reason == b.Reason && a.Message == b.Message
}

// withoutBeats is a copy of s in which two statuses that say the same are equal.
func withoutBeats(s corev1.NodeStatus) corev1.NodeStatus {
	s.Conditions = slices.Clone(s.Conditions)
	for i := range s.Conditions {
		s.Conditions[i].LastHeartbeatTime = metav1.Time{}
	}
	return s
}
