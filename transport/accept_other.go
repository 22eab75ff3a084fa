//go:build !linux

package transport

// These are for Linux: elsewhere there are no listeners yet.
var connectionErrors, descriptorErrors, brokenErrors []error
