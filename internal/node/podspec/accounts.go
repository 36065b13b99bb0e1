package podspec

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// maxAccounts is how much of a passwd or group file is read, in bytes.
const maxAccounts = 4 << 20

// accounts are the users and groups of a container's root. A line that cannot be read is not there, as for the C library.
type accounts struct {
	passwdPath string // for messages
	users      []account
	groups     []accountGroup
}

type account struct {
	name     string
	uid, gid uint32
	home     string
}

type accountGroup struct {
	name    string
	gid     uint32
	members []string
}

// readAccounts reads /etc/passwd and /etc/group of a root; "" = the machine's. Files that are not there are empty.
func readAccounts(rootfs string) (accounts, error) {
	root := rootfs
	if root == "" {
		root = "/"
	}
	a := accounts{passwdPath: filepath.Join(root, "etc/passwd")}
	passwd, err := readInRoot(root, "etc/passwd", maxAccounts)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return accounts{}, err
	}
	for line := range strings.Lines(string(passwd)) {
		f := strings.Split(strings.TrimSpace(line), ":")
		if len(f) < 6 {
			continue
		}
		uid, err1 := strconv.ParseUint(f[2], 10, 32)
		gid, err2 := strconv.ParseUint(f[3], 10, 32)
		if err1 == nil && err2 == nil {
			a.users = append(a.users, account{name: f[0], uid: uint32(uid), gid: uint32(gid), home: f[5]})
		}
	}
	group, err := readInRoot(root, "etc/group", maxAccounts)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return accounts{}, err
	}
	for line := range strings.Lines(string(group)) {
		f := strings.Split(strings.TrimSpace(line), ":")
		if len(f) < 4 {
			continue
		}
		if gid, err := strconv.ParseUint(f[2], 10, 32); err == nil {
			a.groups = append(a.groups, accountGroup{name: f[0], gid: uint32(gid), members: strings.Split(f[3], ",")})
		}
	}
	return a, nil
}

// user finds one by name, else by number.
func (a accounts) user(name string) (account, bool) {
	if i := slices.IndexFunc(a.users, func(u account) bool { return u.name == name }); i >= 0 {
		return a.users[i], true
	}
	if i := slices.IndexFunc(a.users, func(u account) bool { return strconv.FormatUint(uint64(u.uid), 10) == name }); i >= 0 {
		return a.users[i], true
	}
	return account{}, false
}

// group is the number of one by name, else the number itself.
func (a accounts) group(name string) (uint32, error) {
	if i := slices.IndexFunc(a.groups, func(g accountGroup) bool { return g.name == name }); i >= 0 {
		return a.groups[i].gid, nil
	}
	if !isNumber(name) {
		return 0, fmt.Errorf("group %q of the image is not in %s; name it as a number, or add it", name, filepath.Join(filepath.Dir(a.passwdPath), "group"))
	}
	return parseID("group", name)
}

// memberships are the groups that list the user, but for the one it has anyway.
func (a accounts) memberships(user string, gid uint32) []uint32 {
	var ids []uint32
	for _, g := range a.groups {
		if user != "" && g.gid != gid && slices.Contains(g.members, user) && !slices.Contains(ids, g.gid) {
			ids = append(ids, g.gid)
		}
	}
	return ids
}

func isNumber(s string) bool {
	return s != "" && strings.Trim(s, "0123456789") == ""
}

func parseID(what, s string) (uint32, error) {
	id, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s %q: %w", what, s, err)
	}
	return validID(what, id)
}
