package pipeline

import "slices"

// Attr is a key under which every channel can hold a value of type T: what an
// application knows of a connection and no handler owns, such as the user who has
// logged in. Two keys are different even if their names are the same. Netty:
// AttributeKey and Attribute.
//
//	var userKey = pipeline.NewAttr[User]("user")
//
// A change copies the channel's list of attributes, so they are for what is set now
// and then: a counter is better a field of a handler, or an atomic behind a pointer
// that is the attribute. A channel without attributes pays nothing for them.
//
// Ownership: values stay until they are deleted, also when the channel has closed,
// and nobody releases them: Delete in HandleInactive what has to be.
//
// Concurrency: all methods are safe from any goroutine, and at any time.
type Attr[T any] struct{ name string }

// attrValue is a value of a channel.
type attrValue[T any] struct {
	key *Attr[T]
	v   T
}

// NewAttr makes a key. The name is for people.
func NewAttr[T any](name string) *Attr[T] { return &Attr[T]{name} }

// String returns the name.
func (a *Attr[T]) String() string { return a.name }

// Get returns the value that ch holds, and whether it holds one.
func (a *Attr[T]) Get(ch Channel) (v T, ok bool) {
	if x := ch.base().more.Load(); x != nil {
		if list := x.attrs.Load(); list != nil {
			if e := a.find(*list); e != nil {
				return e.v, true
			}
		}
	}
	return v, false
}

// Set has ch hold v.
func (a *Attr[T]) Set(ch Channel, v T) {
	a.change(ch, func(*attrValue[T]) *attrValue[T] { return &attrValue[T]{a, v} })
}

// SetIfAbsent has ch hold v, unless it holds a value already. It returns the value
// that ch holds then, and whether that is v.
func (a *Attr[T]) SetIfAbsent(ch Channel, v T) (now T, set bool) {
	old := a.change(ch, func(old *attrValue[T]) *attrValue[T] {
		if old != nil {
			return old
		}
		return &attrValue[T]{a, v}
	})
	if old != nil {
		return old.v, false
	}
	return v, true
}

// Delete takes the value of ch away and returns it, and whether there was one. Of
// several that delete at once, one gets it.
func (a *Attr[T]) Delete(ch Channel) (v T, ok bool) {
	old := a.change(ch, func(*attrValue[T]) *attrValue[T] { return nil })
	if old != nil {
		return old.v, true
	}
	return v, false
}

// find returns the value in list, or nil.
func (a *Attr[T]) find(list []any) *attrValue[T] {
	for _, e := range list {
		if e, ok := e.(*attrValue[T]); ok && e.key == a {
			return e
		}
	}
	return nil
}

// change puts what next returns for the value that ch holds in its place, and returns
// the value it held before. Either may be nil for none. next may be called more than
// once.
func (a *Attr[T]) change(ch Channel, next func(*attrValue[T]) *attrValue[T]) *attrValue[T] {
	x := ch.base().extra()
	for {
		before := x.attrs.Load()
		var list []any
		if before != nil {
			list = *before
		}
		old := a.find(list)
		e := next(old)
		if e == old {
			return old
		}
		list = slices.DeleteFunc(slices.Clone(list), func(o any) bool { return o == any(old) })
		if e != nil {
			list = append(list, e)
		}
		if x.attrs.CompareAndSwap(before, &list) {
			return old
		}
	}
}
