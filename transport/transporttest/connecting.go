package transporttest

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/pipeline"
	"github.com/runnel-io/runnel/transport"
)

// What Netty's suite has as SocketConnectTest, SocketConnectionAttemptTest,
// SocketMultipleConnectTest, SocketChannelNotYetConnectedTest, ServerSocketSuspendTest,
// SocketAddressesTest, AbstractSocketReuseFdTest; only for networks.
var connectTests = []test{
	{name: "addresses", run: addresses},
	{name: "9.4 a refused connection", run: refused},
	{name: "9.4 a second connect fails alone", run: secondConnect},
	{name: "9.4 what was written before a failed connect fails", run: writesBeforeRefusal},
	{name: "an Init that fails", run: initFails},
	{name: "4.9 a listener can be suspended", run: suspended},
	{name: "4.9 accepted channels are the listener's messages", run: children},
	{name: "a listener's handler refuses with a word", run: refusedWithAWord},
	{name: "4.9 an Init of an accepted channel that fails", run: childInitFails},
	{name: "closing the listener leaves its channels", run: listenerCloses},
	{name: "many connections, each with bytes of its own", run: manyConnections},
	{name: "connections one after the other never meet", run: reusedDescriptors},
}

func addresses(f *fixture) {
	a, d := f.end(transport.Config{}), f.end(transport.Config{})
	l := f.listen(&transport.Server{Init: a.init, Config: a.cfg})
	var during [2]any
	d.setUp = func(ch pipeline.Channel) error {
		during = [2]any{ch.LocalAddr(), ch.RemoteAddr()}
		return nil
	}
	ch, err := f.dial(l, d)
	if err != nil {
		f.Fatal(err)
	}
	a.waitLog("active")
	if during[0] != nil || during[1] != nil {
		f.Errorf("addresses before the connection: got %v, want none", during)
	}
	if ch != d.ch || !ch.Active() || ch.Parent() != nil || a.ch.Parent() != l {
		f.Errorf("got channel %v, active %v, parents %v and %v", ch, ch.Active(), ch.Parent(), a.ch.Parent())
	}
	text := func(ch pipeline.Channel) string { return fmt.Sprint(ch.LocalAddr(), " - ", ch.RemoteAddr()) }
	if got, want := text(d.ch), fmt.Sprint(a.ch.RemoteAddr(), " - ", l.LocalAddr()); got != want {
		f.Errorf("dialed: got %s, want %s", got, want)
	}
	if got, want := text(a.ch), fmt.Sprint(l.LocalAddr(), " - ", d.ch.LocalAddr()); got != want {
		f.Errorf("accepted: got %s, want %s", got, want)
	}
	before := text(d.ch)
	d.ch.Close()
	d.waitLog("removed")
	if got := text(d.ch); got != before {
		f.Errorf("after the end: got %s, want %s", got, before)
	}
}

// nobody returns a listener's channel on whose address nobody listens any more.
func (f *fixture) nobody() pipeline.Channel {
	f.Helper()
	l := f.listen(&transport.Server{})
	closed := make(chan error, 1)
	l.CloseThen(func(err error) { closed <- err })
	if err := await(f, closed, "the end of the listener"); err != nil {
		f.Error(err)
	}
	return l
}

func refused(f *fixture) {
	for _, halfClose := range []bool{false, true} {
		l, d := f.nobody(), f.end(transport.Config{HalfClose: halfClose})
		ch, err := f.dial(l, d)
		var op *transport.OpError
		if ch != nil || !errors.As(err, &op) || op.Op != "connect" {
			f.Errorf("got %v, %v; want a connect *OpError", ch, err)
		}
		d.waitLog("removed")
		if !errors.Is(d.ch.CloseReason(), op.Err) {
			f.Errorf("close reason: got %v, want %v", d.ch.CloseReason(), op.Err)
		}
	}
}

func secondConnect(f *fixture) {
	a, d := f.pair(transport.Config{}, transport.Config{})
	for _, e := range []*end{a, d} {
		result := make(chan error, 1)
		e.do(func() {
			p := eventloop.NewPromise(e.ch.Loop())
			p.Then(func(err error) { result <- err })
			e.ch.Pipeline().Connect(d.ch.RemoteAddr(), nil, p)
		})
		var op *transport.OpError
		if err := await(f, result, "the second connect"); !errors.As(err, &op) || op.Op != "connect" {
			f.Errorf("second connect: got %v, want a connect *OpError", err)
		}
	}
	d.ch.Write("as before")
	a.wantData([]byte("as before"))
}

