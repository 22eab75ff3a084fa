package buffer

import (
	"fmt"
	"unsafe"

	"github.com/runnel-io/runnel/internal/sys"
)

// HandleSize is what a Buf costs beside its bytes.
const HandleSize = handleSize + slotSize

// MaxSlot is the largest size class.
const MaxSlot = maxSlot

// ClassSize returns the size of the slot for n bytes.
func ClassSize(n int) int { return classSizes[classOf(n)] }

// IovecBytes returns the memory of an entry of an iovec array.
func IovecBytes(v sys.Iovec) []byte { return unsafe.Slice(v.Base, int(v.Len)) }

// CopyAt fills dst from index i and touches no window, so that a check changes nothing.
func CopyAt(b *Buf, dst []byte, i int) { b.copyOut(dst, i) }

// CheckParts returns what is wrong with the account a composite keeps of its parts.
func CheckParts(b *Buf) error {
	if b.flags&flagParts == 0 {
		return nil
	}
	ps := b.pieces()
	all := ps.list[:cap(ps.list)]
	pos, pinned, mapped := ps.first, 0, 0
	for k, x := range all {
		if k < ps.head || k >= len(ps.list) {
			if x.b != nil {
				return fmt.Errorf("a part is left at %d, outside of %d to %d", k, ps.head, len(ps.list))
			}
			continue
		}
		n := x.b.q - x.b.r
		pos += n
		pinned += ps.charge(k)
		if x.b.Mapped() {
			mapped++
		}
		switch {
		case n == 0 && (k < len(ps.list)-1 || x.b.l == x.b.q):
			return fmt.Errorf("part %d of %d to %d is empty", k, ps.head, len(ps.list))
		case x.end != pos:
			return fmt.Errorf("part %d ends at %d, want %d", k, x.end, pos)
		case x.b.ref != 1 || x.b.flags&flagParts != 0 || x.b.r < 0 || x.b.l < x.b.q:
			return fmt.Errorf("part %d: %d references, flags %#x, %d to %d of %d", k, x.b.ref, x.b.flags, x.b.r, x.b.q, x.b.l)
		}
		if s := x.b.slot; x.b.l > 0 && (uintptr(x.b.p) < uintptr(s.mem) || uintptr(x.b.p)+uintptr(x.b.l) > uintptr(s.mem)+uintptr(s.size)) {
			return fmt.Errorf("part %d lies outside of its memory", k)
		}
	}
	if pinned != ps.pinned || mapped != ps.mapped || b.Mapped() != (mapped > 0) {
		return fmt.Errorf("counted %d bytes pinned and %d parts mapped, want %d and %d", ps.pinned, ps.mapped, pinned, mapped)
	}
	if i := b.WriterIndex(); i != pos-ps.origin {
		return fmt.Errorf("the writer is at %d, the parts end at %d", i, pos-ps.origin)
	}
	if b.lim3 != 0 || b.r < 0 || b.w < b.r {
		return fmt.Errorf("windows: r %d, w %d, lim3 %d", b.r, b.w, b.lim3)
	}
	return nil
}

// Forget makes up for what a test has lost on purpose: n Bufs and FileRegions are no
// longer live, and the next leak is the first of its kind.
func Forget(n int64) {
	heapLive.Add(-n)
	reports.Lock()
	reports.seen = nil
	reports.Unlock()
}

// Disown takes a pool that cannot be closed any more off the process's account.
func Disown(p *Pool) {
	pools.Lock()
	delete(pools.all, p)
	pools.Unlock()
}

// Traced reports whether b's stack has been taken.
func Traced(b *Buf) bool { return b.flags&flagTraced != 0 }

// SampleEvery and MaxLeakKeys are bounds of the reports.
const (
	SampleEvery = sampleEvery
	MaxLeakKeys = maxLeakKeys
)

// Apart reports whether b's memory has pages of its own.
func Apart(b *Buf) bool { return b.slot.apart }

// Jailed returns how much memory of p is protected.
func Jailed(p *Pool) (runs, bytes int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.jail.runs, p.jail.bytes
}

// ParseLevel is what RUNNEL_LEAK goes through.
func ParseLevel(s string) (LeakLevel, error) { return parseLevel(s) }
