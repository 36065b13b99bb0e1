package logs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
)

const (
	// maxRotated is the highest number that is looked for behind a log's name. The runtime keeps far fewer.
	maxRotated = 32
	// maxGap is how many numbers in a row may be missing. While the files are being renamed one of them always is.
	maxGap = 2
)

// openAfter opens the files of a log that are newer than last, oldest first. With nil it opens all of them.
//
// The writer may rotate at the same time. Rotation only ever raises a file's number, and the numbers are visited
// upwards, so no file is passed unseen, and the order in which files are met is from new to old. One that moves
// along is met again; it is known by its inode, which cannot be used anew while the file is open.
func openAfter(path string, last *os.File) ([]*os.File, error) {
	var files []*os.File
	var infos []fs.FileInfo
	if last != nil {
		info, err := last.Stat()
		if err != nil {
			return nil, fmt.Errorf("log %s: %w", path, err)
		}
		infos = append(infos, info)
	}
	missing := 0
	for number := 0; number <= maxRotated && missing <= maxGap; number++ {
		f, err := os.Open(numbered(path, number))
		if errors.Is(err, fs.ErrNotExist) {
			missing++
			continue
		}
		if err != nil {
			closeAll(files)
			return nil, fmt.Errorf("log: %w", err)
		}
		missing = 0
		info, err := f.Stat()
		if err != nil {
			_ = f.Close()
			closeAll(files)
			return nil, fmt.Errorf("log: %w", err)
		}
		if last != nil && os.SameFile(info, infos[0]) {
			_ = f.Close()
			break
		}
		if slices.ContainsFunc(infos, func(seen fs.FileInfo) bool { return os.SameFile(seen, info) }) {
			_ = f.Close()
			continue
		}
		files, infos = append(files, f), append(infos, info)
	}
	slices.Reverse(files)
	return files, nil
}

func numbered(path string, number int) string {
	if number == 0 {
		return path
	}
	return path + "." + strconv.Itoa(number)
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close() // only read
	}
}
