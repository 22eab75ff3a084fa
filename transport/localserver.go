package transport

import (
	"net"
	"strconv"
	"sync"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/pipeline"
)

// localNames has the listeners of the network "local": string to *localListener.
var localNames sync.Map

// unnamed returns the address of a channel that has no name.
func unnamed(ch pipeline.Channel) localAddr {
	return localAddr("#" + strconv.FormatUint(ch.ID(), 10))
}

// connectLocal connects s to who listens at name.
func connectLocal(s *localChannel, name localAddr, local net.Addr) error {
	l, ok := localNames.Load(string(name))
	if !ok {
		return errRefused
	}
	return l.(*localListener).connect(s, local)
}

// localListener is the channel of a name that local channels connect to.
type localListener struct {
	pipeline.Base

	srv     *server
	name    localAddr
	backlog int

	mu     sync.Mutex
	queue  fifo[*localChannel] // connected and not accepted
	told   bool                // the loop has been told of them
	closed bool

	full bool // guarded by srv.mu: to be told of the next free place

	// Loop-only.
	reg      *eventloop.Registration
	wantRead bool
	done     bool
}

// listenLocal starts a listener at name; without one it gets one.
func (s *server) listenLocal(name string, backlog int) (pipeline.Channel, error) {
	g, err := s.acquire()
	if err != nil {
		return nil, &OpError{Op: "listen", Addr: localAddr(name), Err: err}
	}
	if backlog <= 0 {
		backlog = defaultBacklog
	}
	l := &localListener{srv: s, backlog: backlog, name: localAddr(name)}
	l.Setup(l, (*localListenerCore)(l), pipeline.BaseConfig{
		Loop:      g.Next(),
		Allocator: s.cfg.Allocator,
		Logger:    s.cfg.Logger,
		HighWater: minHighWater,
		LowWater:  minHighWater / 2,
	})
	if name == "" {
		l.name = unnamed(l)
	}
	if _, taken := localNames.LoadOrStore(string(l.name), l); taken {
		g.Release()
		return nil, &OpError{Op: "listen", Addr: l.name, Err: errNameInUse}
	}
	if !s.addLocalListener(l) {
		l.forget()
		g.Release()
		return nil, ErrServerClosed
	}
	started := make(chan error, 1)
	if err := l.Loop().Execute(func() {
		err := pipeline.ErrGoexit // unless start returns
		defer func() { started <- err }()
		err = l.start(s.listenerInit)
	}); err != nil {
		if l.Open() { // else a Shutdown was quicker than the end of the loop
			l.forget()
			s.localListenerEnded(l)
			g.Release()
		}
		return nil, &OpError{Op: "listen", Addr: l.name, Err: err}
	}
	if err := <-started; err != nil {
		return nil, &OpError{Op: "listen", Addr: l.name, Err: err}
	}
	return l, nil
}

// start registers the listener, as that of sockets does. Loop-only.
func (l *localListener) start(init func(pipeline.Channel) error) error {
	if l.done {
		return l.CloseReason()
	}
	reg, err := l.Loop().Register(-1, l)
	if err != nil {
		(*localListenerCore)(l).DoClose(pipeline.CloseNow, err)
		return err
	}
	l.reg = reg
	err = l.Register(func(ch pipeline.Channel) error {
		if init != nil {
			if err := init(ch); err != nil {
				return err
			}
		}
		_, err := ch.Pipeline().AddNamed("acceptor", pipeline.On(l.srv.adoptLocal))
		return err
	})
	if err != nil {
		return err
	}
	l.MarkActive()
	return nil
}

