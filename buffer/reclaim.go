package buffer

// cacheBound returns how much a cache may keep now. Under pressure all of them
// together have a sixteenth of the limit. Under p.mu.
func (p *Pool) cacheBound() uintptr {
	if !p.pressure.Load() {
		return uintptr(p.bound)
	}
	return uintptr(max(1, min(p.bound/8, p.limit/16/len(p.caches))))
}

// sweep gives back what others than the owners of caches can: what the shared cache
// has, and what is on the return stacks. Under the mu of the shared cache, so that
// Close waits for it.
func (p *Pool) sweep() {
	p.shared.collect()
	p.shared.giveBack(0)
	for i := 0; ; i++ {
		c := p.cacheAt(i)
		if c == nil {
			return
		}
		c.clearStack()
	}
}

// reclaim makes room for an allocation that found none: c gives back all it has, and
// so does what sweep reaches. The lists of other caches are their owners' own: they
// are asked to give back theirs, for those who try again a little later.
func (c *Cache) reclaim() {
	p := c.pool
	p.pardon()
	c.collect()
	c.giveBack(0)
	if c.shared {
		p.sweep()
	} else {
		p.shared.mu.Lock()
		p.sweep()
		p.shared.mu.Unlock()
	}
	p.mu.Lock()
	for _, o := range p.caches {
		if o != c {
			o.ask()
		}
	}
	p.await()
	p.mu.Unlock()
}

// cacheAt returns a cache by its number, nil behind the last. While caches are made
// and closed it may come to one twice, or never.
func (p *Pool) cacheAt(i int) *Cache {
	p.mu.Lock()
	defer p.mu.Unlock()
	if i < len(p.caches) {
		return p.caches[i]
	}
	return nil
}

// trim gives up what the shared cache holds.
func (p *Pool) trim() {
	s := p.shared
	s.mu.Lock()
	defer s.mu.Unlock()
	s.collect()
	s.giveBack(0)
}
