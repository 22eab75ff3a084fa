package transport

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/internal/sys"
	"github.com/runnel-io/runnel/pipeline"
)

// Whatever the kernel takes at a time, the bytes of buffers and regions leave in
// order, once, and every completion comes when its message has left.
func TestShortWrites(t *testing.T) {
	content := letters(700)
	for step := 1; step < 120; step++ {
		t.Run(fmt.Sprint(step), func(t *testing.T) {
			r := newRig(t, rigConfig{})
			var want string
			var done []int
			r.do(func() {
				for i, n := range []int{3, 0, 90, 1100, 5, 1, 2000, 7, 0, 64} {
					s := letters(n + i)[i:]
					want += s
					r.WriteThen(pooled(s), func(err error) {
						if err != nil {
							t.Errorf("message %d: %v", i, err)
						}
						done = append(done, i)
					})
					if i%3 == 0 {
						r.Write(buffer.NewFileRegion(tempFile(t, content), int64(i), 300))
						want += content[i : i+300]
					}
				}
				for i := 0; i < len(want); i += step {
					r.k.take = append(r.k.take, takeStep{n: step})
				}
			})
			for i := 0; i < 10*len(want) && r.k.out.Len() < len(want); i++ {
				if r.interest()&eventloop.EventWrite == 0 {
					r.m.Turn()
					continue
				}
				r.ready(eventloop.EventWrite)
			}
			r.m.RunUntilIdle()
			r.wantOut(want)
			if want := []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}; !slices.Equal(done, want) {
				t.Errorf("completions: got %v, want %v", done, want)
			}
			if r.out.charge != 0 || r.out.q != nil {
				t.Errorf("left in the queue: charge %d, %d messages", r.out.charge, r.out.len())
			}
			if ev := r.interest(); ev != reads {
				t.Errorf("interest: got %v, want %v", ev, reads)
			}
		})
	}
}

// A completion comes when the last byte of its message has left, not before.
func TestCompletionPosition(t *testing.T) {
	r := newRig(t, rigConfig{})
	var sent []int
	r.do(func() {
		for range 4 {
			r.WriteThen(pooled("0123456789"), func(error) { sent = append(sent, r.k.out.Len()) })
		}
		r.k.take = []takeStep{{n: 9}, {n: 1}, {n: 15}, {n: 20}}
	})
	for range 4 {
		r.ready(eventloop.EventWrite)
	}
	if want := []int{10, 25, 40, 40}; !slices.Equal(sent, want) {
		t.Errorf("bytes sent at each completion: got %v, want %v", sent, want)
	}
}

func TestWriteErrors(t *testing.T) {
	for _, errno := range []syscall.Errno{syscall.ECONNRESET, syscall.EPIPE, syscall.ENOBUFS, syscall.EFAULT} {
		t.Run(errno.Error(), func(t *testing.T) {
			r := newRig(t, rigConfig{})
			r.log = nil
			var errs []error
			r.do(func() {
				r.k.take = []takeStep{{n: 2}, {err: os.NewSyscallError("writev", errno)}}
				for range 3 {
					r.WriteThen(pooled("abc"), func(err error) { errs = append(errs, err) })
				}
				r.Write(buffer.NewFileRegion(tempFile(t, "content"), 0, 7))
			})
			r.ready(eventloop.EventWrite)
			r.wantLog("error transport: write: writev: "+errno.Error(), "inactive", "unregistered")
			if len(errs) != 3 {
				t.Fatalf("completions: got %d, want 3", len(errs))
			}
			for _, err := range errs {
				if !errors.Is(err, pipeline.ErrClosed) || !errors.Is(err, errno) {
					t.Errorf("completion: got %v, want ErrClosed that wraps %v", err, errno)
				}
			}
			var op *OpError
			if !errors.As(r.CloseReason(), &op) || op.Op != "write" {
				t.Errorf("close reason: got %v, want a write *OpError", r.CloseReason())
			}
		})
	}
}

func TestReadError(t *testing.T) {
	r := newRig(t, rigConfig{})
	r.log = nil
	full := letters(64 << 10)
	r.readable(readStep{data: full}, readStep{err: os.NewSyscallError("read", syscall.ECONNRESET)})
	// What was read before the error is delivered, and the read is complete once.
	r.wantLog("read 65536 bytes", "complete",
		"error transport: read: read: connection reset by peer", "inactive", "unregistered")
}

