package sys

import (
	"math"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// MemoryLimit returns how much memory the process may use, in bytes: the least that
// its control group or one above allows, else that of the machine.
func MemoryLimit() int64 {
	limit := int64(math.MaxInt64)
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) == nil {
		limit = int64(uint64(info.Totalram) * uint64(info.Unit))
	}
	return min(limit, cgroupLimit("/"))
}

// cgroupLimit returns the least memory limit of the control groups, of version 1
// or 2, that the process is in, with the files found under root. It is MaxInt64
// when there is none, or none that can be read.
func cgroupLimit(root string) int64 {
	limit := int64(math.MaxInt64)
	groups := readLines(filepath.Join(root, "proc/self/cgroup"))
	for _, line := range readLines(filepath.Join(root, "proc/self/mountinfo")) {
		m, ok := parseMount(line)
		if !ok {
			continue
		}
		for _, g := range groups {
			// hierarchy:controllers:path, and 0::path for version 2
			field := strings.SplitN(g, ":", 3)
			if len(field) != 3 {
				continue
			}
			file := "memory.max"
			if m.v1 {
				file = "memory.limit_in_bytes"
			}
			if m.v1 != (field[1] != "") || m.v1 && !contains(field[1], "memory") {
				continue
			}
			// The mount shows the tree from m.root on. A group outside of it (the
			// namespaces differ) leaves the top of the mount as the best guess.
			rel, ok := below(m.root, field[2])
			if !ok {
				rel = "/"
			}
			for dir := path.Clean("/" + rel); ; dir = path.Dir(dir) {
				limit = min(limit, readLimit(filepath.Join(root, m.point, dir, file)))
				if dir == "/" {
					break
				}
			}
		}
	}
	return limit
}

// mount is a line of mountinfo that shows control groups.
type mount struct {
	root, point string
	v1          bool // version 1, with the memory controller
}

// parseMount parses a line of proc_pid_mountinfo(5):
// 36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
func parseMount(line string) (mount, bool) {
	front, back, ok := strings.Cut(line, " - ")
	f, b := strings.Fields(front), strings.Fields(back)
	if !ok || len(f) < 5 || len(b) < 3 {
		return mount{}, false
	}
	m := mount{root: unescape(f[3]), point: unescape(f[4])}
	switch {
	case b[0] == "cgroup2":
		return m, true
	case b[0] == "cgroup" && contains(b[2], "memory"):
		m.v1 = true
		return m, true
	}
	return mount{}, false
}

// below returns path as seen from dir, when it lies there.
func below(dir, path string) (string, bool) {
	if dir == "/" {
		return path, true
	}
	rel, ok := strings.CutPrefix(path, dir)
	return rel, ok && (rel == "" || rel[0] == '/')
}

// contains reports whether word is one of the comma-separated list.
func contains(list, word string) bool {
	for w := range strings.SplitSeq(list, ",") {
		if w == word {
			return true
		}
	}
	return false
}

// unescape undoes the octal escapes of blanks in mountinfo.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

func readLines(name string) []string {
	b, err := os.ReadFile(name)
	if err != nil {
		return nil
	}
	return strings.Split(strings.TrimSpace(string(b)), "\n")
}

// readLimit returns the number in the file, MaxInt64 for none or "max". Version 1
// says "no limit" by a number near that.
func readLimit(name string) int64 {
	b, err := os.ReadFile(name)
	if err != nil {
		return math.MaxInt64
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	if err != nil || n <= 0 {
		return math.MaxInt64
	}
	return n
}
