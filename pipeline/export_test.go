package pipeline

// WaitingSenders returns how many are in the line of Send.
func WaitingSenders(ch Channel) int {
	x := ch.base().more.Load()
	if x == nil {
		return 0
	}
	x.sends.mu.Lock()
	defer x.sends.mu.Unlock()
	return x.sends.n
}

// HasExtras reports whether ch has anything that not all channels need.
func HasExtras(ch Channel) bool { return ch.base().more.Load() != nil }

// GroupsOf returns how many groups ch is in.
func GroupsOf(ch Channel) int {
	x := ch.base().more.Load()
	if x == nil {
		return 0
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	return len(x.groups)
}
