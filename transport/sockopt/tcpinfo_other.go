//go:build !linux

package sockopt

import "github.com/runnel-io/runnel/internal/sys"

func tcpInfo(*sys.TCPInfo) TCPInfo { return TCPInfo{} }
