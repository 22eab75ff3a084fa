package transporttest

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/pipeline"
	"github.com/runnel-io/runnel/transport"
)

// What Netty's suite has as SocketEchoTest, SocketStringEchoTest,
// SocketFixedLengthEchoTest, SocketGatheringWriteTest, CompositeBufferGatheringWriteTest,
// SocketBufReleaseTest, WriteBeforeRegisteredTest.
var exchangeTests = []test{
	{name: "echo of one byte", run: func(f *fixture) { echoes(f, 1, 1) }},
	{name: "echo of small messages", run: func(f *fixture) { echoes(f, min(20_000, f.bulk), 100) }},
	{name: "echo of large messages", run: func(f *fixture) { echoes(f, f.bulk, f.bulk/3) }},
	{name: "echo with reading by hand", run: echoByHand},
	{name: "both ends send at once", run: bothSend},
	{name: "2.2 messages of all kinds leave in order", run: kindsInOrder},
	{name: "2.5 more parts than one call takes", run: manyParts},
	{name: "2.5 a message larger than any call takes", run: largeMessage},
	{name: "2.6 composites with empty and read parts", run: composites},
	{name: "empty messages complete in order", run: emptyMessages},
	{name: "a written message is released when it has left", run: released},
	{name: "writes before the channel is active leave first", run: earlyWrites},
	{name: "2.10 a flush before the channel is active waits, for what was written by then", run: earlyFlush},
}

// echoes sends n bytes in messages of up to size bytes to an echo.
func echoes(f *fixture, n, size int) {
	a, d := f.end(transport.Config{}, echo()), f.end(transport.Config{})
	f.connect(a, d)
	all := pattern(n)
	for i, left := 0, all; len(left) > 0; i++ {
		m := min(1+(i*7919)%size, len(left))
		d.ch.Write(pooled(left[:m]))
		left = left[m:]
	}
	d.wantData(all)
}

// echoByHand has both ends ask for each turn of reading.
func echoByHand(f *fixture) {
	byHand := func() any { return readAgain{} }
	manual := transport.Config{ManualRead: true}
	a, d := f.end(manual, byHand(), echo()), f.end(manual, byHand())
	f.connect(a, d)
	all := pattern(f.bulk / 4)
	d.ch.Write(pooled(all))
	d.wantData(all)
}

// readAgain asks for a turn of reading when it can and after each one.
type readAgain struct{}

func (readAgain) HandleActive(c *pipeline.Context) error       { c.Read(); return nil }
func (readAgain) HandleReadComplete(c *pipeline.Context) error { c.Read(); return nil }

func bothSend(f *fixture) {
	a, d := f.pair(transport.Config{ReadWhileUnwritable: true}, transport.Config{})
	all := pattern(f.bulk)
	for i := 0; i < len(all); i += len(all) / 64 {
		a.ch.Write(pooled(all[i:min(i+len(all)/64, len(all))]))
		d.ch.Write(pooled(all[i:min(i+len(all)/64, len(all))]))
	}
	a.wantData(all)
	d.wantData(all)
}

// compose returns a Buf of parts of at most size bytes each.
func compose(p []byte, size int) *buffer.Buf {
	b := buffer.Compose()
	for len(p) > 0 {
		n := min(size, len(p))
		b.Append(pooled(p[:n]))
		p = p[n:]
	}
	return b
}

func kindsInOrder(f *fixture) {
	a, d := f.pair(transport.Config{}, transport.Config{})
	const messages = 120
	var all []byte
	w := f.expect(messages)
	d.do(func() {
		for i := range messages {
			p := pattern(1 + i*i*13%3000)
			all = append(all, p...)
			var msg any
			switch i % 5 {
			case 0:
				msg = pooled(p)
			case 1:
				msg = p
			case 2:
				msg = string(p)
			case 3:
				msg = compose(p, 1+len(p)/3)
			case 4:
				msg = buffer.Wrap(nil, p)
			}
			d.ch.WriteThen(msg, w.then())
			if i%11 == 0 {
				d.ch.Flush()
			}
		}
	})
	w.wantNone()
	a.wantData(all)
}

func manyParts(f *fixture) {
	a, d := f.pair(transport.Config{}, transport.Config{})
	all := pattern(3 * 5000)
	const apart = 1500
	w := f.expect(2 + apart)
	tail := pattern(apart)
	d.do(func() {
		d.ch.WriteThen(compose(all, 3), w.then())
		d.ch.WriteThen(compose(all, 5), w.then())
		for i := range apart {
			// On the heap each is a part of its own.
			d.ch.WriteThen(buffer.Wrap(nil, tail[i:i+1:i+1]), w.then())
		}
	})
	w.wantNone()
	a.wantData(append(append(append([]byte{}, all...), all...), tail...))
}

func largeMessage(f *fixture) {
	a, d := f.pair(transport.Config{}, transport.Config{})
	all := pattern(f.bulk)
	w := f.expect(1)
	d.ch.WriteThen(pooled(all), w.then())
	a.wantData(all)
	w.wantNone()
}

func composites(f *fixture) {
	a, d := f.pair(transport.Config{}, transport.Config{})
	w := f.expect(20)
	var all []byte
	d.do(func() {
		for i := range 20 {
			p := pattern(2000 + i)
			b := buffer.Compose(pooled(nil), pooled(p[:10]), pooled(nil), compose(p[10:1500], 200), pooled(nil), pooled(p[1500:]), pooled(nil))
			b.Skip(i * 90) // into one of the parts, or to the end of one
			all = append(all, p[i*90:]...)
			d.ch.WriteThen(b, w.then())
		}
	})
	w.wantNone()
	a.wantData(all)
}

