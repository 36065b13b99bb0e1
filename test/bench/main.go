package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	child()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	o, err := parse(os.Args[1:])
	if err == nil {
		err = o.main(ctx, os.Stdout)
	}
	stop()
	exit(err)
}

// child ends the process when it was started as a child of this program.
func child() {
	if len(os.Args) < 2 {
		return
	}
	switch os.Args[1] {
	case childCommand:
		exit(contenderMain(os.Args[2:]))
	case targetCommand:
		exit(targetMain())
	case serveCommand:
		exit(serveMain())
	case loadCommand:
		exit(loadMain(os.Args[2:]))
	case probeCommand:
		exit(probeMain(os.Args[2:]))
	case namesCommand:
		exit(namesMain(os.Args[2:]))
	case upstreamCommand:
		exit(upstreamMain())
	case echoCommand:
		exit(echoMain())
	}
}

func exit(err error) {
	switch {
	case errors.Is(err, flag.ErrHelp):
		os.Exit(2)
	case err != nil:
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// The names of -run.
const (
	partStartup = "startup"
	partFlips   = "flips"
	partMemory  = "memory"
	partBig     = "big"
	partReplace = "replace"
	partUp      = "up"
	partProbes  = "probes"
	partPods    = "pods"
	partKills   = "kills"
	partSilent  = "silent"
)

func parts() []string {
	return slices.Concat(controllerParts(), nodeParts(), trafficParts(), []string{partNames})
}

// controllerParts compare the controllers on a server without nodes, nodeParts are of `endpointd up`, trafficParts compare data planes.
func controllerParts() []string {
	return []string{partStartup, partFlips, partMemory, partBig, partReplace}
}

func nodeParts() []string { return []string{partUp, partProbes, partPods, partKills, partSilent} }

// options are the flags.
type options struct {
	binary, json string
	profiles     string
	run          []string
	only         []string // contenders; empty: all
	services     []int
	starts       int
	rounds       int
	replacements int // rounds of the part replace
	samples      int // flips of each contender in a round
	peerSamples  int // flips of upstream in a round of the part big, where each takes long
	probed       int // containers in the part probes, each once a second
	pods         int // of the Deployment on three nodes
	fleets       int // times that it is made
	kills        int // containers killed
	silences     int // nodes frozen
	settle       time.Duration
	verbose      bool
	command      string
	trafficOptions
	namesOptions
}

func parse(args []string) (*options, error) {
	o := &options{command: "bench " + strings.Join(args, " ")}
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.StringVar(&o.binary, "endpointd", "bin/endpointd", "the program")
	flags.StringVar(&o.json, "json", "bin/bench.json", "`file` for the report as JSON; empty is none")
	flags.StringVar(&o.profiles, "cpuprofile", "", "`folder` for CPU profiles of ours and upstream, one of each run")
	run := flags.String("run", strings.Join(parts(), ","), "`parts` to run")
	only := flags.String("only", "", "`contenders` to run, such as ours,upstream")
	services := flags.String("services", "", "`numbers` of Services: 100,1000 with ten pods each, of which memory, big and replace take the last one's pods; 1,1000 with two endpoints each in the traffic parts")
	shapes := o.trafficFlags(flags)
	o.namesFlags(flags)
	short := flags.Bool("short", false, "tiny sizes: all parts in less than two minutes, the figures say little")
	flags.IntVar(&o.starts, "starts", 5, "starts of the server in the part startup")
	flags.IntVar(&o.rounds, "rounds", 3, "`times` that ours and upstream take turns")
	flags.IntVar(&o.replacements, "replacements", 2, "`times` that they take turns in the part replace")
	flags.IntVar(&o.samples, "samples", 200, "flips of a contender in a round")
	flags.IntVar(&o.peerSamples, "peer-samples", 70, "flips of upstream in a round of the part big")
	flags.IntVar(&o.probed, "probed", 1000, "containers in the part probes, each probed once a second")
	flags.IntVar(&o.pods, "pods", 300, "pods on three nodes in the parts pods and kills")
	flags.IntVar(&o.fleets, "fleets", 3, "`times` that they are made, in the part pods")
	flags.IntVar(&o.kills, "kills", 120, "containers killed; a quarter as many whole pods are killed, and as many deleted")
	flags.IntVar(&o.silences, "silences", 10, "nodes that fall silent, one after the other")
	flags.DurationVar(&o.settle, "settle", 10*time.Second, "how long the server rests before its memory is read")
	flags.BoolVar(&o.verbose, "v", true, "say on standard error what is under way")
	if err := flags.Parse(args); err != nil {
		return nil, err
	}
	if *short {
		*services, o.starts, o.samples, o.peerSamples, o.settle = "3,6", 1, 20, 20, time.Second
		o.rounds, o.replacements = 1, 1
		o.probed, o.pods, o.fleets, o.kills, o.silences = 100, 18, 1, 8, 1
		*shapes = "4x2,5x10"
		o.asking, o.namesFlips = 200*time.Millisecond, 5
		o.traffic, o.slowFlips, o.fastFlips, o.colds, o.readies = 200*time.Millisecond, 1, 5, 1, 2
	}
	o.run = strings.Split(*run, ",")
	for _, part := range o.run {
		if !slices.Contains(parts(), part) {
			return nil, fmt.Errorf("-run %s: not one of %s", part, strings.Join(parts(), ", "))
		}
	}
	if *only != "" {
		o.only = strings.Split(*only, ",")
	}
	sizes := *services
	if *short {
		sizes = "4"
	}
	if err := o.checkTraffic(*services, sizes, *shapes, slices.ContainsFunc(controllerParts(), o.wants)); err != nil {
		return nil, err
	}
	if o.rounds < 1 || o.replacements < 1 || o.samples < 2 || o.peerSamples < 2 || o.starts < 1 {
		return nil, errors.New("-rounds, -replacements and -starts want at least 1, -samples and -peer-samples at least 2")
	}
	if o.probed < 1 || o.probed > 10_000 || o.pods < upNodes || o.pods > 600 || o.fleets < 1 || o.silences < 1 || o.kills < 4 || o.kills+2*(o.kills/4) > o.pods {
		return nil, errors.New("-probed wants 1 to 10000, -pods 3 to 600, -fleets and -silences at least 1, -kills at least 4 and no more than two thirds of the pods")
	}
	return o, nil
}

func (o *options) wants(part string) bool { return slices.Contains(o.run, part) }

// main measures, prints and writes. What was measured before something failed is printed, but not written.
func (o *options) main(ctx context.Context, out io.Writer) error {
	report, err := o.measure(ctx)
	if report != nil && len(report.Sections) > 0 {
		err = errors.Join(err, report.print(out))
	}
	if err != nil || o.json == "" {
		return err
	}
	return report.write(o.json)
}

// measure runs the parts in a new temporary folder.
func (o *options) measure(ctx context.Context) (report *Report, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	binary, err := filepath.Abs(o.binary)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(binary); err != nil {
		return nil, fmt.Errorf("%w; build it with make build, or name it with -endpointd", err)
	}
	if _, err := exec.LookPath("kubectl"); err != nil {
		return nil, fmt.Errorf("%w; make kubectl builds one into .cache/bin", err)
	}
	dir, err := os.MkdirTemp("", "endpointd-bench-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if o.profiles != "" {
		if o.profiles, err = filepath.Abs(o.profiles); err != nil {
			return nil, err
		}
		if err := os.MkdirAll(o.profiles, 0o755); err != nil {
			return nil, err
		}
	}
	began := time.Now()
	b := &bench{options: o, self: self, binary: binary, dir: dir, began: began}
	b.report = &Report{Command: strings.TrimSpace(o.command), Machine: machine()}
	if b.report.Machine.SyncMs, err = syncTime(dir); err != nil {
		return nil, err
	}
	err = b.all(ctx)
	b.report.Seconds, b.report.Machine.LoadAfter = time.Since(began).Seconds(), loadAverage()
	return b.report, err
}

func machine() Machine {
	m := Machine{Cores: runtime.NumCPU(), Go: runtime.Version(), LoadBefore: loadAverage()}
	var name unix.Utsname
	if err := unix.Uname(&name); err == nil {
		m.Kernel = unix.ByteSliceToString(name.Release[:])
	}
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return m
	}
	for line := range strings.Lines(string(info)) {
		if key, value, _ := strings.Cut(line, ":"); strings.TrimSpace(key) == "model name" {
			m.CPU = strings.TrimSpace(value)
			break
		}
	}
	return m
}

// syncTime is the median of some small writes that wait for the disk, in milliseconds: each write of the API contains one.
func syncTime(dir string) (float64, error) {
	file, err := os.OpenFile(filepath.Join(dir, "sync"), os.O_CREATE|os.O_WRONLY|unix.O_DSYNC, 0o600)
	if err != nil {
		return 0, err
	}
	defer file.Close() //nolint:errcheck // every write of it was waited for
	var took []float64
	for range 100 {
		began := time.Now()
		if _, err := file.Write(make([]byte, 4<<10)); err != nil {
			return 0, err
		}
		took = append(took, time.Since(began).Seconds()*1000)
	}
	return quantile(took, 0.5), nil
}

// loadAverage is that of the last minute.
func loadAverage() string {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	one, _, _ := strings.Cut(string(text), " ")
	return one
}
