package buffer

// ByteSet is a set of byte values, for searches such as [Buf.IndexAny]. The zero
// value is the empty set. A ByteSet is made once and may be used from any goroutine.
type ByteSet struct{ bits [8]uint32 }

// ByteSetOf returns the set of the bytes in members. They are taken as bytes, also
// where they are part of a character of several.
func ByteSetOf(members string) ByteSet {
	var s ByteSet
	for i := range len(members) {
		s.bits[members[i]>>5] |= 1 << (members[i] & 31)
	}
	return s
}

// Complement returns the set of all bytes that are not in s.
func (s ByteSet) Complement() ByteSet {
	for i := range s.bits {
		s.bits[i] = ^s.bits[i]
	}
	return s
}

// Contains reports whether c is in s.
func (s ByteSet) Contains(c byte) bool { return s.has(c) }

func (s *ByteSet) has(c byte) bool { return s.bits[c>>5]>>(c&31)&1 != 0 }

// index returns where the first byte of p that is in s is, or -1.
func (s *ByteSet) index(p []byte) int {
	for i, c := range p {
		if s.has(c) {
			return i
		}
	}
	return -1
}

// lastIndex returns where the last byte of p that is in s is, or -1.
func (s *ByteSet) lastIndex(p []byte) int {
	for i := len(p) - 1; i >= 0; i-- {
		if s.has(p[i]) {
			return i
		}
	}
	return -1
}
