package transport

import "github.com/runnel-io/runnel/internal/sys"

// reserve takes a place for a connection that is about to be accepted. If there is
// none, l is told when there may be one again.
func (s *server) reserve(l *listener) bool {
	if s.maxConns == 0 {
		return true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.places < s.maxConns {
		s.places++
		return true
	}
	l.full = true
	return false
}

// unreserve gives back a place that no connection has come for.
func (s *server) unreserve() {
	if s.maxConns == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.freePlace()
}

// freePlace gives back a place, and has all listeners go on that found none: one alone
// might have nobody waiting. s.mu is held.
func (s *server) freePlace() {
	if s.maxConns == 0 {
		return
	}
	s.places--
	for _, l := range s.listeners {
		if l.full {
			l.full = false
			_ = l.Loop().Submit((*roomTask)(l)) // a loop that has ended accepts nothing
		}
	}
	for l := range s.locals.listeners {
		if l.full {
			l.full = false
			_ = l.Loop().Submit((*localAccept)(l))
		}
	}
}

// maxShed is how many connections are shed in one go: each is two calls, and the
// loop has other things to do.
const maxShed = 256

// shed takes connections out of the queue of l and closes them, so that their peers
// see an end instead of nothing, which may last. With no descriptor to be had, the
// spare one is given up for the time. It returns how many.
func (s *server) shed(l *listener) (n int) {
	s.spareMu.Lock()
	defer s.spareMu.Unlock()
	if s.spare < 0 {
		return 0
	}
	_ = sys.Close(s.spare)
	for range maxShed {
		fd, _, err := l.sock.accept()
		if err == nil {
			_ = sys.Close(fd)
			n++
		} else if !isAny(err, connectionErrors) {
			break
		}
	}
	s.openSpare() // somebody else may have been quicker; then the next success tries again
	return n
}

// keepSpare opens the spare descriptor if there is none.
func (s *server) keepSpare() {
	s.spareMu.Lock()
	defer s.spareMu.Unlock()
	if s.spare < 0 {
		s.openSpare()
	}
}

// openSpare is keepSpare with s.spareMu held.
func (s *server) openSpare() {
	fd, err := sys.Eventfd() // of all descriptors the one that needs no file
	if err != nil {
		fd = -1
	}
	s.spare = fd
}

// dropSpare closes the spare descriptor: nobody accepts any more.
func (s *server) dropSpare() {
	s.spareMu.Lock()
	defer s.spareMu.Unlock()
	if s.spare >= 0 {
		_ = sys.Close(s.spare)
		s.spare = -1
	}
}
