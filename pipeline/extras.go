package pipeline

import (
	"context"
	"sync"
	"sync/atomic"

	"github.com/runnel-io/runnel/eventloop"
)

// extras is what only some channels need. It is apart because there may be a million
// of those that do not.
type extras struct {
	// Any goroutine; made when they are first asked for.
	closed atomic.Pointer[eventloop.Promise] // behind Closed
	ctx    atomic.Pointer[lazyContext]
	attrs  atomic.Pointer[[]any] // *attrValue of any type; the slice never changes
	off    atomic.Pointer[offloading]

	sends sendQueue

	mu     sync.Mutex
	groups []*ChannelGroup // guarded by mu: those that the channel is in

	tracer *tracer // loop-only; nil unless the pipeline is traced
}

// lazyContext is the context.Context of a channel.
type lazyContext struct {
	context.Context
	cancel context.CancelCauseFunc
}

// extra returns the channel's extras, which it makes if there are none. Any
// goroutine.
func (b *Base) extra() *extras {
	if x := b.more.Load(); x != nil {
		return x
	}
	b.more.CompareAndSwap(nil, new(extras))
	return b.more.Load()
}
