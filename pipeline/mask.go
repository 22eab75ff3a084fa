package pipeline

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

	// The notifications once more, for handlers that hold them: their bits
	// shifted by holdShift.
	holdShift = 17

	maskNotifications = maskRegistered | maskActive | maskReadComplete | maskWritability | maskInactive | maskUnregistered
)

// hold returns the interceptor's bit of notification m.
func (m mask) hold() mask { return m << holdShift }

// maskOf finds which interfaces h implements.
func maskOf(h any) mask {
	var m mask
	assert[ReadHandler](h, maskRead, &m)
	assert[WriteHandler](h, maskWrite, &m)
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
	return m
}

// assert sets bit in m if h implements I.
func assert[I any](h any, bit mask, m *mask) {
	if _, ok := h.(I); ok {
		*m |= bit
	}
}

// twice reports whether some notification is taken in both forms.
func (m mask) twice() bool { return m&maskNotifications&(m>>holdShift) != 0 }
