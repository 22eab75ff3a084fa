package transport

import (
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
)

// How a message would go, depending on what is in the queue.
func TestExplain(t *testing.T) {
	short, long := letters(100), letters(mergeLimit+1)
	tests := []struct {
		name   string
		before []any // in the queue
		msg    any
		want   route
	}{
		{"first", nil, short, route{PathCopy, whyUnowned}},
		{"a Buf alone", nil, pooled(short), route{PathWrite, whyAlone}},
		{"beside a short one", []any{pooled(short)}, pooled(short), route{PathCopy, whyBeside}},
		{"beside two", []any{pooled(short), pooled(short)}, pooled(short), route{PathCopy, whyMerging}},
		{"a long one", []any{pooled(short)}, pooled(long), route{PathWrite, whyLarge}},
		{"behind a long one", []any{pooled(long)}, pooled(short), route{PathWrite, whyLargeBefore}},
		{"behind a merged one, long", []any{pooled(short), pooled(short)}, pooled(long), route{PathWrite, whyLarge}},
		{"nothing", []any{pooled(short)}, pooled(""), route{PathNone, whyEmpty}},
		{"no bytes", nil, []byte{}, route{PathNone, whyEmpty}},
		{"no text", nil, "", route{PathNone, whyEmpty}},
		{"something else", nil, 42, route{PathNone, whyUnsupported}},
		{"a file", nil, buffer.NewFileRegion(tempFile(t, short), 0, 100), route{PathSendfile, whyCached}},
		{"an empty file", nil, buffer.NewFileRegion(tempFile(t, short), 0, 0), route{PathNone, whyEmpty}},
		{"behind a file", []any{buffer.NewFileRegion(tempFile(t, short), 0, 100)}, pooled(short), route{PathWrite, whyAlone}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, rigConfig{Config: Config{ManualFlush: true}})
			r.do(func() {
				for _, m := range tt.before {
					r.Write(m)
				}
				if got := Explain(r.stream, tt.msg); got != tt.want.explain() {
					t.Errorf("got %v, want %v", got, tt.want.explain())
				}
				r.Reset()
				if got, want := Explain(r.stream, tt.msg), (route{PathNone, whyClosed}).explain(); got != want {
					t.Errorf("after the close: got %v, want %v", got, want)
				}
				buffer.Release(tt.msg)
			})
		})
	}
}

// Every reason has words, and one that is no decision has none of another's.
func TestReasons(t *testing.T) {
	seen := map[string]why{}
	for i, s := range reasons {
		if other, ok := seen[s]; s == "" || ok {
			t.Errorf("reason %d: got %q, as reason %d; want words of its own", i, s, other)
		}
		seen[s] = why(i)
	}
	for p := PathNone; p <= PathHandOver; p++ {
		if s := p.String(); s == "" || strings.HasPrefix(s, "Path(") {
			t.Errorf("path %d: got %q, want a name", p, s)
		}
	}
	if got := Path(200).String(); got != "Path(200)" {
		t.Errorf("an unknown path: got %q, want Path(200)", got)
	}
}

func TestExplainRegions(t *testing.T) {
	f := tempFile(t, letters(100))
	r := newRig(t, rigConfig{Config: Config{ManualFlush: true}})
	r.do(func() {
		msg := buffer.NewFileRegion(f, 0, 100)
		defer msg.Release()
		r.k.cold = true
		if got, want := Explain(r.stream, msg), (route{PathSendfile, whyCold}).explain(); got != want {
			t.Errorf("cold: got %v, want %v", got, want)
		}
		for range maxRegions {
			r.Write(buffer.NewSharedRegion(f, 0, 1, func() {}))
		}
		if got, want := Explain(r.stream, msg), (route{PathNone, whyTooManyRegions}).explain(); got != want {
			t.Errorf("one too many: got %v, want %v", got, want)
		}
		r.Reset()
	})
}

// A channel that is no stream.
func TestExplainLocal(t *testing.T) {
	p := newLocalPair(t, Config{}, Config{})
	p.man.Enter(func() {
		for _, tt := range []struct {
			msg  any
			want route
		}{
			{pooled("text"), route{PathHandOver, whyInProcess}},
			{42, route{PathHandOver, whyInProcess}},
			{"text", route{PathCopy, whyUnowned}},
			{"", route{PathNone, whyEmpty}},
			{pooled(""), route{PathNone, whyEmpty}},
			{nil, route{PathNone, whyUnsupported}},
		} {
			if got := Explain(p.a.ch, tt.msg); got != tt.want.explain() {
				t.Errorf("local, %v: got %v, want %v", tt.msg, got, tt.want.explain())
			}
			buffer.Release(tt.msg)
		}
		p.a.ch.Reset()
		if got, want := Explain(p.a.ch, "text"), (route{PathNone, whyClosed}).explain(); got != want {
			t.Errorf("local, closed: got %v, want %v", got, want)
		}
	})
}

