package buffer_test

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"reflect"
	"slices"
	"testing"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/internal/invariant"
)

// secret is what all memory of the pool holds before it is handed out once more.
// Nothing that the test writes contains it.
const secret = 0xa5

// spread fills the memory of every size with the secret.
func spread(c *buffer.Cache) {
	var held []*buffer.Buf
	for size := 16; size <= 64<<10; size *= 2 {
		for range 8 {
			b := c.Alloc(size)
			p := b.Writable()
			for i := range p {
				p[i] = secret
			}
			b.Commit(len(p))
			held = append(held, b)
		}
	}
	for _, b := range held {
		b.Release()
	}
}

// snoop calls the methods of Bufs in any order with any arguments.
type snoop struct {
	t     *testing.T
	c     *buffer.Cache
	r     *rand.Rand
	bufs  []*buffer.Buf
	calls []string
	zeros *os.File // nil where there is no such file
}

var (
	typeInt    = reflect.TypeFor[int]()
	typeBytes  = reflect.TypeFor[[]byte]()
	typeString = reflect.TypeFor[string]()
	typeBuf    = reflect.TypeFor[*buffer.Buf]()
)

// snoopable returns the methods that arguments can be made up for. Those that need
// more care than that, because they take a reference or a descriptor, are called by
// act.
func snoopable() (names []string) {
	t := typeBuf
next:
	for i := range t.NumMethod() {
		m := t.Method(i)
		if m.Name == "Release" || m.Name == "Retain" || m.Type.IsVariadic() {
			continue
		}
		for in := 1; in < m.Type.NumIn(); in++ {
			switch p := m.Type.In(in); {
			case p == typeBytes, p.Kind() <= reflect.Float64 && p.Kind() >= reflect.Bool, p.Kind() == reflect.String:
			default:
				continue next
			}
		}
		if m.Name != "FillFrom" {
			names = append(names, m.Name)
		}
	}
	return names
}

// number makes up an argument.
func (s *snoop) number(b *buffer.Buf) int {
	return []int{math.MinInt, -1, 0, 0, 1, 2, 3, 8, 17, 100, b.ReaderIndex(), b.WriterIndex(), b.Len(), b.Cap() - b.WriterIndex(), b.Cap(), b.Cap() + 1, 5000, math.MaxInt32, math.MaxInt}[s.r.IntN(19)]
}

// shows reports whether the secret is in v.
func shows(v reflect.Value) bool {
	switch v.Kind() {
	case reflect.Uint8, reflect.Int8:
		return uint8(toUint(v)) == secret
	case reflect.Uint16, reflect.Int16, reflect.Uint32, reflect.Int32, reflect.Uint64, reflect.Int64:
		// Two bytes of it side by side are no chance.
		for n := toUint(v); n > 0xff; n >>= 8 {
			if n&0xffff == secret<<8|secret {
				return true
			}
		}
	case reflect.Slice:
		return v.Type() == typeBytes && bytes.IndexByte(v.Bytes(), secret) >= 0
	case reflect.String:
		return bytes.IndexByte([]byte(v.String()), secret) >= 0
	}
	return false
}

func toUint(v reflect.Value) uint64 {
	if v.CanInt() {
		return uint64(v.Int())
	}
	return v.Uint()
}

