package buffer

// PoolStats is a snapshot of a Pool. Its numbers are taken one after the other
// while the pool is in use, so they may not add up.
type PoolStats struct {
	Limit   int64 // bytes InUse may reach
	InUse   int64 // bytes in Bufs and caches, as whole pages; what the limit is about
	Mapped  int64 // bytes of memory the pool has from the system
	Empty   int64 // bytes of Mapped that wait for reuse or for Grace to pass
	Live    int64 // Bufs in use, slices included
	OffHeap bool  // memory is outside the Go heap: false under the race detector and off Linux
}

// Live returns how many Bufs of p are in use, slices included. It is exact when
// nothing is being allocated or released meanwhile.
func (p *Pool) Live() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.live()
}

func (p *Pool) live() int64 {
	n := p.folded
	for c := range p.caches {
		n += c.live()
	}
	return n
}

// Stats returns a snapshot.
func (p *Pool) Stats() PoolStats {
	p.mu.Lock()
	defer p.mu.Unlock()
	return PoolStats{
		Limit:   int64(p.limit),
		InUse:   int64(p.inUse),
		Mapped:  int64(p.mapped),
		Empty:   int64(p.empty),
		Live:    p.live(),
		OffHeap: p.space != nil,
	}
}
