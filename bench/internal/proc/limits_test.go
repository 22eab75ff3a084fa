//go:build linux

package proc

import "testing"

func TestKilobytes(t *testing.T) {
	const status = "Name:\tx\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\nThreads:\t3\nVmBad:\t  many kB\n"
	tests := []struct {
		name string
		want int64
		ok   bool
	}{
		{"VmHWM:", 2 << 20, true},
		{"VmRSS:", 1 << 20, true},
		{"Threads:", 0, false},
		{"VmBad:", 0, false},
		{"Vm", 0, false},
	}
	for _, tt := range tests {
		if got, ok := kilobytes([]byte(status), tt.name); got != tt.want || ok != tt.ok {
			t.Errorf("%s: got %d, %v; want %d, %v", tt.name, got, ok, tt.want, tt.ok)
		}
	}
}

func TestMemoryIsKnown(t *testing.T) {
	if n, err := AvailableMemory(); err != nil || n <= 0 {
		t.Errorf("available: got %d, %v", n, err)
	}
	if n, err := PeakMemory(); err != nil || n <= 0 {
		t.Errorf("peak: got %d, %v", n, err)
	}
}
