package pipeline_test

import (
	"fmt"
	"testing"

	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/pipeline"
	"github.com/runnel-io/runnel/pipeline/embedded"
)

// forwarder passes every message on.
type forwarder struct{ n int }

func (f *forwarder) HandleRead(c *pipeline.Context, msg any) error {
	f.n++
	c.FireRead(msg)
	return nil
}

// sink ends the way of the messages.
type sink struct{ n int }

func (s *sink) HandleRead(*pipeline.Context, any) error {
	s.n++
	return nil
}

// bystander takes nothing of what a benchmark sends.
type bystander struct{ n int }

func (b *bystander) HandleRemoved(*pipeline.Context) { b.n++ }

// link is what a chain without a pipeline is made of.
type link interface {
	handle(next chain, msg any) error
}

type chain []link

func (c chain) fire(msg any) error { return c[0].handle(c[1:], msg) }

type forwardLink struct{ n int }

func (f *forwardLink) handle(next chain, msg any) error {
	f.n++
	return next.fire(msg)
}

type sinkLink struct{ n int }

func (s *sinkLink) handle(chain, any) error {
	s.n++
	return nil
}

var benchSizes = []int{1, 4, 16}

// The pipeline beside a bare chain of interface calls, with as many handlers, of
// which the last one ends the message's way.
func BenchmarkFireRead(b *testing.B) {
	msg := any(new(int))
	for _, n := range benchSizes {
		b.Run(fmt.Sprintf("bare/handlers=%d", n), func(b *testing.B) {
			var c chain
			for range n - 1 {
				c = append(c, new(forwardLink))
			}
			c = append(c, new(sinkLink))
			b.ReportAllocs()
			for b.Loop() {
				_ = c.fire(msg)
			}
		})
		b.Run(fmt.Sprintf("pipeline/handlers=%d", n), func(b *testing.B) {
			var hs []any
			for range n - 1 {
				hs = append(hs, new(forwarder))
			}
			ch := embedded.New(append(hs, new(sink))...)
			defer ch.Finish()
			b.ReportAllocs()
			ch.Do(func() {
				p := ch.Pipeline()
				for b.Loop() {
					p.FireRead(msg)
				}
			})
		})
	}
}

// source fires messages for as long as a benchmark lasts, from inside the pipeline as a
// decoder does.
type source struct{ b *testing.B }

func (s source) HandleRead(c *pipeline.Context, msg any) error {
	for s.b.Loop() {
		c.FireRead(msg)
	}
	return nil
}

// mapper returns every message.
type mapper struct{ n int }

func (m *mapper) MapRead(_ *pipeline.Context, msg any) (any, error) {
	m.n++
	return msg, nil
}

func (m *mapper) MapWrite(_ *pipeline.Context, msg any) (any, error) {
	m.n++
	return msg, nil
}

// The same from inside the pipeline, through handlers of both forms.
func BenchmarkHop(b *testing.B) {
	forms := []struct {
		name string
		make func() any
	}{
		{"FireRead", func() any { return new(forwarder) }},
		{"MapRead", func() any { return new(mapper) }},
	}
	for _, n := range benchSizes {
		for _, form := range forms {
			b.Run(fmt.Sprintf("%s/handlers=%d", form.name, n), func(b *testing.B) {
				hs := []any{source{b}}
				for range n - 1 {
					hs = append(hs, form.make())
				}
				ch := embedded.New(append(hs, new(sink))...)
				defer ch.Finish()
				b.ReportAllocs()
				ch.WriteInbound(1)
			})
		}
	}
}

// What a handler costs that does not take the event.
func BenchmarkFireReadPast(b *testing.B) {
	msg := any(new(int))
	for _, n := range []int{0, 16} {
		b.Run(fmt.Sprintf("bystanders=%d", n), func(b *testing.B) {
			var hs []any
			for range n {
				hs = append(hs, new(bystander))
			}
			ch := embedded.New(append(hs, new(sink))...)
			defer ch.Finish()
			ch.Do(func() {
				p := ch.Pipeline()
				for b.Loop() {
					p.FireRead(msg)
				}
			})
		})
	}
}

// lastLink takes what goes on by itself or seldom.
type lastLink struct{ n int }

func (s *lastLink) HandleEvent(*pipeline.Context, any) error    { s.n++; return nil }
func (s *lastLink) HandleError(*pipeline.Context, error)        { s.n++ }
func (s *lastLink) HandleReadComplete(*pipeline.Context) error  { s.n++; return nil }
func (s *lastLink) HandleFlush(*pipeline.Context) error         { s.n++; return nil }
func (s *lastLink) HandleReadRequest(c *pipeline.Context) error { s.n++; return nil }

