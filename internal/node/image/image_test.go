package image

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/endpointd/endpointd/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

const program = "/opt/endpointd"

func parse(t *testing.T, text string) *Table {
	t.Helper()
	table, err := Parse("images.yaml", []byte(text), program)
	if err != nil {
		t.Fatal(err)
	}
	return table
}

func TestLookupMatches(t *testing.T) {
	const digest = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	tests := []struct {
		name, pattern, image string
		want                 bool
	}{
		{"short name, long image", "nginx", "docker.io/library/nginx:latest", true},
		{"long name, short image", "docker.io/library/nginx:latest", "nginx", true},
		{"a name without tag is latest", "nginx", "nginx:1.27", false},
		{"every tag", "nginx:*", "nginx:1.27", true},
		{"every tag is also no tag", "nginx:*", "nginx", true},
		{"every tag is also a digest alone", "nginx:*", "nginx@" + digest, true},
		{"latest is not a digest alone", "nginx", "nginx@" + digest, false},
		{"tag of an image with a digest", "nginx:1.27", "nginx:1.27@" + digest, true},
		{"digest", "nginx@" + digest, "nginx@" + digest, true},
		{"digest, image without", "nginx@" + digest, "nginx:1.27", false},
		{"digest with a wildcard", "nginx@sha256:a*", "nginx:1.27@" + digest, true},
		{"another digest", "nginx@sha256:b*", "nginx@" + digest, false},
		{"start of a tag", "postgres:16*", "postgres:16.2", true},
		{"start of another tag", "postgres:16*", "postgres:17", false},
		{"one character", "postgres:1?", "postgres:16", true},
		{"one character is not two", "postgres:1?", "postgres:16.2", false},
		{"* stops at a slash", "registry.example.com/*:*", "registry.example.com/team/app:v1", false},
		{"** does not", "registry.example.com/**:*", "registry.example.com/team/app:v1", true},
		{"* in the middle", "registry.example.com/*/app:*", "registry.example.com/team/app:v1", true},
		{"** in front is any registry", "**/app:*", "registry.example.com:5000/team/app:v1", true},
		{"user's repository", "team/*:*", "docker.io/team/app:v1", true},
		{"registry with a port", "localhost:5000/*:*", "localhost:5000/app:v1", true},
		{"a port is not a tag", "localhost:5000/*", "localhost:5000/app", true},
		{"a single * is an official image", "*:*", "nginx:1.27", true},
		{"a single * is not everything", "*:*", "quay.io/team/app:v1", false},
		{"** is everything", "**", "quay.io/team/app:v1@" + digest, true},
		{"characters of expressions are themselves", "quay.io/a.b*:*", "quay.io/axb:v1", false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			table := parse(t, `images: [{name: "`+test.pattern+`", entrypoint: [x]}]`)
			_, err := table.Lookup(test.image)
			if got := err == nil; got != test.want {
				t.Errorf("%q matches %q: %v (%v), want %v", test.pattern, test.image, got, err, test.want)
			}
			if err != nil && !errors.Is(err, ErrUnknown) {
				t.Errorf("error %v is not ErrUnknown", err)
			}
		})
	}
}

func TestMostSpecificWins(t *testing.T) {
	names := []string{"**", "quay.io/**:*", "quay.io/*/app:*", "quay.io/team/*:*", "quay.io/team/app:v*", "quay.io/team/app:v1"}
	images := map[string]string{ // image → the name that wins
		"nginx": "**", "quay.io/a/b/c": "quay.io/**:*", "quay.io/x/app": "quay.io/*/app:*", "quay.io/team/x": "quay.io/team/*:*",
		"quay.io/team/app:v2": "quay.io/team/app:v*", "quay.io/team/app:v1": "quay.io/team/app:v1",
	}
	for range 2 { // in both orders of the file
		var b strings.Builder
		b.WriteString("images:\n")
		for _, n := range names {
			b.WriteString("- {name: \"" + n + "\", entrypoint: [x]}\n")
		}
		table := parse(t, b.String())
		for image, want := range images {
			if c, err := table.Lookup(image); err != nil || c.Name != want {
				t.Errorf("%s: %q, %v; want %q", image, c.Name, err, want)
			}
		}
		for i, j := 0, len(names)-1; i < j; i, j = i+1, j-1 {
			names[i], names[j] = names[j], names[i]
		}
	}
}

func TestEqualWeightFirstWins(t *testing.T) {
	table := parse(t, `images: [{name: "ab*:*"}, {name: "*bc:*"}]`)
	if c, err := table.Lookup("abc:1"); err != nil || c.Name != "docker.io/library/ab*:*" {
		t.Errorf("got %q, %v", c.Name, err)
	}
}

