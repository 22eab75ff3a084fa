package pipeline

import (
	"fmt"
	"strings"
)

// eventNames are the events as String and Stats show them, in the order in which they
// come in the life of a channel.
var eventNames = []struct {
	bit  mask
	name string
	way  byte // '>' for inbound, '<' for outbound, 0 for those of the handler alone
}{
	{maskRegistered, "Registered", '>'},
	{maskActive, "Active", '>'},
	{maskRead, "Read", '>'},
	{maskReadComplete, "ReadComplete", '>'},
	{maskWritability, "Writability", '>'},
	{maskEvent, "Event", '>'},
	{maskError, "Error", '>'},
	{maskInactive, "Inactive", '>'},
	{maskUnregistered, "Unregistered", '>'},
	{maskConnect, "Connect", '<'},
	{maskWrite, "Write", '<'},
	{maskFlush, "Flush", '<'},
	{maskReadRequest, "ReadRequest", '<'},
	{maskCloseWrite, "CloseWrite", '<'},
	{maskClose, "Close", '<'},
	{maskAdded, "Added", 0},
	{maskRemoved, "Removed", 0},
}

// String draws the chain, a handler on one or two lines from head to tail: the inbound
// events that it takes behind an arrow to the right, the outbound ones behind an arrow
// to the left. A notification in brackets is held by its handler. If the pipeline is
// traced, each event comes with how often and for how long, see [Pipeline.Stats]. A
// handler that does not run on the loop is marked as offloaded.
func (p *Pipeline) String() string {
	type row struct {
		name     string
		takes    mask
		measured *traced
	}
	var rows []row
	width := 0
	if !p.base.loop.InLoop() {
		p.mu.Lock()
	}
	p.each(func(c *Context, name string, own mask) {
		// Not c.mask, which belongs to the loop.
		r := row{name, typeOf(c.Handler()).mask & own, nil}
		if c.typ.given != "" && c.typ.name != "" {
			r.name += " (" + c.typ.name + ")"
		}
		if c.typ.offloaded != nil {
			r.name += ", offloaded"
		}
		r.measured = c.traced()
		rows = append(rows, r)
		width = max(width, len(r.name))
	})
	if !p.base.loop.InLoop() {
		p.mu.Unlock()
	}
	var b strings.Builder
	for _, r := range rows {
		name := r.name
		for _, way := range []struct {
			is    byte
			arrow string
		}{{'>', "->"}, {'<', "<-"}} {
			var events []string
			for i, e := range eventNames {
				if e.way != way.is || r.takes&(e.bit|e.bit.hold()) == 0 {
					continue
				}
				s := e.name
				if r.takes&e.bit == 0 {
					s = "[" + s + "]"
				}
				if r.measured != nil {
					m := r.measured.stat(i)
					s += fmt.Sprintf(" %d in %v", m.Count, m.Total)
				}
				events = append(events, s)
			}
			if len(events) > 0 {
				fmt.Fprintf(&b, "%-*s %s %s\n", width, name, way.arrow, strings.Join(events, ", "))
				name = ""
			}
		}
		if name != "" {
			b.WriteString(name + "\n")
		}
	}
	return b.String()
}
