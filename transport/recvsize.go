package transport

// recvSizes are the sizes of receive buffers. Large streams gain from large reads
// up to 1 MiB; small messages lose, because a large buffer leaves the cache.
var recvSizes = [...]int{64 << 10, 256 << 10, 1 << 20}

const (
	// copyLimit is up to how many bytes a read is copied into a Buf of the right
	// size; above, the receive buffer itself is handed on.
	copyLimit = 4 << 10
	// A turn of reading ends after this many reads or bytes, so that the other
	// channels of the loop get theirs.
	maxReadsPerTurn = 16
	maxBytesPerTurn = 1 << 20
)

// recvSize chooses the size of the next read by what the last ones brought: one
// that filled its buffer goes up a size, two turns in a row that the next smaller
// size would have held four times over go down. Its bounds are those of Config, in
// bytes; 0 is none.
type recvSize struct {
	index uint8
	small uint8 // turns in a row that brought little, and cameBit
}

// cameBit of recvSize.small says that anything has come yet.
const cameBit = 1 << 7

// newRecvSize returns the size to begin with.
func newRecvSize(least int) (r recvSize) {
	for r.size() < least && int(r.index) < len(recvSizes)-1 {
		r.index++
	}
	return r
}

func (r *recvSize) size() int { return recvSizes[r.index] }

// read records a read of n bytes into a buffer of the current size, and reports
// whether the size has changed.
func (r *recvSize) read(n, most int) bool {
	if n < r.size() || int(r.index) == len(recvSizes)-1 || most != 0 && r.size() >= most {
		return false
	}
	r.index++
	r.small &= cameBit
	return true
}

// turn records the bytes of a whole turn, and reports whether the size has changed.
func (r *recvSize) turn(total, least int) bool {
	if total > 0 {
		r.small |= cameBit
	}
	if r.index == 0 || total > recvSizes[r.index-1]/4 || recvSizes[r.index-1] < least {
		r.small &= cameBit
		return false
	}
	if r.small++; r.small&^cameBit < 2 {
		return false
	}
	r.index--
	r.small &= cameBit
	return true
}

// heard reports whether anything has come yet, as of the last turn.
func (r *recvSize) heard() bool { return r.small&cameBit != 0 }
