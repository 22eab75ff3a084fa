package pipeline

// HasExtras reports whether ch has anything that not all channels need.
func HasExtras(ch Channel) bool { return ch.base().more.Load() != nil }
