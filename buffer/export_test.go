package buffer

// PoolOf returns the pool of a cache.
func PoolOf(c *Cache) *Pool { return c.pool }

// HandleSize is what a Buf costs beside its bytes.
const HandleSize = handleSize + slotSize

// MaxSlot is the largest size class.
const MaxSlot = maxSlot

// ClassSize returns the size of the slot for n bytes.
func ClassSize(n int) int { return classSizes[classOf(n)] }
