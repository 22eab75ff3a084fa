package pipeline

// Couple has each of two channels read as long as the other is writable, which is how
// a proxy passes on that a peer is slow: a does not read while b is unwritable, and b
// not while a is. It only steers the reading; who forwards the messages, and closes one
// channel after the other, is the caller.
//
// From then on AutoRead of both is the coupling's: it is switched on when the other
// channel is writable, and when that has closed, so that no channel is left without
// reading. An accepted channel that pauses by itself while it is unwritable stops more
// than needed in a proxy, see transport.Config.ReadWhileUnwritable.
//
// Concurrency: safe from any goroutine. The channels may be on different loops; then,
// until the news has come, some turns' reads more are passed on.
func Couple(a, b Channel) {
	couple(a, b)
	couple(b, a)
}

// couple has reader follow the writability of ch.
func couple(ch, reader Channel) {
	add := func() {
		// First, so that nobody can hold the event back.
		if ch.Pipeline().AddFirst(&coupling{reader}) != nil {
			reader.SetAutoRead(true) // it has closed
		}
	}
	if ch.Loop().InLoop() {
		add()
	} else if ch.Loop().Execute(add) != nil {
		reader.SetAutoRead(true)
	}
}

// coupling is the handler of a channel that reader follows. All it does it does on the
// channel's loop, so that what it says last is right.
type coupling struct{ reader Channel }

func (h *coupling) HandleAdded(c *Context) error { return h.HandleWritability(c) }

func (h *coupling) HandleWritability(c *Context) error {
	h.reader.SetAutoRead(c.Channel().Writable())
	return nil
}

func (h *coupling) HandleRemoved(*Context) { h.reader.SetAutoRead(true) }
