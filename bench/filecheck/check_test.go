//go:build linux

package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// serve answers requests from root as a file-region server does; spoil may change
// what one answer becomes.
func serve(t *testing.T, root string, spoil func(line string, head string, body []byte) (string, []byte)) string {
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
				for in := bufio.NewScanner(c); in.Scan(); {
					line := in.Text()
					var name string
					off, n := int64(0), int64(-1)
					fmt.Sscanf(strings.Replace(line, "%66", "f", 1), "%s %d %d", &name, &off, &n)
					data, err := os.ReadFile(filepath.Join(root, name))
					if err != nil {
						fmt.Fprintf(c, "ERR: %v\r\n", err)
						continue
					}
					if n < 0 {
						n = int64(len(data)) - off
					}
					body := data[off : off+n]
					head := fmt.Sprintf("OK: %d\r\n", n)
					if spoil != nil {
						head, body = spoil(line, head, body)
					}
					io.WriteString(c, head)
					if _, err := c.Write(body); err != nil {
						return
					}
				}
			}()
		}
	}()
	return ln.Addr().String()
}

func TestCheck(t *testing.T) {
	cfg := config{big: 2 << 20, ranges: 60, conns: 4, depth: 16, seed: 1, timeout: 5 * time.Second}
	root := t.TempDir()
	files, err := makeFiles(root, cfg.big)
	if err != nil {
		t.Fatal(err)
	}
	requests, err := plan(cfg, files)
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name    string
		spoil   func(line, head string, body []byte) (string, []byte)
		wantErr string
	}{
		{name: "right"},
		{name: "one bit", wantErr: "SHA-256", spoil: func(line, head string, body []byte) (string, []byte) {
			if line == "big.bin" {
				body[len(body)/2] ^= 1
			}
			return head, body
		}},
		{name: "range shortened", wantErr: "want", spoil: func(line, head string, body []byte) (string, []byte) {
			if strings.HasPrefix(line, "f4095.bin") && len(body) > 1 {
				return fmt.Sprintf("OK: %d\r\n", len(body)-1), body[1:]
			}
			return head, body
		}},
		{name: "refused", wantErr: "no such file", spoil: func(line, head string, body []byte) (string, []byte) {
			if line == "f1.bin" {
				return "ERR: no such file\r\n", nil
			}
			return head, body
		}},
		{name: "a byte too many", wantErr: "want", spoil: func(line, head string, body []byte) (string, []byte) {
			return head, append(body[:len(body):len(body)], 'x')
		}},
		{name: "bare line feed", wantErr: "want", spoil: func(line, head string, body []byte) (string, []byte) {
			return strings.Replace(head, "\r", "", 1), body
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			n, err := check(cfg, serve(t, root, tt.spoil), requests)
			if tt.wantErr == "" {
				var want int64
				for _, r := range requests {
					want += r.n
				}
				if err != nil || n != want {
					t.Fatalf("got %d B, %v; want %d, nil", n, err, want)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.wantErr) {
				t.Fatalf("got %v, want an error with %q", err, tt.wantErr)
			}
		})
	}
}