func writesBeforeRefusal(f *fixture) {
	l, d := f.nobody(), f.end(transport.Config{})
	w := f.expect(2)
	b := pooled([]byte("never"))
	kept := b.Retain()
	d.setUp = func(ch pipeline.Channel) error {
		ch.WriteThen(b, w.then())
		ch.WriteThen("never", w.then())
		ch.Flush()
		return nil
	}
	if _, err := f.dial(l, d); err == nil {
		f.Error("connected to nobody")
	}
	w.wantAll(pipeline.ErrClosed)
	d.waitLog("removed")
	if kept.Refs() != 1 {
		f.Errorf("references: got %d, want 1", kept.Refs())
	}
	kept.Release()
}

func initFails(f *fixture) {
	wrong := errors.New("wrong")
	l := f.listen(&transport.Server{})
	for _, init := range []func(pipeline.Channel) error{
		func(ch pipeline.Channel) error { ch.Write(pooled([]byte("never"))); return wrong },
		func(ch pipeline.Channel) error { ch.Write("never"); panic(wrong) },
	} {
		d := f.end(transport.Config{})
		d.setUp = init
		ch, err := f.dial(l, d)
		if ch != nil || !errors.Is(err, wrong) {
			f.Errorf("got %v, %v; want an error of Init", ch, err)
		}
		d.waitLog("removed")
	}
}

func suspended(f *fixture) {
	a, d := f.end(transport.Config{}), f.end(transport.Config{})
	l := f.listen(&transport.Server{Init: a.init, Config: a.cfg})
	l.SetAutoRead(false)
	barrier(f, l)
	dialed := make(chan error, 1)
	go func() { // what connects may have to wait until it is accepted
		_, err := f.dial(l, d)
		dialed <- err
	}()
	f.settle()
	a.mu.Lock()
	if a.ch != nil {
		f.Error("accepted while the listener was suspended")
	}
	a.mu.Unlock()
	l.SetAutoRead(true)
	if err := await(f, dialed, "the connection"); err != nil {
		f.Fatal(err)
	}
	d.ch.Write("hello")
	a.wantData([]byte("hello"))
}

// barrier waits until the tasks of a channel that were there have run.
func barrier(f *fixture, ch pipeline.Channel) {
	f.Helper()
	done := make(chan struct{})
	if err := ch.Loop().Execute(func() { close(done) }); err != nil {
		f.Fatal(err)
	}
	await(f, done, "a task")
}

func children(f *fixture) {
	seen := make(chan pipeline.Channel, 2)
	first := true
	srv := &transport.Server{
		ListenerInit: func(ch pipeline.Channel) error {
			return ch.Pipeline().Add(pipeline.On(func(c *pipeline.Context, child pipeline.Channel) error {
				seen <- child
				if first {
					first = false
					child.Close() // before it has been started
				}
				c.FireRead(child)
				return nil
			}))
		},
	}
	a := f.end(transport.Config{})
	srv.Init, srv.Config = a.init, a.cfg
	l := f.listen(srv)
	refused := f.end(transport.Config{})
	if _, err := f.dial(l, refused); err == nil {
		refused.waitLog("removed")
	}
	child := await(f, seen, "a child")
	if child.Open() || child.Parent() != l {
		f.Errorf("refused: got open %v, parent %v; want false, %v", child.Open(), child.Parent(), l)
	}
	d := f.end(transport.Config{})
	if _, err := f.dial(l, d); err != nil {
		f.Fatal(err)
	}
	a.waitLog("active")
	if child := await(f, seen, "a child"); child != a.ch {
		f.Errorf("got %v, want %v", child, a.ch)
	}
}

func refusedWithAWord(f *fixture) {
	for _, passOn := range []bool{false, true} {
		a, d := f.end(transport.Config{}), f.end(transport.Config{})
		w := f.expect(1)
		l := f.listen(&transport.Server{
			Init:   a.init,
			Config: a.cfg,
			ListenerInit: func(ch pipeline.Channel) error {
				return ch.Pipeline().Add(pipeline.On(func(c *pipeline.Context, child pipeline.Channel) error {
					child.WriteThen("busy", w.then())
					child.Close()
					if passOn {
						c.FireRead(child)
					}
					return nil
				}))
			},
		})
		if _, err := f.dial(l, d); err != nil {
			f.Fatal(err)
		}
		d.wantEnd(errEnd)
		d.wantData([]byte("busy"))
		w.wantNone()
	}
}

