package buffer_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"os/exec"
	"runtime"
	"runtime/pprof"
	"strings"
	"testing"
	"time"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/internal/invariant"
)

// patience is how long a test waits for what has to come before it fails.
const patience = 30 * time.Second

// setLevel sets the leak level for a test.
func setLevel(t *testing.T, l buffer.LeakLevel) {
	t.Helper()
	old := buffer.SetLeakLevel(l)
	t.Cleanup(func() { buffer.SetLeakLevel(old) })
}

// leaks collects reports.
type leaks struct {
	t    *testing.T
	came chan buffer.Leak
	live int64
}

// lookForLeaks has the reports come to the test, which loses n Bufs and FileRegions.
func lookForLeaks(t *testing.T, n int64) *leaks {
	t.Helper()
	buffer.Forget(0)
	l := &leaks{t: t, came: make(chan buffer.Leak, 100), live: buffer.Live()}
	buffer.OnLeak(func(leak buffer.Leak) { l.came <- leak })
	t.Cleanup(func() {
		buffer.OnLeak(nil)
		if got := buffer.Live() - l.live; got != n {
			t.Errorf("got %d more live than before, want %d, those that were lost", got, n)
		}
		buffer.Forget(n)
	})
	return l
}

// next collects garbage and returns the next report.
func (l *leaks) next() buffer.Leak {
	l.t.Helper()
	runtime.GC()
	runtime.GC()
	return l.wait()
}

func (l *leaks) wait() buffer.Leak {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	select {
	case leak := <-l.came:
		return leak
	case <-ctx.Done():
		l.t.Fatal("no leak was reported")
		return buffer.Leak{}
	}
}

// none checks that nothing more was reported.
func (l *leaks) none() {
	l.t.Helper()
	select {
	case leak := <-l.came:
		l.t.Errorf("got a report that %v", leak)
	default:
	}
}

// loseHere calls f, whose garbage is garbage when it has returned.
//
//go:noinline
func loseHere(f func()) { f() }

// ownPool is a pool of the test alone that has not been closed when the test ends,
// unless it closes it.
func ownPool(t *testing.T) (*buffer.Pool, *buffer.Cache) {
	t.Helper()
	p, err := buffer.NewPool(buffer.PoolConfig{Limit: 64 << 20})
	if err != nil {
		t.Fatal(err)
	}
	c := p.NewCache()
	c.Bind()
	return p, c
}

func closePool(t *testing.T, p *buffer.Pool, c *buffer.Cache) {
	t.Helper()
	c.Close()
	if err := p.Close(); err != nil {
		t.Errorf("closing the pool: %v", err)
	}
}

// At level off nothing is looked for, also when the level is raised later.
func TestLevelOff(t *testing.T) {
	setLevel(t, buffer.LeakOff)
	l := lookForLeaks(t, 2)
	before := buffer.Leaks()
	p, c := ownPool(t)
	loseHere(func() { c.Alloc(100) })
	b := c.Alloc(100)
	setLevel(t, buffer.LeakAll)
	loseHere(func() { c.Alloc(200) })
	if leak := l.next(); leak.Bytes != 224 {
		t.Errorf("got a report of %d bytes, want 224", leak.Bytes)
	}
	l.none()
	if got := buffer.Leaks().Lost - before.Lost; got != 1 {
		t.Errorf("got %d lost, want 1", got)
	}
	b.Release()
	if got := p.Live(); got != 1 {
		t.Errorf("got %d live, want 1, which nobody knows of", got)
	}
	buffer.Disown(p)
	buffer.Forget(-1)
}

// Of many from one place the first, second, fourth and so on are reported.
func TestLeaksDoNotFlood(t *testing.T) {
	setLevel(t, buffer.LeakAll)
	const n = 32
	l := lookForLeaks(t, n)
	loseHere(func() {
		for range n {
			buffer.FromString("the same")
		}
	})
	runtime.GC()
	runtime.GC()
	seen := map[int64]bool{}
	for range 6 {
		seen[l.wait().Seen] = true
	}
	for i := int64(1); i <= n; i *= 2 {
		if !seen[i] {
			t.Errorf("got no report of number %d", i)
		}
	}
	l.none()
}

// Places are told apart up to a bound.
func TestLeakKeysAreBounded(t *testing.T) {
	setLevel(t, buffer.LeakAll)
	const n = buffer.MaxLeakKeys + 8
	l := lookForLeaks(t, n)
	l.came = make(chan buffer.Leak, n)
	buffer.OnLeak(func(leak buffer.Leak) { l.came <- leak })
	loseHere(func() {
		for i := range n {
			buffer.Heap.Alloc(100 + i)
		}
	})
	runtime.GC()
	runtime.GC()
	for range buffer.MaxLeakKeys + 4 { // the last 8 count as one: 1, 2, 4 and 8
		l.wait()
	}
	l.none()
}

