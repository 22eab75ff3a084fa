package buffer

import (
	"math"
	"slices"
	"strconv"
	"sync"
	"unsafe"

	"github.com/runnel-io/runnel/internal/sys"
)

// maxLimit is the most a pool can hold: all of a 64-bit machine's memory, and what a
// range can be found for on a 32-bit one.
const maxLimit = 1<<(28+14*(strconv.IntSize/64)) - chunkSize

// hugeUnits are the units of a huge page, and what the base of a space is aligned to.
const hugeUnits = 2

// A space is a reserved range of addresses in units of unitSize.
type space struct {
	base  unsafe.Pointer
	units int
	huge  bool // the system was asked for huge pages, and knows them
	taken []uint64
	low   int // no unit before it is free
}

// spaces are the ranges of closed pools. A range is never unmapped: the next pool
// uses it.
var spaces freeSpaces

type freeSpaces struct {
	sync.Mutex
	all []*space
}

func (f *freeSpaces) put(s *space) {
	f.Lock()
	defer f.Unlock()
	f.all = append(f.all, s)
}

func (f *freeSpaces) get(units int, huge bool) *space {
	f.Lock()
	defer f.Unlock()
	for i, s := range f.all {
		if s.units >= units && s.huge == huge {
			f.all = slices.Delete(f.all, i, i+1)
			return s
		}
	}
	return nil
}

// reserve finds addresses for a pool: four times its limit, so that large runs find
// room among others, or less where there is less. It returns nil if there is no
// room for the limit, or no such thing on this system.
func reserve(limit int, huge bool) *space {
	least := limit/unitSize + 2*chunkSize/unitSize
	if s := spaces.get(least, huge); s != nil {
		return s
	}
	most := least * 4
	if strconv.IntSize == 32 {
		most = least + least/2
	}
	for units := most; units >= least; units = max(units/2, least) {
		if base, err := sys.Reserve(uintptr(units+hugeUnits) * unitSize); err == nil {
			base = alignUp(base, hugeUnits*unitSize)
			huge = huge && sys.HugePages(base, uintptr(units)*unitSize) == nil
			return &space{base: base, units: units, huge: huge, taken: make([]uint64, (units+63)/64)}
		}
		if units == least {
			break
		}
	}
	return nil
}

// alignUp returns the first address from p on that is a multiple of align, a power
// of two.
func alignUp(p unsafe.Pointer, align int) unsafe.Pointer {
	return unsafe.Add(p, -uintptr(p)&uintptr(align-1))
}

// find takes a run of free units and returns the first, or -1.
func (s *space) find(units int) int {
	align := 1
	if s.huge && units >= hugeUnits {
		align = hugeUnits
	}
	run := 0
	for i := s.low; i < s.units; i++ {
		if i%64 == 0 && s.taken[i/64] == math.MaxUint64 {
			run = 0
			i += 63
			continue
		}
		if s.taken[i/64]&(1<<(i%64)) != 0 {
			run = 0
			continue
		}
		if run == 0 && i%align != 0 {
			continue
		}
		if run++; run == units {
			first := i - units + 1
			for j := first; j <= i; j++ {
				s.taken[j/64] |= 1 << (j % 64)
			}
			if first == s.low {
				s.low = i + 1
			}
			return first
		}
	}
	return -1
}

// give returns a run of units.
func (s *space) give(first, units int) {
	for i := first; i < first+units; i++ {
		s.taken[i/64] &^= 1 << (i % 64)
	}
	s.low = min(s.low, first)
}
