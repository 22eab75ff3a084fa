package buffer

import "slices"

// Pressure begins at nine tenths of the limit and ends at eight.
const (
	pressureFrom = 9
	pressureTo   = 8
)

// A watcher is told of pressure.
type watcher struct {
	f    func(high bool)
	told bool // what it knows
}

// Pressure reports whether the pool is close to its limit: from the moment that
// PoolStats.InUse reaches nine tenths of it until it has fallen to eight tenths. It
// costs a load, so that a transport may ask before every read.
//
// While it lasts, caches keep little for themselves.
func (p *Pool) Pressure() bool { return p.pressure.Load() }

// OnPressure has f called with true when the pool has come under pressure, in the
// sense of [Pool.Pressure], and with false when that is over: in turns, beginning
// with true, which comes soon if there is pressure already. What does not last until
// f is called may be left out. Stop ends it; a call that has begun goes on.
//
// F runs on a goroutine of the pool, one call of all functions at a time and without
// locks: it may allocate, release and call the pool. It should hand on what takes
// long; a loop is told by a task. Its panic is not recovered.
func (p *Pool) OnPressure(f func(high bool)) (stop func()) {
	w := &watcher{f: f}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.watchers = append(p.watchers, w)
	if p.pressure.Load() {
		p.startTelling()
	}
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.watchers = slices.DeleteFunc(p.watchers, func(o *watcher) bool { return o == w })
	}
}

// judge looks whether pressure has begun or ended. Under p.mu, whenever inUse may have
// changed.
func (p *Pool) judge() {
	tenth := p.limit / 10
	high := p.pressure.Load()
	if high && p.inUse > pressureTo*tenth || !high && p.inUse < p.limit-(10-pressureFrom)*tenth {
		return
	}
	high = !high
	p.pressure.Store(high)
	for _, c := range p.caches {
		if high {
			c.ask()
		} else if c.bound.Load() != 0 {
			c.bound.Store(p.cacheBound())
		}
	}
	p.startTelling()
}

// startTelling has those told who do not know yet. Under p.mu.
func (p *Pool) startTelling() {
	if !p.telling {
		p.telling = true
		go p.tell()
	}
}

func (p *Pool) tell() {
	ended := false
	defer func() {
		if !ended { // a function has ended the goroutine
			go p.tell()
		}
	}()
	for {
		if p.Pressure() {
			p.shared.mu.Lock()
			p.sweep() // perhaps that is all it takes
			p.shared.mu.Unlock()
		}
		w, high := p.nextTold()
		if w == nil {
			ended = true
			return
		}
		w.f(high)
	}
}

// nextTold returns whom to tell what, and nil when all know.
func (p *Pool) nextTold() (*watcher, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	high := p.pressure.Load()
	for _, w := range p.watchers {
		if w.told != high {
			w.told = high
			return w, high
		}
	}
	p.telling = false
	return nil, high
}
