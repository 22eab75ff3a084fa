package sys

import (
	"math"
	"os"
	"path/filepath"
	"testing"
)

func TestCgroupLimit(t *testing.T) {
	const none = math.MaxInt64
	const (
		v2     = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
		v1     = "33 23 0:29 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
		v1cpu  = "34 23 0:30 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
		hybrid = "35 23 0:31 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
		other  = "23 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"
	)
	tests := []struct {
		name   string
		cgroup string
		mounts string
		files  map[string]string
		want   int64
	}{
		{name: "nothing at all", want: none},
		{
			name: "v2 without limits", cgroup: "0::/a\n", mounts: other + v2,
			files: map[string]string{"sys/fs/cgroup/a/memory.max": "max\n"}, want: none,
		},
		{
			name: "v2, its own group", cgroup: "0::/system.slice/x.service\n", mounts: other + v2,
			files: map[string]string{"sys/fs/cgroup/system.slice/x.service/memory.max": "1048576\n"}, want: 1 << 20,
		},
		{
			name: "v2, a group above is stricter", cgroup: "0::/a/b/c\n", mounts: v2,
			files: map[string]string{
				"sys/fs/cgroup/a/b/c/memory.max": "3000\n",
				"sys/fs/cgroup/a/b/memory.max":   "max\n",
				"sys/fs/cgroup/a/memory.max":     "2000\n",
				"sys/fs/cgroup/memory.max":       "5000\n",
				"sys/fs/cgroup/other/memory.max": "1\n",
			}, want: 2000,
		},
		{
			name: "v2, a namespace of its own", cgroup: "0::/\n", mounts: v2,
			files: map[string]string{"sys/fs/cgroup/memory.max": "4096\n"}, want: 4096,
		},
		{
			name: "v2, seen from a container without a namespace", cgroup: "0::/docker/id/sub\n",
			mounts: "30 23 0:26 /docker/id /sys/fs/cgroup ro - cgroup2 cgroup rw\n",
			files:  map[string]string{"sys/fs/cgroup/sub/memory.max": "9\n", "sys/fs/cgroup/memory.max": "8\n"}, want: 8,
		},
		{
			name: "v2, the group is not below what is mounted", cgroup: "0::/docker/idx\n",
			mounts: "30 23 0:26 /docker/id /sys/fs/cgroup ro - cgroup2 cgroup rw\n",
			files:  map[string]string{"sys/fs/cgroup/memory.max": "8\n", "sys/fs/cgroup/x/memory.max": "1\n"}, want: 8,
		},
		{
			name: "v2, the group is above the namespace", cgroup: "0::/../b\n", mounts: v2,
			files: map[string]string{"sys/fs/cgroup/memory.max": "8\n"}, want: 8,
		},
		{
			name: "v1", cgroup: "5:cpu,cpuacct:/c\n4:memory:/a/b\n1:name=systemd:/s\n", mounts: other + v1cpu + v1,
			files: map[string]string{
				"sys/fs/cgroup/memory/a/b/memory.limit_in_bytes":    "2048\n",
				"sys/fs/cgroup/memory/a/memory.limit_in_bytes":      "9223372036854771712\n",
				"sys/fs/cgroup/memory/memory.limit_in_bytes":        "9223372036854771712\n",
				"sys/fs/cgroup/memory/c/memory.limit_in_bytes":      "1\n",
				"sys/fs/cgroup/cpu,cpuacct/a/memory.limit_in_bytes": "2\n",
			}, want: 2048,
		},
		{
			name: "v1 in a container", cgroup: "4:memory:/docker/id\n",
			mounts: "33 23 0:29 /docker/id /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n",
			files:  map[string]string{"sys/fs/cgroup/memory/memory.limit_in_bytes": "2048\n"}, want: 2048,
		},
		{
			name: "both, memory by v1", cgroup: "4:memory:/m\n0::/u\n", mounts: v1 + hybrid,
			files: map[string]string{
				"sys/fs/cgroup/memory/m/memory.limit_in_bytes": "2048\n",
				"sys/fs/cgroup/unified/m/memory.max":           "1\n",
			}, want: 2048,
		},
		{
			name: "a mount point with a blank", cgroup: "0::/\n",
			mounts: "30 23 0:26 / /sys/fs/c\\040g rw - cgroup2 cgroup2 rw\n",
			files:  map[string]string{"sys/fs/c g/memory.max": "64\n"}, want: 64,
		},
		{
			name: "rubbish", cgroup: "x\n::\n0::\n\n", mounts: "a b c\n - cgroup2\n1 2 3 4 5 - cgroup2\n" + v2,
			files: map[string]string{"sys/fs/cgroup/memory.max": "12 apples\n"}, want: none,
		},
		{
			name: "no limit, by its other names", cgroup: "0::/a/b\n", mounts: v2,
			files: map[string]string{"sys/fs/cgroup/a/b/memory.max": "-1\n", "sys/fs/cgroup/a/memory.max": "\n"}, want: none,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			root := t.TempDir()
			write := func(name, text string) {
				t.Helper()
				name = filepath.Join(root, name)
				check(t, os.MkdirAll(filepath.Dir(name), 0o755))
				check(t, os.WriteFile(name, []byte(text), 0o644))
			}
			if tt.cgroup != "" {
				write("proc/self/cgroup", tt.cgroup)
			}
			if tt.mounts != "" {
				write("proc/self/mountinfo", tt.mounts)
			}
			for name, text := range tt.files {
				write(name, text)
			}
			if got := cgroupLimit(root); got != tt.want {
				t.Errorf("got %d, want %d", got, tt.want)
			}
		})
	}
}

func TestMemoryLimit(t *testing.T) {
	if got := MemoryLimit(); got < 1<<20 || got == math.MaxInt64 {
		t.Errorf("got %d, want what a machine can have", got)
	}
}
