package buffer

import "math/bits"

// Size classes: 16, 32, 48 and 64 bytes, then four to each doubling, up to
// maxSlot. Above 64 bytes the waste is less than a quarter of the slot, and at most
// a fifth of it when the request is one byte over a class.
const (
	maxSlotBits = 20
	maxSlot     = 1 << maxSlotBits
	numClasses  = 4 + 4*(maxSlotBits-6)

	classView  = numClasses     // handles without memory
	classHuge  = numClasses + 1 // runs of pages of their own
	classParts = numClasses + 2 // composites
)

// A span is the memory that is cut into slots of one class: so many pages that at
// most an eighth is left over, and that the small classes have a fair number of slots.
const (
	pageBits   = 13
	pageSize   = 1 << pageBits
	chunkPages = 512
	chunkSize  = chunkPages * pageSize
	unitSize   = 1 << 20 // of address space

	recordSize = handleSize + slotSize // the records of a slot
)

var (
	classSizes [numClasses]int
	classCosts [numClasses + 1]int // what a cache is charged for one, records included
	classPages [numClasses]int
	smallClass [1024/16 + 1]uint8 // class of (n+15)/16
)

func init() {
	for c := range classSizes {
		classSizes[c] = classSize(c)
		classPages[c] = spanPages(classSizes[c])
		classCosts[c] = classSizes[c] + recordSize
	}
	classCosts[classView] = handleSize
	for i := range smallClass {
		smallClass[i] = uint8(searchClass(i * 16))
	}
}

func classSize(c int) int {
	if c < 4 {
		return 16 * (c + 1)
	}
	c -= 4
	return (64 << (c / 4)) / 4 * (5 + c%4)
}

func spanPages(size int) int {
	most, few := 16, 8
	switch {
	case size > 8<<10:
		few = 1
		if size < 32<<10 {
			few = 2
		}
	case size > 2<<10:
		few = 4
	}
	for pages := (size + pageSize - 1) / pageSize; pages <= most; pages++ {
		total := pages * pageSize
		if n := total / size; n >= few && (total-n*size)*8 <= total {
			return pages
		}
	}
	return (size + pageSize - 1) / pageSize
}

// searchClass returns the smallest class that holds n <= maxSlot bytes.
func searchClass(n int) int {
	if n <= 64 {
		return max(0, (n+15)/16-1)
	}
	// In the doubling from 1<<k, n-1 has k as its highest bit, and the two bits
	// below say which quarter.
	k := bits.Len(uint(n-1)) - 1
	return 4 + (k-6)*4 + (n-1)>>(k-2)&3
}

// classOf is searchClass with a table for the small ones.
func classOf(n int) int {
	if n <= 1024 {
		return int(smallClass[(n+15)>>4])
	}
	return searchClass(n)
}
