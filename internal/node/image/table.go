package image

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/distribution/reference"
)

// Echo is the name of the image that is built in: the echo server.
const Echo = "endpointd/echo"

// EchoCommand is the command of the echo server. Package reexec takes over when it is the program's name or its first argument.
const EchoCommand = "endpointd-echo"

var (
	// ErrUnknown is the error of an image that the table does not have.
	ErrUnknown = errors.New("image is not in the table")
	// ErrName is the error of a name that no image can have.
	ErrName = errors.New("not an image name")
)

// Config is what an image's configuration would say.
type Config struct {
	Name       string   // the table's name for it, in its long form, wildcards included
	Entrypoint []string // what runs when the container has no command
	Args       []string // its arguments, when the container has neither command nor args
	Env        []string // NAME=value; what the container says goes before it
	WorkingDir string   // "" = /
	User       string   // name or number, with an optional :group; "" = root
	Rootfs     string   // directory that becomes the root; "" = the machine's files
	Echo       bool     // the built-in echo server: EchoCommand is a command it knows, see [Config.Argv]

	executable string
}

// Argv is what to run for a container's command and args. As in Kubernetes, command replaces the entrypoint and has the
// image's own arguments dropped, args replaces the arguments alone. It is empty when neither says what to run.
func (c Config) Argv(command, args []string) []string {
	var argv []string
	switch {
	case len(command) > 0:
		argv = append(slices.Clone(command), args...)
		if c.Echo && command[0] == EchoCommand {
			argv = append([]string{c.executable}, argv...)
		}
	case len(args) > 0:
		argv = append(slices.Clone(c.Entrypoint), args...)
	default:
		argv = append(slices.Clone(c.Entrypoint), c.Args...)
	}
	return argv
}

// clone has the caller own everything in it.
func (c Config) clone() Config {
	c.Entrypoint, c.Args, c.Env = slices.Clone(c.Entrypoint), slices.Clone(c.Args), slices.Clone(c.Env)
	return c
}

// Table maps names of images to configurations. It is immutable and may be used concurrently.
type Table struct {
	source  string  // the file, for messages; "" = the built-in table
	entries []entry // the best match first
}

type entry struct {
	pattern pattern
	config  Config
}

// Builtin is the table without a file: it has the echo server alone. executable is the path of the endpointd program.
func Builtin(executable string) *Table {
	return newTable("", nil, executable)
}

func newTable(source string, entries []entry, executable string) *Table {
	p, err := parsePattern(Echo + ":*")
	if err != nil {
		panic(err) // a constant of this package
	}
	entries = append(entries, entry{p, Config{
		Name: p.String(), Entrypoint: []string{executable, EchoCommand}, Echo: true, executable: executable,
	}})
	slices.SortStableFunc(entries, func(a, b entry) int { return b.pattern.weight - a.pattern.weight })
	return &Table{source: source, entries: entries}
}

// Lookup is the configuration of an image, by the name that a container has it by. The error Is [ErrName] for what is no name
// and [ErrUnknown] for an image that is not in the table, and says what to do.
func (t *Table) Lookup(image string) (Config, error) {
	name, err := parseName(image)
	if err != nil {
		return Config{}, fmt.Errorf("image %q: %w: %w; a name looks like nginx, nginx:1.27 or registry.example.com/team/app:v1", image, ErrName, err)
	}
	for _, e := range t.entries {
		if e.pattern.matches(name) {
			return e.config.clone(), nil
		}
	}
	return Config{}, fmt.Errorf("image %q: %w: %s", image, ErrUnknown, t.advice(image, name))
}

// advice says how the image comes into the table.
func (t *Table) advice(image string, name imageName) string {
	var b strings.Builder
	b.WriteString("endpointd pulls no images; ")
	if t.source == "" {
		b.WriteString("give it a table with --images FILE")
	} else {
		fmt.Fprintf(&b, "add it to %s", t.source)
	}
	fmt.Fprintf(&b, ", for example\n  images:\n  - {name: %q, entrypoint: [/path/to/program]}\nor use the image %s, which is built in", image, Echo)
	for _, e := range t.entries {
		if e.pattern.repository.MatchString(name.repository) {
			fmt.Fprintf(&b, " (the table has other versions: %s; \":*\" is every version)", e.pattern)
			break
		}
	}
	return b.String()
}

// Len is the number of names in the table, those of the echo server not counted.
func (t *Table) Len() int { return len(t.entries) - 1 }

// imageName is the parts of an image's name in its long form.
type imageName struct {
	repository string // with its registry
	tag        string // "" when only a digest names it
	digest     string // "" = none
}

func parseName(image string) (imageName, error) {
	ref, err := reference.ParseNormalizedNamed(image)
	if err != nil {
		return imageName{}, err
	}
	ref = reference.TagNameOnly(ref)
	name := imageName{repository: ref.Name()}
	if tagged, ok := ref.(reference.Tagged); ok {
		name.tag = tagged.Tag()
	}
	if digested, ok := ref.(reference.Digested); ok {
		name.digest = digested.Digest().String()
	}
	return name, nil
}
