package launch

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/endpointd/endpointd/internal/node/container"
)

func TestLookUp(t *testing.T) {
	dir := t.TempDir()
	first, second := filepath.Join(dir, "first"), filepath.Join(dir, "second")
	for path, mode := range map[string]os.FileMode{
		filepath.Join(first, "plain"): 0o600, filepath.Join(second, "plain"): 0o700, filepath.Join(first, "only"): 0o600,
		filepath.Join(second, "tool"): 0o700, filepath.Join(first, "tool", "x"): 0o600,
	} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, nil, mode)); err != nil {
			t.Fatal(err)
		}
	}
	t.Chdir(second)
	for _, test := range []struct {
		name, path, want string
		code             int
	}{
		{"tool", first + ":" + second, second + "/tool", 0}, // a directory of the name is passed over
		{"plain", first + ":" + second, second + "/plain", 0},
		{"only", first + ":" + second, "", 126},
		{"none", first + ":" + second, "", 127},
		{"tool", "", "./tool", 0}, // an empty entry is the working directory
		{"./tool", first, "./tool", 0},
		{second, first, "", 126},
		{second + "/none", first, "", 127},
	} {
		got, err := lookUp(test.name, []string{"PATH=/wrong", "PATH=" + test.path}, container.User{})
		failure := &Failure{}
		if errors.As(err, &failure) != (test.code != 0) || failure.Code != test.code || got != test.want {
			t.Errorf("%s in %s: %q, %v; want %q, code %d", test.name, test.path, got, err, test.want, test.code)
		}
	}
}

func TestCapabilityMask(t *testing.T) {
	got, err := capabilityMask([]string{"CAP_CHOWN", "net_bind_service", "CAP_CHECKPOINT_RESTORE"})
	if want := uint64(1 | 1<<10 | 1<<40); err != nil || got != want {
		t.Errorf("mask is %x, %v; want %x", got, err, want)
	}
	if _, err := capabilityMask([]string{"CAP_"}); err == nil || !strings.Contains(err.Error(), "unknown capability") {
		t.Errorf("an unknown one: %v", err)
	}
}