// connect makes the other end of s, which is connected from then on and waits to be
// accepted. It runs on the loop of s.
func (l *localListener) connect(s *localChannel, local net.Addr) error {
	g, err := l.srv.acquire()
	if err != nil {
		return err
	}
	ch := newLocal(&l.srv.cfg, g.Next(), l)
	ch.srv = l.srv
	ch.local.store(l.name)
	ch.remote.store(local)
	l.mu.Lock()
	if l.closed || int(l.queue.n) >= l.backlog || !l.srv.addLocal(ch) {
		l.mu.Unlock()
		g.Release()
		return errRefused
	}
	joinLocal(s, ch)
	l.queue.push(ch)
	tell := !l.told
	l.told = true
	l.mu.Unlock()
	if tell {
		_ = l.Loop().Submit((*localAccept)(l)) // a loop that has ended has closed the listener
	}
	return nil
}

// localAccept is a listener as the task that accepts.
type localAccept localListener

func (t *localAccept) Run() {
	l := (*localListener)(t)
	l.mu.Lock()
	l.told = false
	l.mu.Unlock()
	if l.done || !l.wantRead {
		return
	}
	l.wantRead = false
	accepted := 0
	for accepted < maxReadsPerTurn && !l.done {
		ch := l.nextPlaced()
		if ch == nil {
			break
		}
		accepted++
		l.Loop().Counters().Accepts++
		l.Pipeline().FireRead(ch)
		if !l.AutoRead() {
			break
		}
	}
	switch {
	case l.done:
	case accepted > 0:
		l.Pipeline().FireReadComplete()
	default:
		l.wantRead = true // the request is not served yet
	}
}

// next takes the next channel that waits to be accepted, or returns nil.
func (l *localListener) next() *localChannel {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.queue.n == 0 {
		return nil
	}
	ch := *l.queue.first()
	*l.queue.first() = nil
	l.queue.pop()
	return ch
}

// nextPlaced is next with a place of Server.MaxConns. Without one l is told when there
// may be one again.
func (l *localListener) nextPlaced() *localChannel {
	s := l.srv
	if s.maxConns == 0 {
		return l.next()
	}
	s.mu.Lock()
	if s.places >= s.maxConns {
		l.full = true
		s.mu.Unlock()
		return nil
	}
	s.places++
	s.mu.Unlock()
	ch := l.next() // not under s.mu: connect has the locks in the other order
	if ch == nil {
		s.unreserve()
		return nil
	}
	s.mu.Lock()
	ch.placed = true
	s.mu.Unlock()
	return ch
}

// forget gives the name up, and refuses who waits to be accepted.
func (l *localListener) forget() {
	localNames.CompareAndDelete(string(l.name), l)
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	for ch := l.next(); ch != nil; ch = l.next() {
		l.srv.refuseLocal(ch)
	}
}

// HandleIO implements eventloop.IOHandle. There is no descriptor to be ready.
func (l *localListener) HandleIO(eventloop.Event) {}

// HandleOp implements eventloop.IOHandle. A listener has no Ops.
func (l *localListener) HandleOp(*eventloop.Op) {}

// CloseIO implements eventloop.IOHandle: the loop is ending.
func (l *localListener) CloseIO() {
	(*localListenerCore)(l).DoClose(pipeline.CloseNow, ErrLoopEnded)
}

// localListenerCore is the listener as the pipeline's head sees it.
type localListenerCore localListener

func (c *localListenerCore) DoConnect(_, _ net.Addr, p *eventloop.Promise) {
	p.Complete(ErrUnsupportedMessage)
}

func (c *localListenerCore) DoWrite(msg any, p *eventloop.Promise) {
	buffer.Release(msg)
	c.Pipeline().FailWrite(p, ErrUnsupportedMessage)
}

func (c *localListenerCore) DoFlush() {}

func (c *localListenerCore) DoRead() {
	l := (*localListener)(c)
	l.wantRead = true
	l.mu.Lock()
	tell := l.queue.n > 0 && !l.told
	l.told = l.told || tell
	l.mu.Unlock()
	if tell {
		_ = l.Loop().Submit((*localAccept)(l))
	}
}

func (c *localListenerCore) DoReadStop() { c.wantRead = false }

func (c *localListenerCore) DoCloseWrite(p *eventloop.Promise) { p.Complete(ErrUnsupportedMessage) }

