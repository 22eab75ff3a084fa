package eventloop

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/runnel-io/runnel/internal/sys"
)

// GroupConfig configures a [Group]. The zero value is ready to use.
type GroupConfig struct {
	Loops   int           // number of loops; 0 means GOMAXPROCS, less is an error
	Name    string        // begins the names of the loops; "" means "runnel"
	Poller  string        // "auto", which "" means too, "epoll" or "none"; anything else is an error
	Choose  Choice        // which loop a new channel gets; unknown ones are an error
	Offload OffloadConfig // its Logger is the group's if it has none
	Logger  *zap.Logger   // nil discards

	// With the Poller "none" there are no descriptors: the loops run tasks, timers and
	// channels that stay in the process. Off Linux "auto" means that.

	// Watchdog is how long a call may hold its loop before that is reported to Logger:
	// while it lasts, after this time or at the latest after twice that, with what was
	// called and, once a minute, all stacks; and when it has returned. 0 means 1 s,
	// less means no reports. Without a Logger that takes warnings there are none
	// either.
	Watchdog time.Duration

	// FineTimers has a loop wait for its next timer to the microsecond, and not to
	// the next millisecond, where the kernel can (epoll_pwait2, Linux 5.11). The
	// kernel's timer slack of 50 us remains. Timers less than a millisecond apart
	// then cost a wakeup each.
	FineTimers bool

	// LockThread gives each loop a thread of its own (runtime.LockOSThread), for what
	// the kernel keeps by thread: affinity, priority, namespaces. Changing between a
	// loop and other goroutines then takes microseconds instead of a fraction of one.
	LockThread bool

	// Spin is how long a loop with nothing to do polls before it waits; negative is an
	// error. It saves the kernel's wakeup, tens of microseconds, at the price of a
	// processor that is busy all the time. It leaves the processor to other goroutines.
	Spin time.Duration
}

// Group is a fixed set of loops that start and end together, and the [Offload] for
// what would block them.
//
// Concurrency: all methods are safe from any goroutine.
type Group struct {
	loops    []*Loop
	offload  *Offload
	choose   Choice
	next     atomic.Uint32
	watchdog *watchdog // nil without one
	stop     sync.Once
	done     chan struct{}
	shared   bool // made by Acquire
}

// check returns what is wrong with the configuration.
func (cfg *GroupConfig) check() error {
	switch {
	case cfg.Loops < 0:
		return fmt.Errorf("eventloop: negative number of loops: %d", cfg.Loops)
	case cfg.Spin < 0:
		return fmt.Errorf("eventloop: negative Spin: %v", cfg.Spin)
	case cfg.Choose > ByHash:
		return fmt.Errorf("eventloop: unknown Choose: %d", cfg.Choose)
	}
	return nil
}

// NewGroup starts a group. Shutdown ends it.
func NewGroup(cfg GroupConfig) (*Group, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	n := cfg.Loops
	if n == 0 {
		n = runtime.GOMAXPROCS(0)
	}
	name := cfg.Name
	if name == "" {
		name = "runnel"
	}
	if cfg.Offload.Logger == nil {
		cfg.Offload.Logger = cfg.Logger
	}
	offload, err := NewOffload(cfg.Offload)
	if err != nil {
		return nil, err
	}
	if err := startRuntimePoller(); err != nil {
		return nil, fmt.Errorf("eventloop: %w", err)
	}
	g := &Group{offload: offload, choose: cfg.Choose, done: make(chan struct{})}
	base := time.Now()
	for i := range n {
		l := newLoop(fmt.Sprintf("%s-%d", name, i), cfg.Logger, offload, minOutcomes)
		l.base, l.group, l.locked, l.spin = base, g, cfg.LockThread, int64(cfg.Spin)
		if l.poller, err = newPoller(cfg.Poller, cfg.FineTimers, &l.m.Counters); err != nil {
			for _, l := range g.loops {
				err = errors.Join(err, l.poller.close())
			}
			return nil, err
		}
		g.loops = append(g.loops, l)
	}
	if cfg.Watchdog >= 0 && cfg.Logger != nil && cfg.Logger.Core().Enabled(zap.WarnLevel) {
		limit := cfg.Watchdog
		if limit == 0 {
			limit = defaultWatchdog
		}
		g.watchdog = newWatchdog(limit, cfg.Logger, g.loops)
	}
	for _, l := range g.loops {
		go l.run()
	}
	return g, nil
}