func TestEchoIsBuiltIn(t *testing.T) {
	for _, table := range []*Table{Builtin(program), parse(t, `images: [{name: "**", entrypoint: [other]}]`)} {
		for _, name := range []string{"endpointd/echo", "endpointd/echo:v9", "docker.io/endpointd/echo:latest"} {
			c, err := table.Lookup(name)
			if err != nil {
				t.Fatal(err)
			}
			for want, got := range map[string][]string{
				program + " endpointd-echo":       c.Argv(nil, nil),
				program + " endpointd-echo -a":    c.Argv(nil, []string{"-a"}),
				program + " endpointd-echo -a -b": c.Argv([]string{"endpointd-echo", "-a"}, []string{"-b"}),
				"sleep 1":                         c.Argv([]string{"sleep"}, []string{"1"}),
			} {
				if strings.Join(got, " ") != want {
					t.Errorf("%s: argv %q, want %q", name, got, want)
				}
			}
		}
	}
	own := parse(t, `images: [{name: "endpointd/echo:v1", entrypoint: [mine]}]`)
	if c, err := own.Lookup("endpointd/echo:v1"); err != nil || c.Echo {
		t.Errorf("a name in the table goes before what is built in: %+v, %v", c, err)
	}
}

func TestArgv(t *testing.T) {
	c := Config{Entrypoint: []string{"e"}, Args: []string{"a"}}
	for _, test := range []struct {
		name          string
		command, args []string
		want          []string
	}{
		{"neither", nil, nil, []string{"e", "a"}},
		{"command drops the image's args", []string{"c"}, nil, []string{"c"}},
		{"args alone", nil, []string{"x"}, []string{"e", "x"}},
		{"both", []string{"c"}, []string{"x"}, []string{"c", "x"}},
	} {
		if diff := cmp.Diff(test.want, c.Argv(test.command, test.args)); diff != "" {
			t.Errorf("%s: (-want +got)\n%s", test.name, diff)
		}
	}
}

func TestConfigIsTheCallersOwn(t *testing.T) {
	table := parse(t, `images: [{name: x, entrypoint: [a], args: [b], env: [{name: NAME, value: v}]}]`)
	c, err := table.Lookup("x")
	if err != nil {
		t.Fatal(err)
	}
	c.Entrypoint[0], c.Args[0], c.Env[0] = "!", "!", "!"
	again, err := table.Lookup("x")
	if err != nil {
		t.Fatal(err)
	}
	want := Config{Name: "docker.io/library/x:latest", Entrypoint: []string{"a"}, Args: []string{"b"}, Env: []string{"NAME=v"}}
	if diff := cmp.Diff(want, again, cmpopts.IgnoreUnexported(Config{})); diff != "" {
		t.Error(diff)
	}
}