// A panic in the hook ends nothing.
func TestLeakHookPanics(t *testing.T) {
	setLevel(t, buffer.LeakAll)
	l := lookForLeaks(t, 2)
	buffer.OnLeak(func(leak buffer.Leak) {
		l.came <- leak
		panic("of a test")
	})
	for i := range 2 {
		loseHere(func() { buffer.Heap.Alloc(100 + i) })
		if leak := l.next(); leak.Bytes != int64(100+i) {
			t.Errorf("got %v", leak)
		}
	}
}

// chanWriter sends what is written.
type chanWriter chan string

func (w chanWriter) Write(p []byte) (int, error) {
	w <- string(p)
	return len(p), nil
}

// Without a hook leaks are logged.
func TestLeaksAreLogged(t *testing.T) {
	setLevel(t, buffer.LeakAll)
	lookForLeaks(t, 1)
	buffer.OnLeak(nil)
	lines := make(chanWriter, 10)
	defer log.SetOutput(log.Writer())
	log.SetOutput(lines)
	loseHere(func() {
		b := buffer.Heap.Alloc(100)
		buffer.Touch(b, "first")
		buffer.Touch(b, "second")
	})
	runtime.GC()
	runtime.GC()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	select {
	case got := <-lines:
		for _, want := range []string{"buffer: leak: a heap Buf of 100 bytes was not released", "given to: first, second\n", "TestLeaksAreLogged"} {
			if !strings.Contains(got, want) {
				t.Errorf("got %q, want %q in it", got, want)
			}
		}
	case <-ctx.Done():
		t.Fatal("nothing was logged")
	}
}

// The first touch and the last ones are kept.
func TestTouches(t *testing.T) {
	tests := []struct {
		n    int
		want string
	}{
		{0, ""}, {1, "0"}, {2, "0 1"}, {5, "0 1 2 3 4"}, {6, "0 2 3 4 5"}, {7, "0 3 4 5 6"}, {23, "0 19 20 21 22"},
	}
	setLevel(t, buffer.LeakAll)
	for _, tt := range tests {
		b := buffer.FromString("x")
		for i := range tt.n {
			buffer.Touch(b, fmt.Sprint(i))
		}
		b.Release()
		var misuse *buffer.MisuseError
		if err := panicOf(func() { b.ReadUint8() }); !errors.As(err, &misuse) {
			t.Fatalf("got %v, want a MisuseError", err)
		}
		if got := strings.Join(misuse.Touches, " "); got != tt.want {
			t.Errorf("%d touches: got %q, want %q", tt.n, got, tt.want)
		}
		if tt.n > 0 && !strings.Contains(misuse.Error(), "given to: 0") {
			t.Errorf("%d touches: they are not in %q", tt.n, misuse.Error())
		}
	}
	buffer.Touch("no Buf", "somebody")
	buffer.Touch(nil, "somebody")
	setLevel(t, buffer.LeakSampled)
	if buffer.Touching() {
		t.Error("got touching at level sampled")
	}
	b := buffer.FromString("x")
	buffer.Touch(b, "nobody looks")
	b.Release()
}

// One allocation in so many is sampled, and no two are much further apart.
func TestSampling(t *testing.T) {
	if invariant.Enabled {
		t.Skip("every allocation is on record")
	}
	usualLevel(t)
	c := boundCache(t, buffer.PoolConfig{})
	p := c.Pool()
	x := c.Alloc(100)
	defer x.Release()
	tests := []struct {
		name  string
		alloc func() *buffer.Buf
		bound int // allocations between two samples; 0 if chance has it
	}{
		{"cache", func() *buffer.Buf { return c.Alloc(100) }, 2 * buffer.SampleEvery},
		{"pool", func() *buffer.Buf { return p.Alloc(100) }, 2 * buffer.SampleEvery},
		{"slice", func() *buffer.Buf { return x.Slice(0, 0) }, 2 * buffer.SampleEvery},
		{"large", func() *buffer.Buf { return c.Alloc(2 << 20) }, 2 * buffer.SampleEvery},
		{"heap", func() *buffer.Buf { return buffer.Heap.Alloc(100) }, 0},
	}
	for _, tt := range tests {
		const samples = 100
		n, since := 0, 0
		for range samples * buffer.SampleEvery {
			b := tt.alloc()
			if since++; buffer.Traced(b) {
				n, since = n+1, 0
			}
			if tt.bound > 0 && since >= tt.bound {
				t.Fatalf("%s: %d allocations without a sample, want at most %d", tt.name, since, tt.bound)
			}
			b.Release()
		}
		if n < samples/2 || n > samples*2 {
			t.Errorf("%s: got %d samples, want some %d", tt.name, n, samples)
		}
	}
	buffer.SetLeakLevel(buffer.LeakOff)
	for range 4 * buffer.SampleEvery {
		b := c.Alloc(100)
		if buffer.Traced(b) {
			t.Fatal("a sample was taken at level off")
		}
		b.Release()
	}
}