func (c *localListenerCore) DoWritability(bool) {}

func (c *localListenerCore) DoClose(_ pipeline.CloseMode, reason error) {
	l := (*localListener)(c)
	if l.done {
		return
	}
	l.done = true
	l.MarkClosing(reason)
	l.forget()
	if handlerBroke(reason) {
		l.srv.resetLocalsHeldBack(l, reason)
	}
	end := func() { l.MarkClosed(reason) }
	if l.reg != nil {
		l.reg.Close(end)
	} else {
		end()
	}
}

func (c *localListenerCore) DoEnd() {
	l := (*localListener)(c)
	l.srv.localListenerEnded(l)
	l.Loop().Group().Release()
}

func (c *localListenerCore) LocalAddr() net.Addr  { return c.name }
func (c *localListenerCore) RemoteAddr() net.Addr { return nil }

// adoptLocal is the last handler of a listener: it starts accepted channels.
func (s *server) adoptLocal(_ *pipeline.Context, ch *localChannel) error {
	ch.passedOn = true
	err := ch.Loop().Submit((*localStart)(ch))
	if err != nil && ch.Open() {
		s.lostLocal(ch)
	}
	return err
}

// resetLocalsHeldBack is resetHeldBack for local channels.
func (s *server) resetLocalsHeldBack(l *localListener, reason error) {
	for _, ch := range s.openLocals() {
		if ch.Parent() == pipeline.Channel(l) && !ch.passedOn {
			ch.Abort(pipeline.CloseReset, reason)
		}
	}
}

// localStart is an accepted channel as the task that starts it.
type localStart localChannel

func (t *localStart) Run() { (*localChannel)(t).start(t.srv.start) }

// refuseLocal ends a channel that was not accepted: its peer sees a reset.
func (s *server) refuseLocal(ch *localChannel) {
	refuse := func() { (*localCore)(ch).DoClose(pipeline.CloseReset, ErrServerClosed) }
	if ch.Loop().Execute(refuse) != nil && ch.Open() {
		s.lostLocal(ch)
	}
}

// lostLocal ends a channel whose loop has ended before it started: nobody else has it.
func (s *server) lostLocal(ch *localChannel) {
	ch.disconnect(true)
	s.localEnded(ch)
	ch.Loop().Group().Release()
}

// locals are the local channels and listeners of a server. Guarded by server.mu.
type locals struct {
	listeners map[*localListener]struct{}
	channels  map[*localChannel]struct{}
}

// addLocalListener takes note of a listener. It reports false when the server is
// closing.
func (s *server) addLocalListener(l *localListener) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return false
	}
	if s.locals.listeners == nil {
		s.locals.listeners = make(map[*localListener]struct{})
	}
	s.locals.listeners[l] = struct{}{}
	return true
}

// addLocal takes note of a channel that a listener, which has not ended, has made. It
// reports false when a drain has come to its end.
func (s *server) addLocal(ch *localChannel) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.hurry {
		return false
	}
	if s.locals.channels == nil { // a listener has its name, and is found by it, before it has its place
		s.locals.channels = make(map[*localChannel]struct{})
	}
	s.locals.channels[ch] = struct{}{}
	return true
}

func (s *server) localEnded(ch *localChannel) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.locals.channels, ch)
	if ch.placed {
		s.freePlace()
	}
	s.checkEmpty()
}

func (s *server) localListenerEnded(l *localListener) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.locals.listeners, l)
	s.checkEmpty()
}

// localListeners returns the listeners that have not ended.
func (s *server) localListeners() []*localListener {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]*localListener, 0, len(s.locals.listeners))
	for l := range s.locals.listeners {
		all = append(all, l)
	}
	return all
}

// openLocals returns the accepted channels that have not ended.
func (s *server) openLocals() []*localChannel {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]*localChannel, 0, len(s.locals.channels))
	for ch := range s.locals.channels {
		all = append(all, ch)
	}
	return all
}
