package main

import "net"

// drain listens for what mirrors send, and drops it.
func drain() (net.Listener, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				// Not by io.Copy, which takes small steps.
				for buf := make([]byte, 256<<10); err == nil; _, err = c.Read(buf) {
				}
			}()
		}
	}()
	return l, nil
}
