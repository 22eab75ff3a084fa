package codec

import (
	"errors"
	"fmt"
)

var (
	// ErrFrameTooLong reports a message that takes more bytes than allowed: more
	// than Max on the way in, more than the length field can say on the way out.
	ErrFrameTooLong = errors.New("frame too long")

	// ErrCorruptedFrame reports a length field whose value cannot be: negative, or
	// too small for the parts of the frame that it covers.
	ErrCorruptedFrame = errors.New("corrupted frame")

	// ErrNoProgress reports a Decoder that returned a message without having read
	// any bytes. It is a mistake in the program.
	ErrNoProgress = errors.New("codec: decoder returned a message without reading any bytes")
)

// FrameError says what was wrong with a frame. It wraps ErrFrameTooLong or
// ErrCorruptedFrame.
type FrameError struct {
	Length int64 // what the frame would have been, as far as is known
	Max    int64 // what it may be
	Err    error // cause
}

func (e *FrameError) Error() string {
	return fmt.Sprintf("codec: %v: length %d, maximum %d", e.Err, e.Length, e.Max)
}

// Unwrap returns the cause.
func (e *FrameError) Unwrap() error { return e.Err }
