// Package codec turns the bytes of a stream into messages and back.
//
// [LengthField] and [Line] are framings: values that are added to a pipeline like
// handlers, and of which each pipeline makes its own. A framing of one's own is a
// [Decoder], run by [Decoding]; the other direction is [Encode].
//
// The one rule to keep: bytes are hostile. A decoder states how many bytes a
// message may take, and what does not fit its framing ends the stream: the error
// goes to HandleError of the handlers after it, and then the channel is closed.
package codec
