package transport

import (
	"sync/atomic"

	"github.com/runnel-io/runnel/internal/sys"
)

const (
	// keepPipes is how many empty pipes a loop keeps. Two system calls and a kilobyte of
	// the kernel's are saved by each that is used again.
	keepPipes = 8
	// leastPipe is below what size a pipe is of no use: its user has so many already that
	// the kernel gives no more than a page or two (pipe-user-pages-soft in pipe(7)).
	leastPipe = 64 << 10

	// A pipe takes that much at a time while all pipes together hold little, and less
	// when they hold more than plentyPiped: bytes in a pipe are the kernel's memory, and
	// those of peers that do not read stay there.
	longSplice  = 512 << 10
	shortSplice = 64 << 10
	plentyPiped = 8 << 20
	// mostPiped is with how many bytes in all pipes together nothing more is spliced;
	// what comes then is copied, and pauses at the water marks.
	mostPiped = 32 << 20
)

// piped is how many bytes are in the pipes of the process.
var piped atomic.Int64

// spliceSize returns how many bytes the next splice into a pipe may take; 0 if it is
// better to copy.
func spliceSize() int {
	switch n := piped.Load(); {
	case n < plentyPiped:
		return longSplice
	case n < mostPiped:
		return shortSplice
	}
	return 0
}

// pipe is a pipe of the kernel. It is lent by a loop for as long as it holds bytes.
type pipe struct{ r, w int }

// pipePool is the empty pipes of a loop. Loop-only.
type pipePool struct{ idle []pipe }

// lend returns an empty pipe. It fails if the system refuses one, or gives one that is
// too small to be of use.
func (pp *pipePool) lend() (pipe, error) {
	if n := len(pp.idle); n > 0 {
		p := pp.idle[n-1]
		pp.idle = pp.idle[:n-1]
		return p, nil
	}
	r, w, err := sys.Pipe()
	if err != nil {
		return pipe{}, err
	}
	p := pipe{r, w}
	if size, err := sys.PipeSize(r); err != nil || size < leastPipe {
		p.close()
		return pipe{}, errSmallPipe
	}
	return p, nil
}

// back takes a pipe that is empty again.
func (pp *pipePool) back(p pipe) {
	if len(pp.idle) < keepPipes {
		pp.idle = append(pp.idle, p)
		return
	}
	p.close()
}

// close closes a pipe, and drops what it holds.
func (p pipe) close() {
	_ = sys.Close(p.r)
	_ = sys.Close(p.w)
}

// end closes all pipes.
func (pp *pipePool) end() {
	for _, p := range pp.idle {
		p.close()
	}
	pp.idle = nil
}
