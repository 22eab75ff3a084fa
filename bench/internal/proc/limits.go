//go:build linux

package proc

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// PeakMemory returns the most that has been resident of this process, in bytes.
func PeakMemory() (int64, error) { return field("/proc/self/status", "VmHWM:") }

// AvailableMemory returns how many bytes a process can take without swapping: what the
// kernel says is available, or the limit of the process's own cgroup if that is less.
func AvailableMemory() (int64, error) {
	n, err := field("/proc/meminfo", "MemAvailable:")
	if err != nil {
		return 0, err
	}
	// Where the limit lies inside a container; version 2, then version 1.
	for _, name := range []string{"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"} {
		text, err := os.ReadFile(name)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return 0, err
		}
		if limit, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64); err == nil { // "max" is none
			n = min(n, limit)
		}
	}
	return n, nil
}

// field returns the bytes that a line such as "VmHWM:  1024 kB" states.
func field(file, name string) (int64, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	n, ok := kilobytes(text, name)
	if !ok {
		return 0, fmt.Errorf("%s has no line %s", file, name)
	}
	return n, nil
}

func kilobytes(text []byte, name string) (n int64, ok bool) {
	for line := range bytes.Lines(text) {
		f := bytes.Fields(line)
		if len(f) == 3 && string(f[0]) == name && string(f[2]) == "kB" {
			kb, err := strconv.ParseInt(string(f[1]), 10, 64)
			return kb << 10, err == nil
		}
	}
	return 0, false
}
