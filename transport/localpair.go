package transport

import (
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/pipeline"
)

// LocalEnd is one end of [LocalPair].
type LocalEnd struct {
	// Init adds the channel's handlers, on its loop, before any event. An error closes
	// the channel, and its peer sees a reset.
	Init func(ch pipeline.Channel) error
	// Config is that of the channel.
	Config Config
	// Loop runs the channel; that of an eventloop.Manual makes a test with both ends of
	// a protocol in virtual time. nil means one of the default group.
	Loop *eventloop.Loop
}

// LocalPair returns two channels in this process that are connected to each other,
// like net.Pipe. They become active in the next turns of their loops, and are dialed
// ones: neither pauses its reading because it is not writable. They are those of
// the network "local", see [Server.Listen].
//
// Any goroutine.
func LocalPair(a, b LocalEnd) (pipeline.Channel, pipeline.Channel, error) {
	s, err := a.channel()
	if err != nil {
		return nil, nil, err
	}
	t, err := b.channel()
	if err != nil {
		s.Loop().Group().Release()
		return nil, nil, err
	}
	joinLocal(s, t)
	for _, x := range []struct{ s, t *localChannel }{{s, t}, {t, s}} {
		x.s.local.store(unnamed(x.s))
		x.s.remote.store(unnamed(x.t))
	}
	if err := s.Loop().Execute(func() { s.start(a.Init) }); err != nil {
		s.Loop().Group().Release()
		t.Loop().Group().Release()
		return nil, nil, err
	}
	if err := t.Loop().Execute(func() { t.start(b.Init) }); err != nil {
		t.disconnect(true)
		t.Loop().Group().Release()
		return nil, nil, err
	}
	return s, t, nil
}

// channel makes the channel. Its group is held for it.
func (e *LocalEnd) channel() (*localChannel, error) {
	cfg, err := e.Config.check()
	if err != nil {
		return nil, err
	}
	loop := e.Loop
	if loop != nil {
		loop.Group().Hold()
	} else {
		g, err := eventloop.Acquire()
		if err != nil {
			return nil, err
		}
		loop = g.Next()
	}
	return newLocal(&cfg, loop, nil), nil
}
