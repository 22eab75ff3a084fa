package pipeline

import (
	"reflect"
	"strings"
	"sync"
)

// mask is a set of the events that a handler takes.
type mask uint32

const (
	maskRegistered mask = 1 << iota
	maskActive
	maskReadComplete
	maskWritability
	maskInactive
	maskUnregistered

	maskRead
	maskEvent
	maskError

	maskWrite
	maskFlush
	maskReadRequest
	maskConnect
	maskClose
	maskCloseWrite

	maskAdded
	maskRemoved

	// With maskRead and maskWrite: in the form of a mapper.
	maskMapRead
	maskMapWrite

	// The notifications once more, for handlers that hold them: their bits
	// shifted by holdShift.
	holdShift = 19

	// Of a context: HandleActive has come to its place, or had passed it already when the
	// handler was added; see Context.Active.
	maskActivated = 1 << 25

	maskNotifications = maskRegistered | maskActive | maskReadComplete | maskWritability | maskInactive | maskUnregistered
)

// hold returns the interceptor's bit of notification m.
func (m mask) hold() mask { return m << holdShift }

// handlerType is what the pipeline knows of a Go type, found once.
type handlerType struct {
	rt    reflect.Type
	name  string // names handlers that were added as one, with a number
	given string // the name of the one handler that has this copy, instead
	mask  mask   // 0 if it implements no handler interface

	offloaded *strandHandler // of the one handler that has this copy, if it runs on a strand
}

// called returns a copy of t for a handler that was given a name, or t if that is
// empty.
func (t *handlerType) called(name string) *handlerType {
	if name == "" {
		return t
	}
	c := *t
	c.given = name
	return &c
}

// headName is the name of the head.
const headName = "head"

// endsType is that of the context at both ends, which the tail is named by.
var endsType = &handlerType{given: "tail"}

// handlerTypes holds the types that were ever added, reflect.Type to *handlerType.
// A program has only so many.
var handlerTypes sync.Map

// typeOf returns what is known of the type of v, a handler or a Maker.
func typeOf(v any) *handlerType {
	t := reflect.TypeOf(v)
	if t == nil {
		return &handlerType{name: "nil"}
	}
	if known, ok := handlerTypes.Load(t); ok {
		return known.(*handlerType)
	}
	known, _ := handlerTypes.LoadOrStore(t, &handlerType{rt: t, name: typeName(v, t), mask: maskOf(v)})
	return known.(*handlerType)
}

// is reports whether a value of the type is a want, as a type assertion does.
func (t *handlerType) is(want reflect.Type) bool {
	return t.rt == want || want.Kind() == reflect.Interface && t.rt.Implements(want)
}

// typeNamer is a handler of this package whose type's name would tell little.
type typeNamer interface{ handlerType() string }

// typeName is what handlers of type t are called: the last part of its name.
func typeName(v any, t reflect.Type) string {
	if n, ok := v.(typeNamer); ok {
		return n.handlerType()
	}
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if n := t.Name(); n != "" {
		n, _, _ = strings.Cut(n, "[") // type arguments come with their whole paths
		return n
	}
	return t.String()
}

// maskOf finds which interfaces h implements.
func maskOf(h any) mask {
	var m mask
	assert[ReadHandler](h, maskRead, &m)
	assert[WriteHandler](h, maskWrite, &m)
	assert[ReadMapper](h, maskMapRead, &m)
	assert[WriteMapper](h, maskMapWrite, &m)
	assert[ReadCompleteHandler](h, maskReadComplete, &m)
	assert[RegisteredHandler](h, maskRegistered, &m)
	assert[UnregisteredHandler](h, maskUnregistered, &m)
	assert[ActiveHandler](h, maskActive, &m)
	assert[InactiveHandler](h, maskInactive, &m)
	assert[WritabilityHandler](h, maskWritability, &m)
	assert[EventHandler](h, maskEvent, &m)
	assert[ErrorHandler](h, maskError, &m)
	assert[AddedHandler](h, maskAdded, &m)
	assert[RemovedHandler](h, maskRemoved, &m)
	assert[FlushHandler](h, maskFlush, &m)
	assert[ReadRequestHandler](h, maskReadRequest, &m)
	assert[ConnectHandler](h, maskConnect, &m)
	assert[CloseHandler](h, maskClose, &m)
	assert[CloseWriteHandler](h, maskCloseWrite, &m)
	assert[RegisteredInterceptor](h, maskRegistered.hold(), &m)
	assert[ActiveInterceptor](h, maskActive.hold(), &m)
	assert[ReadCompleteInterceptor](h, maskReadComplete.hold(), &m)
	assert[WritabilityInterceptor](h, maskWritability.hold(), &m)
	assert[InactiveInterceptor](h, maskInactive.hold(), &m)
	assert[UnregisteredInterceptor](h, maskUnregistered.hold(), &m)
	if m&maskMapRead != 0 {
		m ^= maskRead
	}
	if m&maskMapWrite != 0 {
		m ^= maskWrite
	}
	return m
}

// assert sets bit in m if h implements I.
func assert[I any](h any, bit mask, m *mask) {
	if _, ok := h.(I); ok {
		*m |= bit
	}
}

// twice reports whether some event is taken in both of its forms.
func (m mask) twice() bool {
	return m&maskNotifications&(m>>holdShift) != 0 ||
		m&(maskRead|maskMapRead) == maskMapRead || m&(maskWrite|maskMapWrite) == maskMapWrite
}
