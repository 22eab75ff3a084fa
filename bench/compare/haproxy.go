//go:build linux

package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"

	"github.com/runnel-io/runnel/bench/internal/proc"
)

// haproxyConfig has HAProxy relay by splice where it thinks that this pays.
const haproxyConfig = `global
  nbthread 1
defaults
  mode tcp
  option splice-auto
  timeout connect 5s
  timeout client 1m
  timeout server 1m
listen relay
  bind %s
  server target %s
`

// startHAProxy starts HAProxy in front of a server.
func startHAProxy(cpu int, bin string, behind *proc.Server) (*proc.Server, error) {
	if behind == nil {
		return nil, errors.New("haproxy relays; this load has nothing to relay to")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0") // it cannot be asked which port it has picked
	if err != nil {
		return nil, err
	}
	addr := l.Addr().String()
	l.Close()
	f, err := os.CreateTemp("", "runnel-haproxy-")
	if err != nil {
		return nil, err
	}
	defer os.Remove(f.Name())
	_, err = fmt.Fprintf(f, haproxyConfig, addr, strings.TrimPrefix(behind.Addr, "tcp://"))
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return nil, err
	}
	return proc.StartAt(cpu, addr, bin, "-db", "-q", "-f", f.Name())
}