// Loops returns the loops of the group, in the order in which [RoundRobin] hands them
// out.
func (g *Group) Loops() []*Loop { return append([]*Loop(nil), g.loops...) }

// Offload returns where the group's loops send what blocks.
func (g *Group) Offload() *Offload { return g.offload }

// Done returns a channel that is closed when the group has ended.
func (g *Group) Done() <-chan struct{} { return g.done }

// Shutdown ends the group and waits for it. Every registered handle is told to
// close; once the Ops are over and the offloaded functions have returned, the loops
// run what was brought to them and end. Then no goroutine, descriptor or buffer of
// the group is left.
//
// It returns the error of ctx if that ends first; the group still ends when it can.
// On one of the goroutines it would wait for it returns [ErrWouldDeadlock], and the
// group ends all the same.
func (g *Group) Shutdown(ctx context.Context) error {
	g.stop.Do(func() { go g.end() })
	if WouldDeadlock() {
		return ErrWouldDeadlock
	}
	select {
	case <-g.done:
		return nil
	default:
	}
	select {
	case <-g.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// end takes the group down, from the outside in: handles first, then the functions
// whose results go to the loops, then the loops.
func (g *Group) end() {
	defer close(g.done)
	closed := make([]chan struct{}, 0, len(g.loops))
	for _, l := range g.loops {
		closed = append(closed, l.closed)
		_ = l.Submit(&closeAll{l: l})
	}
	for _, c := range closed {
		<-c
	}
	if err := g.offload.Close(); err != nil {
		g.offload.logger.Error("offload cannot be closed", zap.Error(err))
	}
	for _, l := range g.loops {
		_ = l.Submit(endLoop{l})
	}
	for _, l := range g.loops {
		<-l.done
	}
	g.watchdog.close()
}

// shared is the group that everybody gets who does not bring one.
var shared struct {
	mu    sync.Mutex
	group *Group
	refs  int
}

// Acquire returns the process's shared group, which the first call starts. Every
// call needs a [Group.Release]. It fails when the group cannot be started.
func Acquire() (*Group, error) {
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if shared.refs == 0 {
		g, err := NewGroup(GroupConfig{})
		if err != nil {
			return nil, err
		}
		g.shared = true
		shared.group = g
	}
	shared.refs++
	return shared.group, nil
}

// Hold is one more [Acquire] by somebody who runs on the group already: it needs
// its own Release. On a group made by NewGroup it does nothing, and so it does on
// nil.
func (g *Group) Hold() {
	if g == nil || !g.shared {
		return
	}
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if shared.group != g || shared.refs == 0 {
		panic("eventloop: Hold without Acquire")
	}
	shared.refs++
}

// Release gives back what Acquire or Hold gave. The last one ends the group and does
// not wait for that, so that it may be called on the group's own loops; Done tells.
// On a group made by NewGroup it does nothing, and so it does on nil.
func (g *Group) Release() {
	if g == nil || !g.shared {
		return
	}
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if shared.group != g || shared.refs == 0 {
		panic("eventloop: Release without Acquire")
	}
	shared.refs--
	if shared.refs == 0 {
		shared.group = nil
		g.stop.Do(func() { go g.end() })
	}
}

// startRuntimePoller has the Go runtime open the descriptors of its own poller now.
// It does so at the first timer otherwise, and the process dies if it is out of
// descriptors then; here that is an error.
func startRuntimePoller() error {
	r, w, err := sys.Pipe()
	if errors.Is(err, errors.ErrUnsupported) {
		return nil // not here
	}
	if err != nil {
		return err
	}
	if err := errors.Join(sys.Close(r), sys.Close(w)); err != nil {
		return err
	}
	time.AfterFunc(time.Hour, func() {}).Stop()
	return nil
}