func emptyMessages(f *fixture) {
	a, d := f.pair(transport.Config{}, transport.Config{})
	w := f.expect(9)
	d.do(func() {
		for _, msg := range []any{"", pooled(nil), "a", buffer.Compose(), []byte{}, "b", "", compose(nil, 1)} {
			d.ch.WriteThen(msg, w.then())
		}
	})
	// Alone in its turn there is nothing to send.
	d.ch.WriteThen("", w.then())
	w.wantNone()
	a.wantData([]byte("ab"))
}

func released(f *fixture) {
	a, d := f.pair(transport.Config{}, transport.Config{})
	p := pattern(10_000)
	var all []byte
	var kept []*buffer.Buf
	w := f.expect(10)
	for i := range 10 {
		b := pooled(p[:1+i*1000])
		all = append(all, p[:1+i*1000]...)
		kept = append(kept, b.Retain())
		d.ch.WriteThen(b, w.then())
	}
	w.wantNone()
	a.wantData(all)
	a.do(func() {}) // has released what it has read
	for i, b := range kept {
		if b.Refs() != 1 {
			f.Errorf("references of message %d: got %d, want 1, that of the writer", i, b.Refs())
		}
		b.Release()
	}
}

// earlyWriter writes at each moment before and when the channel becomes active.
type earlyWriter struct{}

func (earlyWriter) HandleAdded(c *pipeline.Context) error      { c.Write("added "); return nil }
func (earlyWriter) HandleRegistered(c *pipeline.Context) error { c.Write("registered "); return nil }
func (earlyWriter) HandleActive(c *pipeline.Context) error     { c.Write("active "); return nil }

func earlyWrites(f *fixture) {
	a, d := f.end(transport.Config{}, earlyWriter{}), f.end(transport.Config{}, earlyWriter{})
	early := func(ch pipeline.Channel) error { ch.Write("init "); ch.Flush(); return nil }
	a.setUp, d.setUp = early, early
	f.connect(a, d)
	want := []byte("added init registered active ")
	a.wantData(want)
	d.wantData(want)
}

func earlyFlush(f *fixture) {
	a, d := f.end(transport.Config{ManualFlush: true}), f.end(transport.Config{ManualFlush: true})
	w := f.expect(2)
	early := func(ch pipeline.Channel) error {
		then := w.then()
		ch.WriteThen("flushed ", func(err error) {
			if !ch.Active() {
				f.Error("a write is complete before the channel is active")
			}
			then(err)
		})
		ch.Flush()
		ch.Write("and not")
		return nil
	}
	a.setUp, d.setUp = early, early
	f.connect(a, d)
	for _, e := range []*end{a, d} {
		e.wantData([]byte("flushed "))
	}
	w.wantNone()
	f.settle()
	for _, e := range []*end{a, d} {
		e.wantData([]byte("flushed "))
	}
	a.ch.Flush()
	d.ch.Flush()
	for _, e := range []*end{a, d} {
		e.wantData([]byte("flushed and not"))
	}
}

// What Netty's suite has as SocketFileRegionTest.
var fileTests = []test{
	{name: "2.2 regions and buffers leave in order", run: regionsInOrder},
	{name: "10.2 a large region, with others waiting", run: largeRegion},
	{name: "10.2 a file that has shrunk ends the channel", run: shrunkFile},
}

// file returns a new file with the content.
func (f *fixture) file(content []byte) (open func() *os.File) {
	f.Helper()
	name := filepath.Join(f.TempDir(), "file")
	if err := os.WriteFile(name, content, 0o600); err != nil {
		f.Fatal(err)
	}
	return func() *os.File {
		file, err := os.Open(name)
		if err != nil {
			f.Error(err)
		}
		return file
	}
}

func regionsInOrder(f *fixture) {
	a, d := f.pair(transport.Config{}, transport.Config{})
	content := pattern(20_000)
	open := f.file(content)
	w := f.expect(30)
	var all []byte
	d.do(func() {
		for i := range 30 {
			if i%3 == 0 {
				head := fmt.Sprintf("header %d\n", i)
				all = append(all, head...)
				d.ch.WriteThen(head, w.then())
				continue
			}
			off, n := i*101, i*i%1700 // the first is empty
			if i == 1 {
				n = 0
			}
			all = append(all, content[off:off+n]...)
			d.ch.WriteThen(buffer.NewFileRegion(open(), int64(off), int64(n)), w.then())
		}
	})
	w.wantNone()
	a.wantData(all)
}

func largeRegion(f *fixture) {
	a, d := f.pair(transport.Config{}, transport.Config{})
	content := pattern(f.bulk)
	open := f.file(content)
	w := f.expect(3)
	d.do(func() {
		d.ch.WriteThen("head", w.then())
		d.ch.WriteThen(buffer.NewFileRegion(open(), 0, int64(len(content))), w.then())
		d.ch.WriteThen("tail", w.then())
	})
	a.wantData(append(append([]byte("head"), content...), "tail"...))
	w.wantNone()
}

func shrunkFile(f *fixture) {
	a, d := f.pair(transport.Config{}, transport.Config{})
	content := pattern(1000)
	open := f.file(content)
	w := f.expect(2)
	d.do(func() {
		d.ch.WriteThen(buffer.NewFileRegion(open(), 0, 1001), w.then())
		d.ch.WriteThen("never", w.then())
	})
	w.wantAll(transport.ErrFileShrunk)
	d.wantEnd(transport.ErrFileShrunk)
	a.wantEnd(errEnd)
	a.wantData(content)
}
