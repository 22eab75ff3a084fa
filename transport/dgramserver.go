package transport

import (
	"maps"
	"net"
	"slices"

	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/internal/sys"
	"github.com/runnel-io/runnel/pipeline"
)

// listenDatagram makes a channel of datagrams that is bound to local, and active. With
// PerLoop there is one for each loop; the first is returned, and when it closes the
// others do.
func (s *Server) listenDatagram(network string, local net.Addr) (pipeline.Channel, error) {
	g, err := s.s.acquire()
	if err != nil {
		return nil, &OpError{Op: "listen", Addr: local, Err: err}
	}
	defer g.Release() // each channel holds it by itself
	var loops []*eventloop.Loop
	if _, udp := local.(*net.UDPAddr); udp && s.PerLoop {
		loops = g.Loops()
	} else {
		loops = append(loops, g.Next())
	}
	var first *dgram
	for _, loop := range loops {
		fd, bound, file, err := s.bindDatagram(network, local)
		if err != nil {
			err = &OpError{Op: "listen", Addr: local, Err: err}
		} else {
			local = bound // the port that was picked is for all
			g.Hold()
			ch := newDgram(&s.s.cfg, loop, fd, bound)
			ch.srv, ch.file = s.s, file
			err = s.s.startDgram(ch)
			switch {
			case err != nil:
			case first == nil:
				first = ch
			default:
				first.Closed().Then(func(error) { ch.Abort(pipeline.CloseFlushed, first.CloseReason()) })
			}
		}
		if err != nil {
			if first != nil {
				first.Close()
			}
			return nil, err
		}
	}
	return first, nil
}

// bindDatagram makes a datagram socket that is bound to local. It returns the address
// that it got.
func (s *Server) bindDatagram(network string, local net.Addr) (int, net.Addr, *socketFile, error) {
	fd, err := sys.Socket(local)
	if err != nil {
		return -1, nil, nil, err
	}
	if udp, ok := local.(*net.UDPAddr); ok {
		// No SO_REUSEADDR: with datagrams it takes the port from who has it.
		if s.ReusePort || s.PerLoop {
			err = sys.SetReusePort(fd, true)
		}
		if err == nil && len(udp.IP) == net.IPv6len {
			err = sys.SetIPv6Only(fd, network == "udp6" || !udp.IP.IsUnspecified())
		}
	}
	if err == nil {
		err = s.s.cfg.apply(fd, local)
	}
	if err == nil {
		err = s.s.cfg.control(fd, local)
	}
	var file *socketFile
	if err == nil {
		file, err = bindSocket(fd, local, nil)
	}
	var bound net.Addr
	if err == nil {
		bound, err = sys.LocalAddr(fd, local.Network())
	}
	if err != nil {
		file.remove()
		_ = sys.Close(fd)
		return -1, nil, nil, err
	}
	return fd, bound, file, nil
}

// startDgram starts a channel that is bound, whose group is held for it. If that fails
// it is gone.
func (s *server) startDgram(ch *dgram) error {
	local := ch.local.load()
	lost := func() {
		ch.file.remove()
		ch.sock.close()
		ch.Loop().Group().Release()
	}
	if !s.addDgram(ch) {
		lost()
		return ErrServerClosed
	}
	started := make(chan error, 1)
	if err := ch.Loop().Execute(func() {
		defer func() {
			// Also when Init is ended by runtime.Goexit.
			err := ch.CloseReason()
			if err == nil && !ch.Active() {
				err = pipeline.ErrGoexit
			}
			started <- err
		}()
		ch.start(s.start)
	}); err != nil {
		if ch.Open() { // else a Shutdown was quicker than the end of the loop
			s.dgramEnded(ch)
			lost()
		}
		return &OpError{Op: "listen", Addr: local, Err: err}
	}
	if err := <-started; err != nil {
		return &OpError{Op: "listen", Addr: local, Err: err}
	}
	return nil
}

// addDgram takes note of a channel. It reports false when the server is closing.
func (s *server) addDgram(ch *dgram) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return false
	}
	if s.dgrams == nil {
		s.dgrams = make(map[*dgram]struct{})
	}
	s.bound++
	ch.nth = s.bound
	s.dgrams[ch] = struct{}{}
	return true
}

// dgramEnded forgets a channel.
func (s *server) dgramEnded(ch *dgram) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.dgrams, ch)
	s.checkEmpty()
}

// openDgrams returns the channels of datagrams that have not ended.
func (s *server) openDgrams() []*dgram {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Keys(s.dgrams))
}

// dgramDrain is a channel as the task that drains it.
type dgramDrain dgram

func (t *dgramDrain) Run() {
	s := (*dgram)(t)
	s.Pipeline().FireEvent(Draining{})
	if s.at == dgramOpen && s.reading() {
		// What has come by now is answered.
		s.HandleIO(eventloop.EventRead)
	}
	s.CloseIdle()
}