// act calls a method of b.
func (s *snoop) act(b *buffer.Buf, name string) {
	defer func() {
		v := recover()
		if v == nil {
			return
		}
		// Bad arguments are refused in the documented way.
		var e *buffer.Error
		if err, ok := v.(error); !ok || !errors.As(err, &e) {
			s.t.Fatalf("%v: panic: %v", s.calls, v)
		}
	}()
	switch name {
	case "FillFrom":
		if s.zeros != nil {
			b.FillFrom(int(s.zeros.Fd()), s.number(b))
		}
		return
	case "WriteBuf":
		b.WriteBuf(s.bufs[s.r.IntN(len(s.bufs))])
		return
	case "WriteRange":
		b.WriteRange(s.bufs[s.r.IntN(len(s.bufs))], s.number(b), s.number(b))
		return
	case "Append", "Prepend", "Insert":
		o := s.c.Alloc(1 + s.r.IntN(300))
		o.WriteString("a part"[:s.r.IntN(7)])
		switch name {
		case "Append":
			b.Append(o)
		case "Prepend":
			b.Prepend(o)
		default:
			b.Insert(s.number(b), o)
		}
		return
	case "Segments":
		b.Segments(func(p []byte) bool {
			if shows(reflect.ValueOf(p)) {
				s.t.Fatalf("%v: shows the secret", s.calls)
			}
			return true
		})
		return
	case "fill":
		// A caller who fills only part of what it commits.
		b.EnsureWritable(s.r.IntN(200))
		p := b.Writable()
		if shows(reflect.ValueOf(p)) {
			s.t.Fatalf("%v: Writable shows the secret", s.calls)
		}
		b.Commit(s.r.IntN(len(p) + 1))
		return
	case "drop":
		if len(s.bufs) > 1 {
			s.bufs = slices.DeleteFunc(s.bufs, func(o *buffer.Buf) bool { return o == b })
			b.Release()
		}
		return
	case "commit":
		b.Commit(s.number(b))
		return
	}
	m := reflect.ValueOf(b).MethodByName(name)
	var args []reflect.Value
	for i := range m.Type().NumIn() {
		a := reflect.New(m.Type().In(i)).Elem()
		switch p := m.Type().In(i); {
		case p == typeInt:
			a.SetInt(int64(s.number(b)))
		case p == typeBytes:
			a.SetBytes(make([]byte, s.r.IntN(40)))
		case p == typeString:
			a.SetString("some text"[:s.r.IntN(10)])
		}
		args = append(args, a)
	}
	s.calls[len(s.calls)-1] += fmt.Sprint(args)
	for _, v := range append(m.Call(args), args...) {
		if v.Type() == typeBuf && !v.IsNil() {
			if o := v.Interface().(*buffer.Buf); o != b {
				s.bufs = append(s.bufs, o)
			}
		} else if shows(v) {
			s.t.Fatalf("%v: returns the secret: %v", s.calls, v)
		}
	}
}

// look reads all of b that can be read.
func (s *snoop) look(b *buffer.Buf) {
	if p := b.Window(); bytes.IndexByte(p, secret) >= 0 {
		s.t.Fatalf("%v: the secret can be read: %x", s.calls, p)
	}
	at := 0
	defer func() {
		if v := recover(); v != nil && at >= b.ReaderIndex() {
			s.t.Fatalf("%v: index %d cannot be read: %v", s.calls, at, v)
		}
	}()
	for i := b.WriterIndex() - 1; i >= 0; i-- { // down to what a composite has discarded
		if at = i; b.Uint8At(i) == secret {
			s.t.Errorf("%v: the secret is at index %d", s.calls, i)
		}
	}
}

// Memory that is used again never shows what it held, whatever is called.
func TestSecretsStaySecret(t *testing.T) {
	usualLevel(t) // at level all memory is not used again
	p := newPool(t, buffer.PoolConfig{Limit: 64 << 20, MaxCap: 64 << 10})
	c := p.NewCache()
	c.Bind()
	t.Cleanup(c.Close)
	names := snoopable()
	for _, name := range []string{"ReadUint8", "ReadString", "Writable", "Commit", "Unread", "Slice", "Next", "Clear"} {
		if !slices.Contains(names, name) {
			t.Errorf("%s is not tried", name)
		}
	}
	names = append(names, "FillFrom", "WriteBuf", "WriteRange", "Append", "Prepend", "Insert", "Segments")
	// Those that move the bounds of what may be seen are tried more often.
	bounds := []string{"fill", "commit", "drop", "Slice", "ReadSlice", "Writable", "Clear", "DiscardRead", "EnsureWritable", "Unread", "Truncate", "Append"}
	zeros, err := os.Open("/dev/zero")
	if err == nil {
		defer zeros.Close()
	}
	rounds := 3000
	if testing.Short() || invariant.Race {
		rounds = 300
	}
	for seed := range rounds {
		spread(c)
		s := &snoop{t: t, c: c, r: rand.New(rand.NewPCG(uint64(seed), 0)), zeros: zeros}
		s.bufs = []*buffer.Buf{c.Alloc(1 + s.r.IntN(300))}
		s.bufs[0].WriteString("begin"[:s.r.IntN(6)])
		for range 1 + s.r.IntN(24) {
			b := s.bufs[s.r.IntN(len(s.bufs))]
			name := names[s.r.IntN(len(names))]
			if s.r.IntN(3) > 0 {
				name = bounds[s.r.IntN(len(bounds))]
			}
			s.calls = append(s.calls, fmt.Sprintf("%d of %d: %s", slices.Index(s.bufs, b), len(s.bufs), name))
			s.act(b, name)
			for _, b := range s.bufs {
				s.look(b)
			}
		}
		for _, b := range s.bufs {
			b.Release()
		}
	}
}
