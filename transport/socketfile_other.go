//go:build !linux

package transport

import (
	"errors"
	"net"
)

func bindAndListen(int, net.Addr, int) (*socketFile, error) { return nil, errors.ErrUnsupported }