func TestUnknownImageSaysWhatToDo(t *testing.T) {
	_, err := Builtin(program).Lookup("postgres:16")
	for _, want := range []string{`"postgres:16"`, "--images FILE", "images:\n", "entrypoint", Echo} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v does not say %q", err, want)
		}
	}
	_, err = parse(t, `images: [{name: postgres, entrypoint: [x]}]`).Lookup("postgres:16")
	if err == nil || !strings.Contains(err.Error(), "other versions: docker.io/library/postgres:latest") {
		t.Errorf("error %v does not name the version that is there", err)
	}
	if _, err = Builtin(program).Lookup("Not A Name"); !errors.Is(err, ErrName) || errors.Is(err, ErrUnknown) {
		t.Errorf("error %v is not ErrName", err)
	}
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "images.yaml")
	if err := os.WriteFile(path, []byte("images:\n- {name: app, rootfs: "+dir+", user: \"1000:1000\", workingDir: /w}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	table, err := Load(path, program)
	if err != nil {
		t.Fatal(err)
	}
	c, err := table.Lookup("app")
	if err != nil {
		t.Fatal(err)
	}
	want := Config{Name: "docker.io/library/app:latest", Rootfs: dir, User: "1000:1000", WorkingDir: "/w"}
	if diff := cmp.Diff(want, c, cmpopts.IgnoreUnexported(Config{})); diff != "" || table.Len() != 1 {
		t.Errorf("%d entries (-want +got)\n%s", table.Len(), diff)
	}
	if _, err := Load(filepath.Join(dir, "none"), program); err == nil || !strings.Contains(err.Error(), "--images") {
		t.Errorf("a file that is not there: %v", err)
	}
}

func TestRefusedTables(t *testing.T) {
	tests := []struct{ name, text, want string }{
		{"unknown field", `images: [{name: a, command: [x]}]`, `unknown field "images[0].command"`},
		{"unknown field at the top", `image: []`, `unknown field "image"`},
		{"not YAML", `images: [`, "images.yaml"},
		{"a key twice", "images: []\nimages: []", "already"},
		{"no name", `images: [{entrypoint: [x]}]`, "images[0]: name \"\": the name is empty"},
		{"the same name twice", `images: [{name: nginx}, {name: "docker.io/library/nginx:latest"}]`, "images[1]: name \"docker.io/library/nginx:latest\": images[0] has this name already"},
		{"the same wildcard twice", `images: [{name: "a:*"}, {name: "docker.io/library/a:*"}]`, "images[0] has this name already"},
		{"upper case", `images: [{name: "Nginx"}]`, "lowercase"},
		{"upper case with a wildcard", `images: [{name: "Nginx:*"}]`, "lower case"},
		{"character class", `images: [{name: "ngin[x]:*"}]`, "wildcards ? * **"},
		{"a space", `images: [{name: "ngin x:*"}]`, "only letters"},
		{"empty tag", `images: [{name: "ngin*:"}]`, "a part of it is empty"},
		{"long name", `images: [{name: "` + strings.Repeat("*", maxPattern+1) + `"}]`, "at most"},
		{"empty program", `images: [{name: a, entrypoint: [""]}]`, "entrypoint: its first element"},
		{"variable without a name", `images: [{name: a, env: [{value: x}]}]`, "env[0]"},
		{"variable with =", `images: [{name: a, env: [{name: "A=B", value: x}]}]`, "env[0]"},
		{"variable twice", `images: [{name: a, env: [{name: A, value: x}, {name: A, value: z}]}]`, "env[1]: A is there twice"},
		{"NUL", `images: [{name: a, args: ["\0"]}]`, "NUL"},
		{"relative working directory", `images: [{name: a, workingDir: w}]`, "workingDir"},
		{"relative root", `images: [{name: a, rootfs: r}]`, "rootfs \"r\" is relative"},
		{"root that is not there", `images: [{name: a, rootfs: /nonexistent/r}]`, "unpack"},
		{"root that is a file", `images: [{name: a, rootfs: /proc/self/status}]`, "is a file"},
		{"the machine's root", `images: [{name: a, rootfs: /}]`, "machine's own root"},
		{"too long", strings.Repeat("#", maxFile+1), "longer than"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, err := Parse("images.yaml", []byte(test.text), program)
			if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), "images.yaml") {
				t.Errorf("error %v, want %q and the file", err, test.want)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`images: [{name: "postgres:*", entrypoint: [a], env: [{name: A, value: b}]}]`), "postgres:16")
	f.Add([]byte("images:\n- name: '**'\n"), "a@sha256:00")
	f.Add([]byte("a: &a [x]\nb: [*a,*a]"), "x")
	f.Fuzz(func(t *testing.T, data []byte, name string) {
		table, err := Parse("f", data, program)
		if err != nil {
			return
		}
		c, err := table.Lookup(name)
		if err == nil && c.Name == "" || err != nil && !errors.Is(err, ErrUnknown) && !errors.Is(err, ErrName) {
			t.Errorf("lookup %q: %+v, %v", name, c, err)
		}
	})
}

// A pattern without wildcards matches exactly the names that mean the same image.
func FuzzPattern(f *testing.F) {
	f.Add("nginx", "docker.io/library/nginx")
	f.Add("a.b/c:d", "a.b/c:d")
	f.Add("**/x:*", "y/x")
	f.Fuzz(func(t *testing.T, text, image string) {
		p, err := parsePattern(text)
		if err != nil {
			return
		}
		again, err := parsePattern(p.String())
		if err != nil || again.String() != p.String() {
			t.Fatalf("%q: long form %q becomes %q, %v", text, p, again, err)
		}
		name, err := parseName(image)
		if err != nil {
			return
		}
		if strings.ContainsAny(text, wildcards) {
			p.matches(name)
			return
		}
		own, err := parseName(text)
		if err != nil {
			t.Fatal(err)
		}
		same := own.repository == name.repository && (own.tag == "" || own.tag == name.tag) && (own.digest == "" || own.digest == name.digest)
		if p.matches(name) != same {
			t.Errorf("%q matches %q: %v, same image: %v", text, image, !same, same)
		}
	})
}