// The other events past handlers that do not take them: to one that does, as the last on
// their way, and where nobody does. What 16 more cost is to be divided by 16.
func BenchmarkPast(b *testing.B) {
	ev, err := any(new(int)), errSome
	for _, what := range []struct {
		name string
		fire func(ch *embedded.Channel)
	}{
		{"event", func(ch *embedded.Channel) { ch.Pipeline().FireEvent(ev) }},
		{"error", func(ch *embedded.Channel) { ch.Pipeline().FireError(err) }},
		{"complete", func(ch *embedded.Channel) { ch.Pipeline().FireReadComplete() }},
		{"flush", func(ch *embedded.Channel) { ch.Flush() }},
	} {
		for _, taken := range []bool{true, false} {
			if !taken && (what.name == "event" || what.name == "error") {
				continue // the tail keeps them
			}
			for _, n := range []int{0, 16} {
				b.Run(fmt.Sprintf("%s/taken=%v/bystanders=%d", what.name, taken, n), func(b *testing.B) {
					var hs []any
					for range n {
						hs = append(hs, new(bystander))
					}
					if last := any(new(lastLink)); taken && what.name == "flush" {
						hs = append([]any{last}, hs...)
					} else if taken {
						hs = append(hs, last)
					}
					ch := embedded.NewConfig(embedded.Config{ManualRead: true}, hs...)
					defer ch.Finish()
					ch.Do(func() {
						for b.Loop() {
							what.fire(ch)
						}
					})
				})
			}
		}
	}
}

// A write and its flush, through handlers that pass the write on.
func BenchmarkWrite(b *testing.B) {
	msg := any("hello")
	for _, n := range benchSizes {
		b.Run(fmt.Sprintf("handlers=%d", n), func(b *testing.B) {
			man := eventloop.NewManual()
			defer man.Close()
			m := &memory{ended: make(chan struct{})}
			m.Setup(m, (*memoryCore)(m), pipeline.BaseConfig{Loop: man.Loop(), HighWater: 1 << 16, ManualFlush: true})
			b.ReportAllocs()
			man.Enter(func() {
				if err := m.Register(nil); err != nil {
					b.Fatal(err)
				}
				for range n {
					if err := m.Pipeline().Add(new(writeForwarder)); err != nil {
						b.Fatal(err)
					}
				}
				for b.Loop() {
					m.Write(msg)
					m.Flush()
				}
				m.Close()
			})
		})
	}
}

func BenchmarkNotification(b *testing.B) {
	ch := embedded.New(new(counter), new(counter), new(counter))
	defer ch.Finish()
	b.ReportAllocs()
	ch.Do(func() {
		p := ch.Pipeline()
		for b.Loop() {
			p.FireReadComplete()
		}
	})
}

// A write from another goroutine, all the way to the queue.
func BenchmarkWriteOffLoop(b *testing.B) {
	l := newLoop(b)
	m := newMemory(b, l)
	done := make(chan struct{}, 1)
	mark := func() { done <- struct{}{} }
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		m.Write("x")
		if i%1024 == 1023 {
			_ = l.Execute(mark)
			<-done
		}
	}
	m.Close()
	<-m.ended
}

// Bursts of messages that go from outside to the loop, through a handler on a worker,
// and back to the loop; beside it the same way by Go channels between goroutines.
func BenchmarkOffloaded(b *testing.B) {
	msg := any(new(int))
	for _, burst := range []int{1, 64, 1024} {
		b.Run(fmt.Sprintf("handler/burst=%d", burst), func(b *testing.B) {
			l := newLoop(b)
			s := &burstSink{burst: burst, done: make(chan struct{}, 1)}
			m := newMemory(b, l, pipeline.Offloaded{Handler: new(forwarder)}, s)
			fire := func() {
				for range burst {
					m.Pipeline().FireRead(msg)
				}
			}
			b.ReportAllocs()
			for b.Loop() {
				_ = l.Execute(fire)
				<-s.done
			}
			b.ReportMetric(float64(b.Elapsed())/float64(b.N*burst), "ns/msg")
			m.Close()
			<-m.ended
		})
		b.Run(fmt.Sprintf("channel/burst=%d", burst), func(b *testing.B) {
			start, work, back, done := make(chan struct{}), make(chan any, 256), make(chan any, 256), make(chan struct{}, 1)
			go func() { // the worker
				for m := range work {
					back <- m
				}
				close(back)
			}()
			go func() { // the loop
				for range start {
					left, out := burst, burst
					for left > 0 {
						to := work
						if out == 0 {
							to = nil
						}
						select {
						case to <- msg:
							out--
						case <-back:
							left--
						}
					}
					done <- struct{}{}
				}
				close(work)
			}()
			b.ReportAllocs()
			for b.Loop() {
				start <- struct{}{}
				<-done
			}
			b.ReportMetric(float64(b.Elapsed())/float64(b.N*burst), "ns/msg")
			close(start)
			for range back {
			}
		})
	}
}

// burstSink tells when it has got so many messages.
type burstSink struct {
	n, burst int
	done     chan struct{}
}

func (s *burstSink) HandleRead(*pipeline.Context, any) error {
	if s.n++; s.n%s.burst == 0 {
		s.done <- struct{}{}
	}
	return nil
}
