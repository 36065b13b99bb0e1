package rivals

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// From the kernel's ip_tables.h, ip6_tables.h and x_tables.h, for machines with pointers of 8 bytes.
const (
	getInfo    = 64 // the same for both families
	getEntries = 65

	tableName  = 32
	infoSize   = tableName + 4 + 5*4 + 5*4 + 4 + 4
	entriesTop = tableName + 4 + 4 // a size, and what aligns the entries to 8 bytes
	sizeAt     = infoSize - 4      // in struct ipt_getinfo

	offsetsAfter4 = 84 + 4  // in struct ipt_entry: target_offset, next_offset
	offsetsAfter6 = 136 + 4 // in struct ip6t_entry

	targetNameAt = 2 // in struct xt_entry_target
	targetData   = 32

	// maxTable bounds the memory: kube-proxy has about 10 MB for 10,000 Services.
	maxTable = 256 << 20
	// tableTries is how often a table is asked for that grows meanwhile.
	tableTries = 5
)

var errTable = errors.New("the kernel's table makes no sense")

// legacyChains are the chains KUBE-… of a table that is there.
func legacyChains(v6 bool, table string) ([]string, error) {
	family, level := unix.AF_INET, unix.SOL_IP
	if v6 {
		family, level = unix.AF_INET6, unix.SOL_IPV6
	}
	fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return nil, fmt.Errorf("%w; it needs CAP_NET_RAW and CAP_NET_ADMIN", err)
	}
	defer func() { _ = unix.Close(fd) }() // nothing was written
	for range tableTries {
		info := make([]byte, infoSize)
		copy(info[:tableName-1], table)
		if err := getsockopt(fd, level, getInfo, info); err != nil {
			return nil, err
		}
		size := binary.NativeEndian.Uint32(info[sizeAt:])
		if size > maxTable {
			return nil, fmt.Errorf("%d bytes are too many to look through", size)
		}
		entries := make([]byte, entriesTop+int(size))
		copy(entries[:tableName-1], table)
		binary.NativeEndian.PutUint32(entries[tableName:], size)
		err := getsockopt(fd, level, getEntries, entries)
		if errors.Is(err, unix.EAGAIN) {
			continue // it has another size by now
		}
		if err != nil {
			return nil, err
		}
		return chainsOf(entries[entriesTop:], v6)
	}
	return nil, errors.New("it changes all the time")
}

// chainsOf reads entries: a chain begins with one whose target is ERROR with the chain's name.
func chainsOf(b []byte, v6 bool) ([]string, error) {
	offsets := offsetsAfter4
	if v6 {
		offsets = offsetsAfter6
	}
	var chains []string
	for len(b) > 0 {
		if len(b) < offsets+4 {
			return chains, errTable
		}
		target, next := int(binary.NativeEndian.Uint16(b[offsets:])), int(binary.NativeEndian.Uint16(b[offsets+2:]))
		if next < offsets+4 || next > len(b) || target+targetData > next {
			return chains, errTable
		}
		if word(b[target+targetNameAt:target+targetData]) == "ERROR" {
			if name := word(b[target+targetData : next]); strings.HasPrefix(name, "KUBE-") {
				chains = append(chains, name)
			}
		}
		b = b[next:]
	}
	return chains, nil
}

// word is what is before the first zero byte.
func word(b []byte) string {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b)
}

func getsockopt(fd, level, option int, value []byte) error {
	size := uint32(len(value))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(option),
		uintptr(unsafe.Pointer(&value[0])), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return errno
	}
	return nil
}
