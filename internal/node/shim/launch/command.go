package launch

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/endpointd/endpointd/internal/node/container"
)

// defaultPath is searched when the environment has no PATH, as runc and the kubelet's images have it.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// lookUp finds the program as a shell would: a name with a slash is a path, any other is searched in PATH.
func lookUp(name string, env []string, user container.User) (string, error) {
	if name == "" {
		return "", &Failure{Code: codeNotFound, Text: "the command is empty: set command or args"}
	}
	if strings.Contains(name, "/") {
		if err := executable(name); err != nil {
			return "", commandFailure(name, name, err, user)
		}
		return name, nil
	}
	search, ok := lookupEnv(env, "PATH")
	if !ok {
		search = defaultPath
	}
	var denied string
	var deniedErr error
	for dir := range strings.SplitSeq(search, ":") {
		file := path.Join(dir, name)
		if !strings.Contains(file, "/") {
			file = "./" + file
		}
		err := executable(file)
		if err == nil {
			return file, nil
		}
		if errors.Is(err, unix.EACCES) && denied == "" {
			denied, deniedErr = file, err
		}
	}
	if denied != "" {
		return "", commandFailure(name, denied, deniedErr, user)
	}
	return "", &Failure{Code: codeNotFound, Text: fmt.Sprintf(
		"command %q not found in PATH %s: give its full path, or install it", name, search)}
}

// executable says whether the user that we are by now may execute the file.
func executable(file string) error {
	var stat unix.Stat_t
	if err := unix.Stat(file, &stat); err != nil {
		return err
	}
	if stat.Mode&unix.S_IFMT == unix.S_IFDIR {
		return unix.EISDIR
	}
	return unix.Access(file, unix.X_OK)
}

func commandFailure(name, file string, err error, user container.User) error {
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		return &Failure{Code: codeNotFound, Text: fmt.Sprintf("command %q not found: there is no such file in the container", name)}
	case errors.Is(err, unix.EISDIR):
		return &Failure{Code: codeNotExecutable, Text: fmt.Sprintf("command %q is a directory: name a program in it", name)}
	case errors.Is(err, unix.EACCES):
		return &Failure{Code: codeNotExecutable, Text: fmt.Sprintf(
			"permission denied: user %d may not execute %s: check its mode (chmod +x), that of the directories above, and mounts with noexec",
			user.UID, file)}
	default:
		return &Failure{Code: codeNotExecutable, Text: fmt.Sprintf("command %s: %v", file, err)}
	}
}

// execFailure explains why the kernel did not execute a file that is there.
func execFailure(program string, err error) error {
	switch {
	case errors.Is(err, unix.ENOEXEC):
		return &Failure{Code: codeNotExecutable, Text: fmt.Sprintf(
			"execute %s: exec format error: it is made for another machine, or a script without a first line like #!/bin/sh", program)}
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ELIBBAD):
		return &Failure{Code: codeNotFound, Text: fmt.Sprintf(
			"execute %s: the interpreter in its first line, or its dynamic loader, is not in the container", program)}
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return &Failure{Code: codeNotExecutable, Text: fmt.Sprintf(
			"execute %s: permission denied: check its mode (chmod +x), that of its interpreter, and mounts with noexec", program)}
	case errors.Is(err, unix.E2BIG):
		return &Failure{Code: codeNotExecutable, Text: fmt.Sprintf(
			"execute %s: arguments and environment are too long together: shorten args or env, or with many Services in the namespace set enableServiceLinks: false", program)}
	default:
		return &Failure{Code: codeNotExecutable, Text: fmt.Sprintf("execute %s: %v", program, err)}
	}
}

func enterWorkingDir(dir string, user container.User) error {
	if dir == "" {
		dir = "/"
	}
	switch err := unix.Chdir(dir); {
	case err == nil:
		return nil
	case errors.Is(err, unix.ENOENT):
		return &Failure{Code: codeOther, Text: fmt.Sprintf(
			"working directory %s does not exist in the container: create it, mount a volume there, or set another workingDir", dir)}
	case errors.Is(err, unix.ENOTDIR):
		return &Failure{Code: codeOther, Text: fmt.Sprintf("working directory %s is not a directory", dir)}
	case errors.Is(err, unix.EACCES):
		return &Failure{Code: codeNotExecutable, Text: fmt.Sprintf(
			"permission denied: user %d may not enter working directory %s: check the modes of it and of the directories above", user.UID, dir)}
	default:
		return fmt.Errorf("working directory %s: %w", dir, err)
	}
}

// lookupEnv gives the last value, as most programs see it.
func lookupEnv(env []string, name string) (string, bool) {
	for _, entry := range slices.Backward(env) {
		if value, ok := strings.CutPrefix(entry, name+"="); ok {
			return value, true
		}
	}
	return "", false
}