// SEMANTICS 4.2, 4.3: reading ends with the first read that does not fill the
// buffer; with AutoRead off there is one read for each Read.
func TestManualRead(t *testing.T) {
	r := newRig(t, rigConfig{Config: Config{ManualRead: true}})
	r.log = nil
	r.readable(readStep{data: "one"}, readStep{data: "two"}, readStep{data: "three"})
	r.wantLog()
	if ev := r.interest(); ev != 0 {
		t.Errorf("interest before Read: got %v, want none", ev)
	}
	r.do(r.Read) // the socket is still ready
	r.wantLog("read one", "complete")
	if ev := r.interest(); ev != 0 {
		t.Errorf("interest after a read: got %v, want none", ev)
	}
	r.ready(eventloop.EventRead)
	r.wantLog()
	r.m.Enter(r.Read)
	r.do(r.Read) // two requests before the read are one
	r.ready(eventloop.EventRead)
	r.wantLog("read two", "complete")
	r.do(func() { r.SetAutoRead(true) })
	r.wantLog("read three", "complete")
	r.do(func() { r.SetAutoRead(false) })
	if ev := r.interest(); ev != 0 {
		t.Errorf("interest with AutoRead off: got %v, want none", ev)
	}
}

// A turn of reading ends after 16 reads or 1 MiB.
func TestReadTurnIsBounded(t *testing.T) {
	r := newRig(t, rigConfig{})
	for range 40 {
		r.k.in = append(r.k.in, readStep{data: letters(1 << 20)})
	}
	total := 40 << 20
	r.m.Ready(scriptFD, eventloop.EventRead)
	r.m.Turn()
	left := 0
	for _, s := range r.k.in {
		left += len(s.data)
	}
	if got := total - left; got > maxBytesPerTurn+recvSizes[len(recvSizes)-1] {
		t.Errorf("bytes read in one turn: got %d", got)
	}
}

// An accepted channel that is unwritable stops reading by itself; a dialed one
// does not. A write that crosses the mark is flushed before it is judged.
func TestWaterMarks(t *testing.T) {
	for _, dialed := range []bool{false, true} {
		t.Run(fmt.Sprintf("dialed=%v", dialed), func(t *testing.T) {
			r := newRig(t, rigConfig{Config: Config{HighWater: 20000, LowWater: 8000}, dialed: dialed})
			r.log = nil
			r.do(func() { r.Write(pooled(letters(60000))) })
			r.wantLog()
			r.do(func() {
				r.k.take = []takeStep{{err: sys.ErrAgain}}
				r.Write(pooled(letters(60000)))
			})
			r.wantLog("writable false")
			want := eventloop.EventWrite
			if dialed {
				want |= reads
			}
			if ev := r.interest(); ev != want {
				t.Errorf("interest while unwritable: got %v, want %v", ev, want)
			}
			if r.BytesBeforeUnwritable() != 0 || r.BytesBeforeWritable() < 50000 {
				t.Errorf("got %d before unwritable, %d before writable", r.BytesBeforeUnwritable(), r.BytesBeforeWritable())
			}
			r.ready(eventloop.EventWrite)
			r.wantLog("writable true")
			if ev := r.interest(); ev != reads {
				t.Errorf("interest when writable: got %v, want %v", ev, reads)
			}
		})
	}
}

func TestMaxPending(t *testing.T) {
	r := newRig(t, rigConfig{Config: Config{MaxPending: 100000}})
	r.log = nil
	r.do(func() {
		r.k.take = []takeStep{{err: sys.ErrAgain}}
		for range 20 {
			r.Write(pooled(letters(9000)))
		}
	})
	r.m.RunUntilIdle()
	r.wantLog("error transport: write: transport: peer reads too slowly", "inactive", "unregistered")
	if !errors.Is(r.CloseReason(), ErrSlowPeer) {
		t.Errorf("close reason: got %v, want ErrSlowPeer", r.CloseReason())
	}
}

// What the flush's own callbacks write leaves in the next turn.
func TestWritesOfCallbacksLeaveInTheNextTurn(t *testing.T) {
	r := newRig(t, rigConfig{})
	r.do(func() {
		r.WriteThen(pooled("first "), func(error) { r.Write(pooled("second")) })
	})
	r.wantOut("first ")
	r.m.Turn()
	r.wantOut("first second")
}

