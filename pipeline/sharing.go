package pipeline

import (
	"fmt"
	"reflect"
	"sync"
	"weak"
)

// handlersInUse knows which handlers are in a pipeline, by their addresses, in builds
// with assertions. It keeps none of them alive: the entry of a channel that never ended
// is out of date when the address is somebody else's.
var handlersInUse = inUse{by: make(map[uintptr]weak.Pointer[Context])}

type inUse struct {
	mu sync.Mutex
	by map[uintptr]weak.Pointer[Context]
}

// address returns what tells a handler from all others, or 0 if nothing does: only
// pointers to something can be told apart.
func (u *inUse) address(h any) uintptr {
	if _, ok := h.(Shareable); ok {
		return 0
	}
	v := reflect.ValueOf(h)
	if v.Kind() != reflect.Pointer || v.Type().Elem().Size() == 0 {
		return 0
	}
	return v.Pointer()
}

// claim takes note that the handler of c is in use, and panics if it is in use
// elsewhere.
func (u *inUse) claim(c *Context) {
	h := c.Handler()
	at := u.address(h)
	if at == 0 {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if o := u.by[at].Value(); o != nil && o.Handler() == h && !o.Removed() {
		panic(fmt.Sprintf("pipeline: this %T is a handler of %v already, and not Shareable: make one for each channel, or add a Maker", h, o.p.base))
	}
	u.by[at] = weak.Make(c)
}

// release undoes claim.
func (u *inUse) release(c *Context) {
	at := u.address(c.Handler())
	if at == 0 {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.by[at].Value() == c {
		delete(u.by, at)
	}
}