func childInitFails(f *fixture) {
	wrong := errors.New("wrong")
	var mu sync.Mutex
	inits := []func() error{
		func() error { return wrong },
		func() error { panic(wrong) },
		func() error { return nil },
	}
	l := f.listen(&transport.Server{Init: func(ch pipeline.Channel) error {
		mu.Lock()
		init := inits[0]
		inits = inits[1:]
		mu.Unlock()
		return init()
	}})
	for range 2 {
		d := f.end(transport.Config{})
		if _, err := f.dial(l, d); err == nil {
			d.waitLog("removed")
		}
	}
	d := f.end(transport.Config{})
	if _, err := f.dial(l, d); err != nil {
		f.Fatal(err)
	}
	w := f.expect(1)
	d.ch.WriteThen("x", w.then())
	w.wantNone()
}

func listenerCloses(f *fixture) {
	a, d := f.end(transport.Config{}), f.end(transport.Config{})
	l := f.listen(&transport.Server{Init: a.init, Config: a.cfg})
	if _, err := f.dial(l, d); err != nil {
		f.Fatal(err)
	}
	a.waitLog("active")
	closed := make(chan error, 1)
	l.CloseThen(func(err error) { closed <- err })
	await(f, closed, "the end of the listener")
	d.ch.Write("hello")
	a.wantData([]byte("hello"))
	a.ch.Write("hello")
	d.wantData([]byte("hello"))
	if _, err := f.dial(l, f.end(transport.Config{})); err == nil {
		f.Error("connected to a listener that has closed")
	}
}

func manyConnections(f *fixture) {
	const connections = 50
	l := f.listen(&transport.Server{Init: func(ch pipeline.Channel) error { return ch.Pipeline().Add(echo()) }})
	ends := make([]*end, connections)
	for i := range ends {
		ends[i] = f.end(transport.Config{})
		if _, err := f.dial(l, ends[i]); err != nil {
			f.Fatal(err)
		}
	}
	own := func(i int) []byte { return pattern(1000 + i) }
	for i, e := range ends {
		e.ch.Write(pooled(own(i)))
	}
	for i, e := range ends {
		e.wantData(own(i))
	}
}

// reusedDescriptors ends connections with bytes under way, so that the next has their
// descriptors: no byte of the one before may come to it.
func reusedDescriptors(f *fixture) {
	const rounds = 60
	stray := make(chan string, 1)
	l := f.listen(&transport.Server{Config: transport.Config{ReadWhileUnwritable: true}, Init: func(ch pipeline.Channel) error {
		first := true
		return ch.Pipeline().Add(pipeline.On(func(c *pipeline.Context, b *buffer.Buf) error {
			if first {
				first = false
				c.WriteThen(string(b.Window()[:1]), nil)
			}
			c.Write(b)
			return nil
		}))
	}})
	for i := range rounds {
		mark := byte('A' + i%26)
		got := make(chan struct{})
		d := &transport.Dialer{Group: f.group, Timeout: patience, Init: func(ch pipeline.Channel) error {
			first := true
			return ch.Pipeline().Add(pipeline.On(func(c *pipeline.Context, b *buffer.Buf) error {
				defer b.Release()
				for _, x := range b.Window() {
					if x != mark {
						select {
						case stray <- fmt.Sprintf("round %d: got %q, want %q", i, x, mark):
						default:
						}
					}
				}
				if first {
					first = false
					close(got)
				}
				return nil
			}))
		}}
		ch, err := d.Dial(context.Background(), f.tr.Network, l.LocalAddr().String())
		if err != nil {
			f.Fatal(err)
		}
		p := make([]byte, f.bulk/64)
		for j := range p {
			p[j] = mark
		}
		ch.Write(pooled(p))
		await(f, got, "the echo")
		if i%2 == 0 {
			ch.Reset()
		} else {
			ch.Close()
		}
	}
	select {
	case s := <-stray:
		f.Error(s)
	default:
	}
}