func TestManualFlush(t *testing.T) {
	r := newRig(t, rigConfig{Config: Config{ManualFlush: true}})
	r.do(func() { r.Write(pooled("a")); r.Write(pooled("b")) })
	r.m.RunUntilIdle()
	r.wantOut("")
	r.do(func() {
		r.k.take = []takeStep{{n: 1}}
		r.Flush()
		r.Write(pooled("c")) // into the same merged buffer as b
	})
	r.wantOut("a")
	r.ready(eventloop.EventWrite)
	r.wantOut("ab")
	r.do(r.Flush)
	r.wantOut("abc")
}

func TestManualFlushFromCallback(t *testing.T) {
	r := newRig(t, rigConfig{Config: Config{ManualFlush: true}})
	r.do(func() {
		r.WriteThen(pooled("a"), func(error) { r.Write(pooled("b")); r.Flush() })
		r.Flush()
	})
	r.m.RunUntilIdle()
	r.wantOut("ab")
}

func TestFileRegions(t *testing.T) {
	content := letters(3 << 20)
	r := newRig(t, rigConfig{})
	r.do(func() {
		r.Write(pooled("head"))
		r.Write(buffer.NewFileRegion(tempFile(t, content), 0, int64(len(content))))
		r.Write("tail")
	})
	// The writes themselves may use up one budget, the end of the turn another.
	if r.k.out.Len() > 2*regionBudget+4 {
		t.Errorf("sent in one turn: got %d bytes, want two budgets at most", r.k.out.Len())
	}
	r.m.RunUntilIdle()
	r.wantOut("head" + content + "tail")
	if !r.k.more[0] || r.k.more[len(r.k.more)-1] {
		t.Errorf("got MSG_MORE %v, want it before the file and not after", r.k.more)
	}
	r.k.more = nil
	r.k.out.Reset()
	r.do(func() {
		r.Write(pooled("head"))
		r.Write(buffer.NewFileRegion(tempFile(t, content), 100, 1000))
	})
	r.wantOut("head" + content[100:1100])
	if !r.k.more[0] {
		t.Error("no MSG_MORE before a small file")
	}
}

// A header waits for the file behind it only with its last byte.
func TestMoreBehindAllOfABuffer(t *testing.T) {
	r := newRig(t, rigConfig{Config: Config{HighWater: 64 << 20}})
	iov := cap(r.state.iov)
	head := buffer.Compose()
	for range iov + 1 {
		head.Append(pooled(letters(2000)))
	}
	r.do(func() {
		r.Write(head)
		r.Write(buffer.NewFileRegion(tempFile(t, "content"), 0, 7))
	})
	r.m.RunUntilIdle()
	r.wantOut(strings.Repeat(letters(2000), iov+1) + "content")
	for i, more := range r.k.more {
		if want := i == len(r.k.more)-1; more != want {
			t.Errorf("call %d of %d: got more %v, want %v", i, len(r.k.more), more, want)
		}
	}
}

// A region whose file ends too early closes the channel; it does not spin.
func TestFileShrinks(t *testing.T) {
	r := newRig(t, rigConfig{})
	r.log = nil
	f := tempFile(t, letters(100))
	if err := f.Truncate(40); err != nil {
		t.Fatal(err)
	}
	var result error
	r.do(func() {
		r.WriteThen(buffer.NewFileRegion(f, 0, 100), func(err error) { result = err })
	})
	r.m.RunUntilIdle()
	r.ready(eventloop.EventWrite)
	r.wantOut(letters(100)[:40])
	if !errors.Is(result, ErrFileShrunk) {
		t.Errorf("completion: got %v, want ErrFileShrunk", result)
	}
	r.wantLog("error transport: write: send "+f.Name()+": transport: file is shorter than its region", "inactive", "unregistered")
}

