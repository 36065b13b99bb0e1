package image

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

// maxFile is how long a table may be, in bytes. It is read whole.
const maxFile = 1 << 20

// file is a table as it is written.
type file struct {
	Images []fileEntry `json:"images"`
}

type fileEntry struct {
	Name       string   `json:"name"`
	Entrypoint []string `json:"entrypoint,omitempty"`
	Args       []string `json:"args,omitempty"`
	Env        []envVar `json:"env,omitempty"`
	WorkingDir string   `json:"workingDir,omitempty"`
	User       string   `json:"user,omitempty"`
	Rootfs     string   `json:"rootfs,omitempty"`
}

type envVar struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// Load reads a table from a file. executable is the path of the endpointd program, for the echo server.
func Load(path, executable string) (*Table, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("image table: %w; give --images a YAML file that can be read", err)
	}
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("image table: %w", err)
	}
	return Parse(path, data, executable)
}

// Parse reads a table from the bytes of a file. source names the file in messages.
func Parse(source string, data []byte, executable string) (*Table, error) {
	if len(data) > maxFile {
		return nil, fmt.Errorf("image table %s: it is longer than %d bytes; use wildcards to say more in fewer lines", source, maxFile)
	}
	parsed, err := decode(data)
	if err != nil {
		return nil, fmt.Errorf("image table %s: %w", source, err)
	}
	entries := make([]entry, 0, len(parsed.Images)+2)
	first := make(map[string]int, len(parsed.Images)) // long form of a name → its number
	for i, e := range parsed.Images {
		p, err := parsePattern(e.Name)
		if err != nil {
			return nil, fmt.Errorf("image table %s: images[%d]: name %q: %w", source, i, e.Name, err)
		}
		if j, twice := first[p.String()]; twice {
			return nil, fmt.Errorf("image table %s: images[%d]: name %q: images[%d] has this name already (%s); remove one of them", source, i, e.Name, j, p)
		}
		first[p.String()] = i
		c, err := e.config()
		if err != nil {
			return nil, fmt.Errorf("image table %s: images[%d] (%s): %w", source, i, e.Name, err)
		}
		c.Name = p.String()
		entries = append(entries, entry{p, c})
	}
	return newTable(source, entries, executable), nil
}

// decode refuses keys that are there twice and fields that are not known, and names the first of each by its path.
func decode(data []byte) (file, error) {
	var parsed file
	text, err := yaml.YAMLToJSONStrict(data)
	if err != nil {
		return file{}, err
	}
	strict, err := json.UnmarshalStrict(text, &parsed, json.DisallowUnknownFields)
	if err != nil {
		return file{}, fmt.Errorf("%w (a word that YAML reads as a number or as true or false needs quotes); a table is images, a list of name, entrypoint, args, env (name, value), workingDir, user and rootfs", err)
	}
	if len(strict) > 0 {
		return file{}, fmt.Errorf("%w; known are images, a list of name, entrypoint, args, env (name, value), workingDir, user and rootfs", errors.Join(strict...))
	}
	return parsed, nil
}

// config checks what can be checked before a container runs.
func (e fileEntry) config() (Config, error) {
	c := Config{Entrypoint: e.Entrypoint, Args: e.Args, WorkingDir: e.WorkingDir, User: e.User, Rootfs: e.Rootfs}
	for _, s := range slices.Concat(e.Entrypoint, e.Args, []string{e.WorkingDir, e.User, e.Rootfs}) {
		if strings.ContainsRune(s, 0) {
			return Config{}, fmt.Errorf("%q: a NUL byte cannot be passed to a program; remove it", s)
		}
	}
	if len(e.Entrypoint) > 0 && e.Entrypoint[0] == "" {
		return Config{}, errors.New("entrypoint: its first element is the program and must not be empty")
	}
	seen := make(map[string]bool, len(e.Env))
	for i, v := range e.Env {
		switch {
		case v.Name == "" || strings.ContainsAny(v.Name, "=\x00"):
			return Config{}, fmt.Errorf("env[%d]: name %q: it must not be empty and have no \"=\" in it", i, v.Name)
		case strings.ContainsRune(v.Value, 0):
			return Config{}, fmt.Errorf("env[%d]: %s: a NUL byte cannot be passed to a program; remove it", i, v.Name)
		case seen[v.Name]:
			return Config{}, fmt.Errorf("env[%d]: %s is there twice; remove one", i, v.Name)
		}
		seen[v.Name] = true
		c.Env = append(c.Env, v.Name+"="+v.Value)
	}
	if e.WorkingDir != "" && !filepath.IsAbs(e.WorkingDir) {
		return Config{}, fmt.Errorf("workingDir %q is relative; write it from the root: /…", e.WorkingDir)
	}
	if err := checkRootfs(e.Rootfs); err != nil {
		return Config{}, err
	}
	return c, nil
}

// checkRootfs refuses a root that no container could have. The machine's own root is what no rootfs means.
func checkRootfs(dir string) error {
	if dir == "" {
		return nil
	}
	if !filepath.IsAbs(dir) {
		return fmt.Errorf("rootfs %q is relative; write the whole path of the directory", dir)
	}
	if filepath.Clean(dir) == "/" {
		return errors.New("rootfs \"/\" is the machine's own root; leave rootfs out to let the container see the machine's files")
	}
	info, err := os.Stat(dir)
	if err != nil {
		return fmt.Errorf("rootfs: %w; unpack the image's files there first", err)
	}
	if !info.IsDir() {
		return fmt.Errorf("rootfs %s is a file; unpack the image's files into a directory and name that", dir)
	}
	return nil
}
