//go:build linux

package transport

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"testing"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/internal/sys"
	"github.com/runnel-io/runnel/pipeline"
)

// A socket may become full behind any byte, of a buffer of whatever layout and of a file,
// be that in memory or not: what leaves then goes on with the next.
func TestSendShortAtEveryOffset(t *testing.T) {
	content := letters(1000)
	file := tempFile(t, content)
	file.Close()
	type message struct {
		n   int
		msg func(p []byte, off int64) any
	}
	var messages []message
	for i := range layouts {
		messages = append(messages, message{60 + i, func(p []byte, _ int64) any { return layouts[i](t, p) }})
		if i%3 == 0 {
			messages = append(messages, message{70, func(p []byte, off int64) any {
				return buffer.NewFileRegion(must(os.Open(file.Name())), off, int64(len(p)))
			}})
		}
	}
	total := 0
	for _, m := range messages {
		total += m.n
	}
	for _, cold := range []bool{false, true} {
		for cut := range total {
			x := newWireRig(t, rigConfig{})
			x.w.room, x.w.cold = cut, cold
			asked := 0
			var told []int
			x.do(func() {
				for i, m := range messages {
					p := []byte(content[20*i:][:m.n])
					x.written = append(x.written, p...)
					asked++
					x.s.WriteThen(m.msg(p, int64(20*i)), func(err error) {
						if err != nil {
							t.Errorf("message %d: %v", i, err)
						}
						told = append(told, i)
					})
				}
			})
			x.settle()
			if len(x.w.out) != cut {
				t.Errorf("cold %v, room for %d: got %d bytes", cold, cut, len(x.w.out))
			}
			end := 0
			for i, m := range messages {
				if end += m.n; (end <= cut) != slices.Contains(told, i) {
					t.Errorf("cold %v, room for %d: message %d ends at %d; told of %v", cold, cut, i, end, told)
				}
			}
			x.w.room = total - cut
			x.settle()
			if len(x.w.out) != total || !slices.IsSorted(told) || len(told) != asked {
				t.Errorf("cold %v, room for %d: got %d bytes of %d, told of %v", cold, cut, len(x.w.out), total, told)
			}
			x.w.acked = total
			x.do(x.s.Reset)
			x.finish()
			if t.Failed() {
				return
			}
		}
	}
}

// A file may end at any byte of its region by the time that is sent, with the socket full
// before or behind it: what there is leaves, and then the channel ends, once. One that has
// grown is sent as it was asked for.
func TestFileEndsAtEveryOffset(t *testing.T) {
	const n = 60
	content := letters(n)
	for _, cold := range []bool{false, true} {
		for size := range n + 10 {
			for _, room := range []int{0, size / 2, max(size-1, 0), n} {
				room = min(room, size)
				x := newWireRig(t, rigConfig{})
				x.w.room, x.w.cold = room, cold
				f := tempFile(t, content)
				x.written = append(x.written, "head"+content+"tail"...)
				var told []error
				then := func(err error) { told = append(told, err) }
				x.do(func() {
					x.s.WriteThen(pooled("head"), then)
					x.s.WriteThen(buffer.NewFileRegion(f, 0, n), then)
					x.s.WriteThen(pooled("tail"), then)
				})
				must1(t, os.Truncate(f.Name(), int64(size)))
				x.settle()
				x.w.room = 1000
				x.settle()
				want := "head" + content[:min(size, n)]
				if size >= n {
					want += "tail"
				}
				shrunk := 0
				for _, err := range told {
					if errors.Is(err, ErrFileShrunk) {
						shrunk++
					}
				}
				// The region may have left before the file was truncated.
				if whole := string(x.w.out) == "head"+content+"tail"; !whole && string(x.w.out) != want {
					t.Errorf("cold %v, %d bytes, room for %d: got %q, want %q", cold, size, room, x.w.out, want)
				} else if closed := x.s.at == streamClosed; closed == whole || whole != (shrunk == 0) || len(told) != 3 || told[0] != nil {
					t.Errorf("cold %v, %d bytes, room for %d: closed %v, told %v", cold, size, room, closed, told)
				}
				if !cold && room < n && size < n && shrunk == 0 {
					t.Errorf("%d bytes, room for %d: got no error", size, room)
				}
				x.w.acked = len(x.w.out)
				x.do(x.s.Reset)
				x.finish()
				if t.Failed() {
					return
				}
			}
		}
	}
}