// What Explain says beforehand is what the counters say afterwards.
func TestExplainedIsCounted(t *testing.T) {
	file := tempFile(t, letters(5000))
	defer file.Close()
	sizes := []int{0, 1, 20, 500, mergeLimit - 1, mergeLimit, mergeLimit + 1, 3000}
	for seed := range uint64(50) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		r := newRig(t, rigConfig{Config: Config{ManualFlush: true}})
		want := eventloop.Counters{}
		var text strings.Builder
		add := func(s string) string { text.WriteString(s); return s }
		var adjacent *buffer.Buf // whose next bytes may be written
		r.do(func() {
			for range 40 {
				size := sizes[rnd.IntN(len(sizes))]
				var msg any
				switch rnd.IntN(6) {
				case 0:
					msg = add(letters(size))
				case 1:
					msg = []byte(add(letters(size)))
				case 2:
					msg = buffer.NewSharedRegion(file, 0, int64(size), func() {})
					add(letters(5000)[:size])
				case 3:
					if adjacent == nil || adjacent.Len() < size {
						if adjacent != nil {
							adjacent.Release()
						}
						adjacent = pooled(letters(20_000))
					}
					b := adjacent.ReadSlice(size)
					add(string(b.Window()))
					msg = b
				case 4:
					msg = buffer.Compose(pooled(add(letters(size/2))), pooled(add(letters(size-size/2))))
				default:
					msg = pooled(add(letters(size)))
				}
				ex := Explain(r.stream, msg)
				copied := r.Loop().Counters().BytesCopied
				merging := r.out.q != nil && r.out.q.merging
				var before int
				if last := r.out.joinable(); last != nil {
					before = last.Len()
				}
				_, owned := msg.(*buffer.Buf)
				r.Write(msg)
				switch got := r.Loop().Counters().BytesCopied - copied; {
				case !owned || ex.Path == PathNone:
				case ex.Path == PathCopy && merging && got != uint64(size),
					ex.Path == PathCopy && !merging && got != uint64(before+size),
					ex.Path != PathCopy && got != 0:
					t.Errorf("seed %d, %d bytes: %d were copied, explained as %v", seed, size, got, ex)
				}
				switch ex.Path {
				case PathSendfile:
					want.BytesSendfile += uint64(size)
				case PathCopy, PathWrite:
					want.BytesWritten += uint64(size)
				case PathNone:
					if size > 0 {
						t.Errorf("seed %d, %d bytes: got %v", seed, size, ex)
					}
				}
			}
			r.Flush()
		})
		for r.out.sent < r.out.queued && r.at == streamOpen {
			r.m.Turn()
		}
		r.wantOut(text.String())
		got := *r.Loop().Counters()
		if got.BytesWritten != want.BytesWritten || got.BytesSendfile != want.BytesSendfile {
			t.Errorf("seed %d: got %d bytes written and %d by sendfile, want %d and %d", seed,
				got.BytesWritten, got.BytesSendfile, want.BytesWritten, want.BytesSendfile)
		}
		if adjacent != nil {
			adjacent.Release()
		}
		r.do(r.Reset)
	}
}

// Bytes that come in, and those of mapped files among those that leave.
func TestBytesAreCounted(t *testing.T) {
	r := newRig(t, rigConfig{})
	r.readable(readStep{data: letters(5000)})
	r.readable(readStep{data: letters(70)})
	if got := r.Loop().Counters().BytesRead; got != 5070 {
		t.Errorf("got %d bytes read, want 5070", got)
	}
	if runtime.GOOS != "linux" {
		return
	}
	f := tempFile(t, letters(3000))
	defer f.Close()
	r.k.take = []takeStep{{n: 150}, {n: 500}}
	r.do(func() {
		r.Write(pooled(letters(100)))
		mapped, err := buffer.MapFile(f, 0, 3000)
		if err != nil {
			t.Fatal(err)
		}
		if got, want := Explain(r.stream, mapped), (route{PathMapped, whyMapped}).explain(); got != want {
			t.Errorf("mapped: got %v, want %v", got, want)
		}
		r.Write(mapped)
		r.Write(pooled(letters(40)))
	})
	for _, want := range []struct{ written, mapped uint64 }{{150, 50}, {650, 550}, {3140, 3000}} {
		if c := r.Loop().Counters(); c.BytesWritten != want.written || c.BytesMapped != want.mapped {
			t.Errorf("got %d bytes written, %d of them mapped; want %d and %d", c.BytesWritten, c.BytesMapped, want.written, want.mapped)
		}
		r.ready(eventloop.EventWrite)
	}
}