// The profile shows what is alive, by where it was allocated.
func TestProfile(t *testing.T) {
	setLevel(t, buffer.LeakAll)
	profile := pprof.Lookup("runnel/buffers")
	if profile == nil {
		t.Fatal("there is no profile")
	}
	before := profile.Count()
	c := boundCache(t, buffer.PoolConfig{})
	b := allocateHere(c)
	s := b.Slice(0, 0)
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	r := buffer.NewFileRegion(f, 0, 1)
	if got := profile.Count() - before; got != 3 {
		t.Errorf("got %d more in the profile, want 3", got)
	}
	var text bytes.Buffer
	if err := profile.WriteTo(&text, 1); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(text.String(), "allocateHere") {
		t.Errorf("allocateHere is not in the profile:\n%s", &text)
	}
	b.Release()
	s.Release()
	r.Release()
	b = composed(c, "0123", "4567", "89ab")
	b.Split(5).Release()
	b.Consolidate()
	b.Release()
	if got := profile.Count() - before; got != 0 {
		t.Errorf("got %d left in the profile, want 0", got)
	}

	// The lost leave it when their memory returns.
	l := lookForLeaks(t, 1)
	loseHere(func() { allocateHere(buffer.Heap) })
	l.next()
	if got := profile.Count() - before; got != 0 {
		t.Errorf("got %d left in the profile, want 0", got)
	}
}

// The environment variable sets the level; nonsense in it is told of, once.
func TestLeakLevelOfEnvironment(t *testing.T) {
	if os.Getenv("PRINT_LEAK_LEVEL") != "" {
		fmt.Println("level", buffer.SetLeakLevel(buffer.LeakOff))
		return
	}
	tests := []struct {
		value string
		want  buffer.LeakLevel
		bad   bool
	}{
		{"", buffer.LeakSampled, false},
		{"off", buffer.LeakOff, false},
		{"sampled", buffer.LeakSampled, false},
		{"all", buffer.LeakAll, false},
		{"paranoid", buffer.LeakSampled, true},
		{"ALL", buffer.LeakSampled, true},
	}
	for _, tt := range tests {
		got, err := buffer.ParseLevel(tt.value)
		if got != tt.want || (err != nil) != tt.bad {
			t.Errorf("%q: got level %d, error %v; want %d", tt.value, got, err, tt.want)
		}
		if !tt.bad && tt.want != buffer.LeakOff {
			continue
		}
		exe, err := os.Executable()
		if err != nil {
			t.Skip(err)
		}
		cmd := exec.Command(exe, "-test.run=^TestLeakLevelOfEnvironment$", "-test.v")
		cmd.Env = append(os.Environ(), "PRINT_LEAK_LEVEL=1", "RUNNEL_LEAK="+tt.value)
		var stderr strings.Builder
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%q: %v\n%s%s", tt.value, err, out, &stderr)
		}
		if want := fmt.Sprintln("level", tt.want); !strings.Contains(string(out), want) {
			t.Errorf("%q: got %q, want %q in it", tt.value, out, want)
		}
		if n := strings.Count(stderr.String(), "RUNNEL_LEAK"); (n == 1) != tt.bad || n > 1 {
			t.Errorf("%q: got %d complaints in %q", tt.value, n, &stderr)
		}
	}
	for _, l := range []buffer.LeakLevel{-1, buffer.LeakAll + 1} {
		wantPanic(t, fmt.Sprintf("level %d", l), os.ErrInvalid, func() { buffer.SetLeakLevel(l) })
	}
}

// Levels change while Bufs are in use, and nothing is lost in the accounts.
func TestLevelsChangeUnderLoad(t *testing.T) {
	level := buffer.SetLeakLevel(buffer.LeakSampled)
	defer buffer.SetLeakLevel(level)
	p := newPool(t, buffer.PoolConfig{Limit: 64 << 20})
	profiled := pprof.Lookup("runnel/buffers").Count()
	const workers, rounds = 3, 3000
	hand := make(chan *buffer.Buf, 64)
	done := make(chan bool)
	for range workers {
		go func() {
			c := p.NewCache()
			c.Bind()
			for i := range rounds {
				b := c.Alloc(16 << (i % 9))
				b.WriteUint64(uint64(i))
				buffer.Touch(b, "worker")
				s := b.ReadSlice(4)
				if i%3 == 0 {
					b.EnsureWritable(4000)
				}
				if i%5 == 0 {
					b.Window()
				}
				select {
				case hand <- s:
				case o := <-hand:
					o.Release()
					s.Release()
				}
				b.Release()
			}
			c.Close()
			done <- true
		}()
	}
	for running := workers; running > 0; {
		for _, l := range []buffer.LeakLevel{buffer.LeakAll, buffer.LeakOff, buffer.LeakSampled} {
			buffer.SetLeakLevel(l)
			f := new(fakeT)
			buffer.CheckLeaks(f)
			runtime.Gosched()
			f.end()
		}
		select {
		case <-done:
			running--
		default:
		}
	}
	close(hand)
	for b := range hand {
		b.Release()
	}
	if got := p.Live(); got != 0 {
		t.Errorf("got %d live, want 0", got)
	}
	if got := pprof.Lookup("runnel/buffers").Count(); got != profiled {
		t.Errorf("got %d in the profile, want %d as before", got, profiled)
	}
}