// A stream that comes in two pieces, cut anywhere, and is taken in two, cut anywhere,
// with or without a mirror that is slow as well, arrives as it was sent: in a channel and
// in a file.
func TestSpliceShortAtEveryOffset(t *testing.T) {
	const n = 24
	content := letters(n)
	for in := range n {
		for out := range n {
			for _, mirror := range []string{"none", "channel", "file"} {
				relayShort(t, content, in, out, mirror)
				receiveShort(t, content, in, out, mirror)
				if t.Failed() {
					t.Fatalf("cut at %d, short at %d, mirror: %s", in, out, mirror)
				}
			}
		}
	}
}

// pieces are content in two.
func pieces(content string, cut int) (steps []readStep) {
	if cut > 0 {
		steps = append(steps, readStep{data: content[:cut]})
	}
	return append(steps, readStep{data: content[cut:]}, readStep{eof: true})
}

// shortMirror is a mirror into a channel or a file that takes n bytes first.
func shortMirror(t *testing.T, m *eventloop.Manual, kind string, n int) (mirrors []Mirror, ch *stream, got func() string) {
	switch kind {
	case "channel":
		s, k := scriptedEnd(t, m, scriptFD+2, false)
		k.take = []takeStep{{n: n}, {err: sys.ErrAgain}}
		if n == 0 {
			k.take = k.take[1:]
		}
		return []Mirror{{Channel: s, Block: true}}, s, func() string { return k.out.String() }
	case "file":
		f := &scriptFile{take: []takeStep{{n: n + 1}}}
		return []Mirror{{storage: f, Block: true}}, nil, func() string { return string(f.content) }
	}
	return nil, nil, func() string { return letters(24) }
}

// play makes all channels ready for what they wait for, until nothing happens.
func play(m *eventloop.Manual, ends ...*stream) {
	for range 30 {
		for _, s := range ends {
			if s != nil && s.reg != nil && s.at != streamClosed {
				m.Ready(s.reg.FD(), s.reg.Interest())
			}
		}
		m.RunUntilIdle()
	}
}

func relayShort(t *testing.T, content string, in, out int, mirror string) {
	m := eventloop.NewManual()
	a, ak := scriptedEnd(t, m, scriptFD, false, new(writer))
	b, bk := scriptedEnd(t, m, scriptFD+1, false)
	ak.in = pieces(content, in)
	bk.take = []takeStep{{n: out}, {err: sys.ErrAgain}}
	if out == 0 {
		bk.take = bk.take[1:]
	}
	mirrors, sink, got := shortMirror(t, m, mirror, (in+out)%len(content))
	r := &Relay{Mode: RelaySplice, Mirrors: mirrors}
	m.Enter(func() { must1(t, r.Start(pipeline.Find[*writer](a.Pipeline()), b)) })
	play(m, a, b, sink)
	if bk.out.String() != content || !bk.shut {
		t.Errorf("relay: got %d bytes, end %v; want %d and the end", bk.out.Len(), bk.shut, len(content))
	}
	if got() != content {
		t.Errorf("relay's mirror: got %d bytes, want %d", len(got()), len(content))
	}
	if s := r.Stats(); s.Up.Spliced != int64(len(content)) || s.Up.Copied != 0 {
		t.Errorf("relay: got %+v, want all spliced", s)
	}
	m.Close()
}

func receiveShort(t *testing.T, content string, in, out int, mirror string) {
	m := eventloop.NewManual()
	a, ak := scriptedEnd(t, m, scriptFD, false, new(writer))
	ak.in = pieces(content, in)
	file := &scriptFile{take: []takeStep{{n: out + 1}}}
	mirrors, sink, got := shortMirror(t, m, mirror, (in+out)%len(content))
	r := &FileReceiver{Mirrors: mirrors}
	told := ""
	m.Enter(func() {
		must1(t, r.start(pipeline.Find[*writer](a.Pipeline()), file, -1, func(n int64, err error) { told += fmt.Sprint(n, err) }))
	})
	play(m, a, sink)
	if string(file.content) != content || told != fmt.Sprint(len(content), error(nil)) {
		t.Errorf("file: got %d bytes of %d, told %q", len(file.content), len(content), told)
	}
	if got() != content {
		t.Errorf("reception's mirror: got %d bytes, want %d", len(got()), len(content))
	}
	if s := r.Stats(); s.Spliced != int64(len(content)) || s.Copied != 0 {
		t.Errorf("reception: got %+v, want all spliced", s)
	}
	m.Close()
}