// A file that is not in memory is sent by an Op, off the loop; meanwhile other
// writes wait, and a close keeps the descriptor until the Op has ended.
func TestColdFile(t *testing.T) {
	content := letters(5000)
	t.Run("sent", func(t *testing.T) {
		r := newRig(t, rigConfig{})
		r.k.cold = true
		onLoop := false
		r.k.sendfile = func() { onLoop = onLoop || r.Loop().InLoop() }
		r.do(func() {
			r.Write(buffer.NewFileRegion(tempFile(t, content), 0, 5000))
			r.Write(pooled("behind"))
		})
		r.wantOut("")
		r.m.RunUntilIdle()
		r.wantOut(content + "behind")
		if onLoop {
			t.Error("sendfile of a cold file on the loop")
		}
	})
	t.Run("blocked", func(t *testing.T) {
		r := newRig(t, rigConfig{})
		r.k.cold = true
		r.k.take = []takeStep{{n: 1000}, {err: sys.ErrAgain}, {n: 10}}
		r.do(func() { r.Write(buffer.NewFileRegion(tempFile(t, content), 0, 5000)) })
		r.m.RunUntilIdle()
		r.wantOut(content[:1000])
		for i := 0; i < 10 && r.k.out.Len() < 5000; i++ {
			r.ready(eventloop.EventWrite)
		}
		r.wantOut(content)
	})
	t.Run("closed meanwhile", func(t *testing.T) {
		r := newRig(t, rigConfig{})
		r.log = nil
		r.k.cold = true
		r.do(func() { r.Write(buffer.NewFileRegion(tempFile(t, content), 0, 5000)) })
		closes := -1
		r.k.sendfile = func() { closes = r.k.closes }
		r.m.Enter(r.Reset)
		if r.k.closes != 0 || r.Closed().Err() != nil || isDone(r.Closed().Done()) {
			t.Error("closed while an Op uses the descriptor")
		}
		if r.Open() || !errors.Is(r.CloseReason(), pipeline.ErrReset) {
			t.Errorf("after Reset: open %v, reason %v; want false, ErrReset", r.Open(), r.CloseReason())
		}
		r.m.RunUntilIdle()
		if closes != 0 || r.k.closes != 1 {
			t.Errorf("closes: got %d when the Op ran and %d in the end, want 0 and 1", closes, r.k.closes)
		}
		r.wantLog("inactive", "unregistered")
	})
}

func isDone(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func TestTooManyRegions(t *testing.T) {
	r := newRig(t, rigConfig{})
	r.log = nil
	f := tempFile(t, "x")
	region := buffer.NewFileRegion(f, 0, 1)
	r.do(func() {
		r.k.take = []takeStep{{err: sys.ErrAgain}}
		for range maxRegions {
			r.Write(buffer.NewFileRegion(must(os.Open(f.Name())), 0, 1))
		}
		r.Write(region)
	})
	r.wantLog("error transport: write: transport: too many file regions queued")
	if region.Refs() != 0 {
		t.Errorf("references of the refused region: got %d, want 0", region.Refs())
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func TestUnsupportedMessage(t *testing.T) {
	r := newRig(t, rigConfig{})
	r.log = nil
	r.do(func() { r.Write(42); r.Write([]byte("bytes ")); r.Write("string") })
	r.wantLog("error transport: write: transport: unsupported message type")
	r.wantOut("bytes string")
}

// Reading pauses while the pool is close to its limit, and goes on.
func TestStarvedReads(t *testing.T) {
	pool, err := buffer.NewPool(buffer.PoolConfig{Limit: 4 << 20})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := pool.Close(); err != nil {
			t.Error(err)
		}
	})
	r := newRig(t, rigConfig{Config: Config{Allocator: pool}})
	r.log = nil
	var hold []*buffer.Buf
	for {
		b, err := pool.TryAlloc(64 << 10)
		if err != nil {
			break
		}
		hold = append(hold, b)
	}
	r.readable(readStep{data: "late"})
	r.wantLog() // nine tenths are in use: it has not even tried
	if ev := r.interest(); ev != 0 {
		t.Errorf("interest under pressure: got %v, want none", ev)
	}
	if n := r.logs.FilterMessageSnippet("reading paused").Len(); n != 1 {
		t.Errorf("got %d lines in the log, want 1", n)
	}
	r.m.Advance(10 * starvedRetry)
	r.wantLog()
	for _, b := range hold {
		b.Release()
	}
	r.m.Advance(starvedRetry)
	r.ready(eventloop.EventRead)
	r.wantLog("read late", "complete")
}

// stingy is an allocator that has nothing as long as it is told so.
type stingy struct {
	buffer.Allocator
	empty bool
}

func (a *stingy) TryAlloc(n int) (*buffer.Buf, error) {
	if a.empty {
		return nil, buffer.ErrOutOfMemory
	}
	return a.Allocator.TryAlloc(n)
}

// A channel that finds no memory to read into tries again a little later.
func TestReadsWithoutMemory(t *testing.T) {
	a := &stingy{buffer.Heap, true}
	r := newRig(t, rigConfig{Config: Config{Allocator: a}})
	r.log = nil
	r.readable(readStep{data: "late"})
	r.wantLog("complete")
	if ev := r.interest(); ev != 0 {
		t.Errorf("interest while starved: got %v, want none", ev)
	}
	a.empty = false
	r.m.Advance(starvedRetry)
	r.ready(eventloop.EventRead)
	r.wantLog("read late", "complete")
}

// A handler that resets the channel when it is told of a failure does not hide that.
func TestReasonOfAFailure(t *testing.T) {
	r := newRig(t, rigConfig{}, pipeline.OnError(func(c *pipeline.Context, _ error) { c.Channel().Reset() }))
	r.readable(readStep{err: os.NewSyscallError("read", syscall.ECONNRESET)})
	if err := r.CloseReason(); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("got %v, want %v", err, syscall.ECONNRESET)
	}
}

