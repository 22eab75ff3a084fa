package eventloop

import (
	"errors"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
)

func newTestOffload(t testing.TB, cfg OffloadConfig) *Offload {
	t.Helper()
	o, err := NewOffload(cfg)
	if err != nil {
		t.Fatalf("NewOffload: %v", err)
	}
	t.Cleanup(func() {
		if err := o.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return o
}

func TestOffloadConfig(t *testing.T) {
	for _, cfg := range []OffloadConfig{{Workers: -1}, {Waiting: -1}} {
		if _, err := NewOffload(cfg); err == nil {
			t.Errorf("%+v: got no error", cfg)
		}
	}
}

// Submit does not wait: what finds no worker waits in the list, in order, and more
// than the list may hold is refused.
func TestOffloadIsBounded(t *testing.T) {
	o := newTestOffload(t, OffloadConfig{Workers: 2, Waiting: 3})
	release := make(chan struct{})
	started := make(chan int, 10)
	submit := func(i int) error {
		return o.Submit(func() { started <- i; <-release })
	}
	for i := range 2 {
		if err := submit(i); err != nil {
			t.Fatalf("Submit: %v", err)
		}
	}
	for range 2 {
		await(t, started, "a worker")
	}
	for i := 2; i < 5; i++ {
		if err := submit(i); err != nil {
			t.Fatalf("Submit: %v", err)
		}
	}
	if err := submit(5); !errors.Is(err, ErrOffloadFull) {
		t.Errorf("got %v, want ErrOffloadFull", err)
	}
	var got []int
	for range 3 {
		release <- struct{}{}
		got = append(got, await(t, started, "the next function"))
	}
	if want := []int{2, 3, 4}; !slices.Equal(got, want) {
		t.Errorf("got functions started in the order %v, want %v", got, want)
	}
	close(release)
}

// One worker is enough for functions that submit others.
func TestOffloadFromAnOffloadedFunction(t *testing.T) {
	o := newTestOffload(t, OffloadConfig{Workers: 1})
	done := make(chan struct{})
	var step func(n int) func()
	step = func(n int) func() {
		return func() {
			if n == 0 {
				close(done)
				return
			}
			if err := o.Submit(step(n - 1)); err != nil {
				t.Errorf("Submit: %v", err)
			}
		}
	}
	if err := o.Submit(step(100)); err != nil {
		t.Fatal(err)
	}
	await(t, done, "the last function")
}

func TestOffloadContainsPanicsAndGoexit(t *testing.T) {
	logger, logs := newTestLogger()
	o := newTestOffload(t, OffloadConfig{Workers: 1, Logger: logger})
	done := make(chan bool, 1)
	for _, f := range []func(){
		func() { panic("worker blew up") },
		runtime.Goexit,
		func() { done <- WouldDeadlock() },
	} {
		if err := o.Submit(f); err != nil {
			t.Fatalf("Submit: %v", err)
		}
	}
	if !await(t, done, "the function behind them") {
		t.Error("got WouldDeadlock false in an offloaded function")
	}
	if err := o.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	if n := logs.FilterMessage("panic in an offloaded function").Len(); n != 1 {
		t.Errorf("got %d panics in the log, want 1", n)
	}
	identities.mu.Lock()
	defer identities.mu.Unlock()
	if len(identities.of) != 0 {
		t.Errorf("got %d identities left, want none", len(identities.of))
	}
}

// Everything that was taken is run, and Close returns after it.
func TestOffloadClose(t *testing.T) {
	o, err := NewOffload(OffloadConfig{Workers: 4})
	if err != nil {
		t.Fatal(err)
	}
	var ran, taken atomic.Int64
	var wg sync.WaitGroup
	begun := make(chan struct{})
	var once sync.Once
	for range 4 {
		wg.Go(func() {
			for {
				err := o.Submit(func() { ran.Add(1) })
				if err == nil {
					taken.Add(1)
					once.Do(func() { close(begun) })
				} else if errors.Is(err, ErrOffloadClosed) {
					return
				} else if !errors.Is(err, ErrOffloadFull) {
					t.Errorf("got %v", err)
					return
				}
			}
		})
	}
	await(t, begun, "the first function")
	if err := o.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	atClose := ran.Load()
	wg.Wait()
	if atClose != taken.Load() {
		t.Errorf("got %d functions run at the end of Close, want all %d", atClose, taken.Load())
	}
	if err := o.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
}

func TestOffloadCloseOnAWorker(t *testing.T) {
	o := newTestOffload(t, OffloadConfig{})
	got := make(chan error, 1)
	_ = o.Submit(func() { got <- o.Close() })
	if err := await(t, got, "the refusal"); !errors.Is(err, ErrWouldDeadlock) {
		t.Errorf("got %v, want ErrWouldDeadlock", err)
	}
	done := make(chan struct{})
	if err := o.Submit(func() { close(done) }); err != nil {
		t.Errorf("got %v after a refused Close, want it open", err)
	}
	await(t, done, "the function behind it")
}
