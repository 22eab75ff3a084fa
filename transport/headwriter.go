package transport

import (
	"sync"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/pipeline"
)

// headWriter writes to a channel past its handlers, from the place of one that has been
// added at the head of its pipeline, or is about to be: what comes before waits for that.
// Any goroutine.
type headWriter struct {
	mu    sync.Mutex
	c     *pipeline.Context // of the handler; nil until it has been added
	early []any             // what came before
	bytes int               // in the buffers of that
	gone  bool              // it will not be added
}

// write takes msg over.
func (w *headWriter) write(msg any) {
	w.mu.Lock()
	c := w.c
	if c == nil && !w.gone {
		switch m := msg.(type) {
		case *buffer.Buf:
			w.bytes += m.Len()
		case []byte:
			msg = string(m) // it is the caller's again
		}
		w.early = append(w.early, msg)
		w.mu.Unlock()
		return
	}
	w.mu.Unlock()
	if c == nil {
		buffer.Release(msg)
		return
	}
	c.Write(msg)
}

// waiting returns how many bytes wait for the handler.
func (w *headWriter) waiting() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.bytes
}

// added is called when the handler has been added, on the channel's loop.
func (w *headWriter) added(c *pipeline.Context) {
	for {
		w.mu.Lock()
		early := w.early
		w.early, w.bytes = nil, 0
		if len(early) == 0 {
			w.c = c
			w.mu.Unlock()
			return
		}
		w.mu.Unlock()
		for _, msg := range early {
			c.Write(msg)
		}
	}
}

// refused is called when the handler cannot be added.
func (w *headWriter) refused() {
	w.mu.Lock()
	early := w.early
	w.early, w.bytes, w.gone = nil, 0, true
	w.mu.Unlock()
	for _, msg := range early {
		buffer.Release(msg)
	}
}
