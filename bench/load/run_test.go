//go:build linux

package main

import (
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/runnel-io/runnel/bench/internal/proc"
)

// echo serves until the test ends; spoil may change what goes back, and close by returning nil.
func echo(t *testing.T, spoil func(total int, p []byte) []byte) proc.Target {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				if spoil == nil {
					io.Copy(c, c)
					return
				}
				buf, total := make([]byte, 4096), 0
				for {
					n, err := c.Read(buf)
					if err != nil {
						return
					}
					out := spoil(total, buf[:n])
					if out == nil {
						return
					}
					total += n
					if _, err := c.Write(out); err != nil {
						return
					}
				}
			}()
		}
	}()
	target, err := proc.ParseTarget(ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return target
}

func TestRun(t *testing.T) {
	base := config{conns: 4, size: 100, depth: 3, messages: 2000, warm: 200, load: 1, timeout: time.Second}
	tests := []struct {
		name    string
		change  func(*config)
		spoil   func(total int, p []byte) []byte
		wantErr string
	}{
		{name: "echo"},
		{name: "framed", change: func(c *config) { c.framed = true }},
		{name: "one byte, depth 1", change: func(c *config) { c.size, c.depth = 1, 1 }},
		{name: "large", change: func(c *config) { c.size, c.depth, c.messages, c.warm = 300_000, 4, 100, 8 }},
		{name: "by the clock", change: func(c *config) { c.rate = 20_000 }},
		{name: "half load", change: func(c *config) { c.load, c.warm = 0.5, 2000 }},
		{name: "wrong byte", wantErr: "byte 5000: got", spoil: func(total int, p []byte) []byte {
			if i := 5000 - total; i >= 0 && i < len(p) {
				p[i] ^= 0x20
			}
			return p
		}},
		{name: "lost byte", wantErr: "got", spoil: func(total int, p []byte) []byte {
			if total == 0 {
				return p[1:]
			}
			return p
		}},
		{name: "doubled", wantErr: "came back of", spoil: func(_ int, p []byte) []byte { return append(p, p...) }},
		{name: "closed", wantErr: "closed by the server", spoil: func(total int, p []byte) []byte {
			if total > 1000 {
				return nil
			}
			return p
		}},
		{name: "silent", wantErr: "nothing came back for", spoil: func(int, []byte) []byte { return []byte{} },
			change: func(c *config) { c.timeout = 50 * time.Millisecond }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cfg := base
			if tt.change != nil {
				tt.change(&cfg)
			}
			cfg.target = echo(t, tt.spoil)
			res, err := run(cfg)
			if tt.wantErr != "" {
				if err == nil || !strings.Contains(err.Error(), tt.wantErr) {
					t.Fatalf("got %v, want an error with %q", err, tt.wantErr)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if res.Messages < cfg.messages {
				t.Fatalf("got %d messages, want at least %d", res.Messages, cfg.messages)
			}
		})
	}
}
