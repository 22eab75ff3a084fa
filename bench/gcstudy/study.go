//go:build linux

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/metrics"

	"github.com/runnel-io/runnel/bench/internal/proc"
	"github.com/runnel-io/runnel/buffer"
)

// figures are what one process reports. All but the peak are of the time in which it
// made garbage.
type figures struct {
	Cycles     uint64  `json:"cycles"`      // collections
	GCSeconds  float64 `json:"gc_seconds"`  // CPU time of the collector, on cores that were idle too
	CPUSeconds float64 `json:"cpu_seconds"` // of the whole process
	PeakRSS    int64   `json:"peak_rss"`    // bytes resident, at most, ever
}

// errOnHeap reports a build in which the pool is no different from Heap.
var errOnHeap = errors.New("the pool's memory is on the Go heap here")

// recent keeps the newest objects alive for a while, as an application does.
var recent [1 << 10]*[garbageSize]byte

// study is what a child process does: fill the buffers, make garbage, report.
func study(w io.Writer, o options) error {
	alloc := buffer.Heap
	if o.child == offHeap {
		p, err := buffer.NewPool(buffer.PoolConfig{Limit: o.live + o.live/8})
		if err != nil {
			return err
		}
		if !p.Stats().OffHeap {
			return errOnHeap
		}
		alloc = p
	}
	page := make([]byte, bufferSize)
	live := make([]*buffer.Buf, 0, o.live/bufferSize)
	for range cap(live) {
		b := alloc.Alloc(bufferSize)
		b.Write(page) // makes it resident
		live = append(live, b)
	}
	runtime.GC()
	cycles, gc := collector()
	cpu, err := proc.CPU(os.Getpid())
	if err != nil {
		return err
	}
	for i := range o.garbage / garbageSize {
		recent[i%int64(len(recent))] = new([garbageSize]byte)
	}
	cyclesThen, gcThen := collector()
	cpuThen, err := proc.CPU(os.Getpid())
	if err != nil {
		return err
	}
	f := figures{Cycles: cyclesThen - cycles, GCSeconds: gcThen - gc, CPUSeconds: (cpuThen - cpu).Seconds()}
	if f.PeakRSS, err = proc.PeakMemory(); err != nil {
		return err
	}
	var sum int
	for _, b := range live { // alive until here
		sum += b.Len()
		b.Release()
	}
	if want := len(live) * bufferSize; sum != want {
		return fmt.Errorf("the buffers hold %d bytes, want %d", sum, want)
	}
	return json.NewEncoder(w).Encode(f)
}

// collector returns the number of collections and their CPU seconds up to now. The
// runtime brings the seconds up to date at the end of each collection.
func collector() (cycles uint64, seconds float64) {
	s := []metrics.Sample{{Name: "/gc/cycles/total:gc-cycles"}, {Name: "/cpu/classes/gc/total:cpu-seconds"}}
	metrics.Read(s)
	return s[0].Value.Uint64(), s[1].Value.Float64()
}
