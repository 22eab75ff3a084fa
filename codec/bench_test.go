package codec_test

import (
	"encoding/binary"
	"fmt"
	"strings"
	"testing"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/codec"
	"github.com/runnel-io/runnel/internal/invariant"
	"github.com/runnel-io/runnel/pipeline"
	"github.com/runnel-io/runnel/pipeline/embedded"
)

// released is a handler at the end of an inbound path.
var released = pipeline.On(func(_ *pipeline.Context, b *buffer.Buf) error { b.Release(); return nil })

// dropped is one at the end of an outbound path.
var dropped = pipeline.OnWrite(func(_ *pipeline.Context, b *buffer.Buf, p *completion) error {
	b.Release()
	p.Complete(nil)
	return nil
})

// fireReads makes a function that fires n reads of data into ch, as a transport does:
// from a Buf of the loop's cache, on the loop.
func fireReads(ch *embedded.Channel, data string, n int) func() {
	p, alloc := ch.Pipeline(), ch.Alloc()
	return func() {
		for range n {
			b := alloc.Alloc(len(data))
			b.WriteString(data)
			p.FireRead(b)
			p.FireReadComplete()
		}
	}
}

func frames(n, size int) string {
	head := binary.BigEndian.AppendUint32(nil, uint32(size))
	return strings.Repeat(string(head)+strings.Repeat("x", size), n)
}

// Nothing is allocated for a message.
func TestCodecsAllocateNothing(t *testing.T) {
	defer buffer.SetLeakLevel(buffer.SetLeakLevel(buffer.LeakSampled)) // at level all buffers are not used again
	if invariant.Enabled {
		t.Skip("with assertions on, Bufs are not used twice")
	}
	echo := pipeline.On(func(c *pipeline.Context, b *buffer.Buf) error { c.Write(b); return nil })
	netstrings := codec.Decoding{New: func() codec.Decoder {
		return decoderFunc(func(_ *pipeline.Context, in *buffer.Buf) (any, error) {
			if in.Len() < 4 {
				return nil, nil
			}
			return in.ReadSlice(4), nil
		})
	}}
	tests := []struct {
		name     string
		handlers []any
		data     string // comes in two reads of half of it
	}{
		{"LengthField, small frames", []any{dropped, codec.LengthField{}, echo}, frames(16, 64)},
		{"LengthField, large frames", []any{dropped, codec.LengthField{}, echo}, frames(16, 1024)},
		{"LengthField, one frame", []any{dropped, codec.LengthField{}, echo}, frames(2, 1024)},
		{"LengthField, frames over two reads", []any{dropped, codec.LengthField{}, echo}, frames(3, 1024)},
		{"Line", []any{dropped, codec.Line{}, released}, strings.Repeat("a line\r\n", 16)},
		{"Line, large", []any{dropped, codec.Line{}, released}, strings.Repeat(strings.Repeat("x", 1000)+"\n", 15)},
		{"Decoding", []any{dropped, netstrings, released}, strings.Repeat("abcd", 16)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ch := embedded.New(tt.handlers...)
			defer ch.Finish()
			var n float64
			ch.Do(func() {
				if testing.AllocsPerRun(10, func() { ch.Loop().InLoop() }) > 0 {
					t.Skip("goroutine identities allocate on this architecture")
				}
				first, second := fireReads(ch, tt.data[:len(tt.data)/2], 1), fireReads(ch, tt.data[len(tt.data)/2:], 1)
				n = testing.AllocsPerRun(100, func() { first(); second() })
			})
			if n != 0 {
				t.Errorf("got %v allocations for two reads, want 0", n)
			}
		})
	}
}

// sliced is what BenchmarkLengthField is held against: the same frames by hand.
type sliced struct{}

func (sliced) HandleRead(c *pipeline.Context, msg any) error {
	in := msg.(*buffer.Buf)
	for in.Len() >= 4 {
		n := int(in.ReadUint32())
		c.FireRead(in.ReadSlice(n))
	}
	in.Release()
	return nil
}

// 16 frames a read: LengthField, a loop written by hand over the same Buf, and the
// read passed on as it is.
func BenchmarkLengthField(b *testing.B) {
	pass := pipeline.On(func(c *pipeline.Context, b *buffer.Buf) error { c.FireRead(b); return nil })
	for _, size := range []int{64, 512, 1024} {
		for _, v := range []struct {
			name    string
			handler any
		}{{"codec", codec.LengthField{}}, {"by-hand", sliced{}}, {"read-only", pass}} {
			b.Run(fmt.Sprintf("size=%d/%s", size, v.name), func(b *testing.B) {
				ch := embedded.New(v.handler, released)
				defer ch.Finish()
				ch.Do(func() {
					read := fireReads(ch, frames(16, size), 1)
					b.ReportAllocs()
					b.ResetTimer()
					for range b.N {
						read()
					}
				})
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/16, "ns/frame")
			})
		}
	}
}

// Reads of 64 KiB that end inside a frame: all but that frame is passed on as slices
// of the read.
func BenchmarkLengthFieldStraddling(b *testing.B) {
	stream := frames(64, 1020)
	ch := embedded.New(codec.LengthField{}, released)
	defer ch.Finish()
	ch.Do(func() {
		fireReads(ch, stream[:500], 1)()
		read := fireReads(ch, stream[500:]+stream[:500], 1)
		b.SetBytes(int64(len(stream)))
		b.ReportAllocs()
		b.ResetTimer()
		for range b.N {
			read()
		}
	})
}

// What a write of a frame costs on its way to the head: of a new payload, and of a
// frame that is sent on as it came.
func BenchmarkLengthFieldWrite(b *testing.B) {
	for _, size := range []int{64, 1024} {
		for _, v := range []struct {
			name string
			skip int
		}{{"new", 0}, {"sent-on", 4}} {
			b.Run(fmt.Sprintf("size=%d/%s", size, v.name), func(b *testing.B) {
				ch := embedded.New(dropped, codec.LengthField{})
				defer ch.Finish()
				ch.Do(func() {
					frame, alloc := frames(1, size)[4-v.skip:], ch.Alloc()
					b.ReportAllocs()
					b.ResetTimer()
					for range b.N {
						body := alloc.Alloc(len(frame))
						body.WriteString(frame)
						body.Skip(v.skip)
						ch.Write(body)
					}
				})
			})
		}
	}
}

func BenchmarkLine(b *testing.B) {
	for _, size := range []int{20, 200, 1000} {
		b.Run(fmt.Sprintf("size=%d", size), func(b *testing.B) {
			ch := embedded.New(codec.Line{}, released)
			defer ch.Finish()
			ch.Do(func() {
				read := fireReads(ch, strings.Repeat(strings.Repeat("x", size)+"\r\n", 16), 1)
				b.ReportAllocs()
				b.ResetTimer()
				for range b.N {
					read()
				}
			})
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/16, "ns/frame")
		})
	}
}
