//go:build !linux

package transport

import (
	"errors"
	"net"
)

func bindSocket(int, net.Addr, func() error) (*socketFile, error) {
	return nil, errors.ErrUnsupported
}
