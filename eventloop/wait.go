package eventloop

import "time"

const (
	// idleTime is how long a loop waits before it gives back memory it has kept for
	// the next burst.
	idleTime = int64(time.Second)

	// publishTime is how old a busy loop's published numbers become.
	publishTime = int64(200 * time.Microsecond)
)

// poll collects what is ready, and waits if there is nothing else to do.
func (l *Loop) poll() {
	l.now = l.look()
	if l.now-l.publishedAt >= publishTime {
		l.publish(l.now)
	}
	switch {
	case l.readyAt < l.ready:
		// The latest turn had no time for all of it.
	case l.pending():
		l.collect(0)
	case l.collect(0) > 0 || l.manual != nil:
	default:
		l.pause()
	}
	if l.ready > 0 {
		l.active = l.now
	}
}

// pause waits for something to do.
func (l *Loop) pause() {
	l.sight.enter(stagePoll)
	if !l.locked {
		// Whoever is about to give this loop work may only need the processor for it, or
		// have another one and need a moment.
		before := l.clock()
		who := l.company(before)
		if who == nobody && l.pace.near(before) {
			who = idleProcessor
		}
		l.now = l.yield(before, who)
		if l.now != before && (l.pending() || l.collect(0) > 0) {
			return
		}
	}
	if l.spin == 0 || !l.spinning() {
		l.wait()
	}
}

// pending reports whether there is something to do besides I/O.
func (l *Loop) pending() bool {
	if len(l.turnEnd) > 0 || l.batchAt < len(l.batch) || l.tasks.Len() > 0 || l.ending > 0 {
		return true
	}
	at := l.timers.next()
	return at != 0 && at <= l.now
}

// collect polls for up to timeout and returns how much there is.
func (l *Loop) collect(timeout time.Duration) int {
	if l.ready == len(l.outcomes) && l.ready < maxOutcomes {
		l.outcomes = make([]outcome, 2*len(l.outcomes))
	}
	n, err := l.poller.poll(l.outcomes, timeout)
	l.ready, l.readyAt = n, 0
	if err != nil {
		l.pollFailed(err)
	} else {
		l.pollFails = 0
	}
	return n
}

// pollFailed keeps a loop whose poller is broken from spinning: tasks and timers go
// on, slowly.
func (l *Loop) pollFailed(err error) {
	l.ready = 0
	l.pollFails++
	if l.pollFails == 1 {
		l.bug("poll failed", err)
	}
	time.Sleep(10 * time.Millisecond)
}

// spinning polls without waiting for as long as the loop may, and reports whether
// there is something to do. It leaves the processor to everybody who wants it.
func (l *Loop) spinning() (found bool) {
	from := l.clock()
	now := from
	for now-from < l.spin && !found {
		l.now = l.yield(now, l.company(now))
		found = l.collect(0) > 0 || l.pending()
		now = l.clock()
	}
	l.idle += now - from
	l.resumed(now)
	return found
}

// resumed takes note that the loop goes on after a pause.
func (l *Loop) resumed(now int64) {
	l.now, l.pace.lastYield, l.pace.looked = now, now, now
}

// wait polls until something happens. A loop that has had nothing to do for a while
// gives back the memory its caches hold, once, and waits on.
func (l *Loop) wait() {
	l.forget()
	l.timers.tidy()
	for {
		from := l.clock()
		timeout := time.Duration(-1)
		if at := l.timers.next(); at != 0 {
			if at <= from {
				l.resumed(from)
				return
			}
			timeout = time.Duration(at - from)
		}
		trimming := len(l.caches) > 0 && l.trimmed != l.active
		if trimming {
			left := idleTime - (from - l.active)
			if left <= 0 {
				l.trim()
				continue
			}
			if trimming = timeout < 0 || left < int64(timeout); trimming {
				timeout = time.Duration(left)
			}
		}
		l.m.Blocks++
		l.publish(from)
		n := 0
		l.sleep.Store(asleep)
		if l.tasks.Len() == 0 {
			n = l.collect(timeout)
		}
		if !l.sleep.CompareAndSwap(asleep, awake) {
			l.wakesOwed++
		}
		if l.sight != nil {
			l.sight.dog.wake()
		}
		now := l.clock()
		l.idle += now - from
		l.resumed(now)
		if n > 0 || l.tasks.Len() > 0 || !trimming {
			return
		}
	}
}

// trim gives back the memory that the caches hold for a next burst.
func (l *Loop) trim() {
	for i := range l.caches {
		l.caches[i].cache.Trim()
	}
	l.trimmed = l.active
}