// However many channels of a loop find no memory, they wait for one timer and fill one
// line of the log.
func TestManyWithoutMemory(t *testing.T) {
	const n = 50
	core, logs := observer.New(zap.DebugLevel)
	a := &stingy{buffer.Heap, true}
	cfg, err := (&Config{Allocator: a, Logger: zap.New(core)}).check()
	if err != nil {
		t.Fatal(err)
	}
	m := eventloop.NewManual()
	defer m.Close()
	var reads int
	armed := m.Loop().Metrics().TimersArmed
	for i := range n {
		s := newStream(&cfg, m.Loop(), nil, scriptFD+i)
		s.sock = scriptSocket{&script{t: t, in: []readStep{{data: "late"}}}}
		m.Enter(func() {
			s.start(func(ch pipeline.Channel) error {
				return ch.Pipeline().Add(pipeline.On(func(_ *pipeline.Context, b *buffer.Buf) error {
					reads++
					b.Release()
					return nil
				}))
			})
		})
		m.Ready(scriptFD+i, eventloop.EventRead)
		m.RunUntilIdle()
	}
	if got := logs.FilterMessageSnippet("reading paused").Len(); got != 1 {
		t.Errorf("got %d lines in the log, want 1", got)
	}
	if got := m.Loop().Metrics().TimersArmed - armed; got != 1 {
		t.Errorf("got %d timers, want 1", got)
	}
	a.empty = false
	m.Advance(starvedRetry)
	for i := range n {
		m.Ready(scriptFD+i, eventloop.EventRead)
	}
	m.RunUntilIdle()
	if reads != n {
		t.Errorf("got %d reads when there was memory, want %d", reads, n)
	}
}

// A panic in a handler closes its channel, whatever the transport is doing.
func TestPanicsInCallbacks(t *testing.T) {
	for _, tt := range []struct {
		name string
		do   func(r *rig)
	}{
		{"write completion", func(r *rig) { r.WriteThen(pooled("x"), func(error) { panic("boom") }) }},
		{"writability", func(r *rig) {
			r.Pipeline().AddFirst(onWritability(func(*pipeline.Context) error { panic("boom") }))
			r.k.take = []takeStep{{err: sys.ErrAgain}}
			for range 3 {
				r.Write(pooled(letters(100000)))
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, rigConfig{})
			r.do(func() { tt.do(r); r.Write(pooled("dropped")) })
			r.m.RunUntilIdle()
			var p *pipeline.PanicError
			if !errors.As(r.CloseReason(), &p) || p.Value != "boom" {
				t.Errorf("close reason: got %v, want the panic", r.CloseReason())
			}
		})
	}
}

// A message that its writer released as well ends its own channel, wherever the
// transport notices, and the queue behind it is still released.
func TestMessageReleasedTwice(t *testing.T) {
	r := newRig(t, rigConfig{})
	r.k.take = []takeStep{{n: 1}}
	region := buffer.NewFileRegion(tempFile(t, "content"), 0, 7)
	behind := pooled("behind")
	r.do(func() {
		r.Write(pooled("ab"))
		r.Write(region)
		r.Write(behind)
	})
	region.Release()
	r.ready(eventloop.EventWrite)
	if r.Open() {
		t.Error("channel still open")
	}
	if behind.Refs() != 0 {
		t.Errorf("references of the message behind: got %d, want 0", behind.Refs())
	}
}

type onWritability func(c *pipeline.Context) error

func (f onWritability) HandleWritability(c *pipeline.Context) error { return f(c) }
