package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/runnel-io/runnel/examples/internal/process"
)

// A mirror's file on a disk that takes nothing is given up, and holds up neither its relay
// nor another one on the same loop. What it is said to have got is in the file afterwards.
func TestMirrorSlowDisk(t *testing.T) {
	for _, mode := range []string{"splice", "copy"} {
		t.Run(mode, func(t *testing.T) {
			disk := process.NewSlowDisk(t)
			name := filepath.Join(disk.Dir, "mirror")
			target := listener(t)
			s := process.Start(t, "-addr", "127.0.0.1:0", "-to", target.Addr().String(), "-mode", mode, "-mirror", name, "-loops", "1")
			other := s.Dial()
			otherServer := accept(t, target)
			client := s.Dial()
			server := accept(t, target)
			up := random(32<<20, 11)
			if _, err := client.Write(up[:1000]); err != nil {
				t.Fatal(err)
			}
			waitSize(t, s, name, 1000)

			disk.Freeze()
			go send(t, client, up[1000:])
			wantAll(t, "server", server, up)
			s.WaitAsleep(map[string]int{"splice": process.CallSplice, "copy": process.CallWrite}[mode], 1)
			for range 10 {
				for _, way := range [][2]io.ReadWriter{{other, otherServer}, {otherServer, other}} {
					got := make([]byte, 4)
					if _, err := io.WriteString(way[0], "ping"); err != nil {
						t.Fatal(err)
					}
					if _, err := io.ReadFull(way[1], got); err != nil || string(got) != "ping" {
						t.Fatalf("another relay: got %q, %v", got, err)
					}
				}
			}
			var moved, down, mirrored, dropped int // down is counted when it has left: perhaps not all yet
			s.Signal(syscall.SIGUSR1)
			if _, err := fmt.Sscanf(s.Line(), "relayed up=%d down=%d mirrored=%d dropped=%d", &moved, &down, &mirrored, &dropped); err != nil ||
				moved != len(up)+40 || mirrored+dropped != moved || dropped == 0 {
				t.Errorf("got up=%d mirrored=%d dropped=%d, %v", moved, mirrored, dropped, err)
			}

			disk.Thaw()
			if line := s.WaitLog("mirror detached"); !strings.Contains(line, "does not keep up") {
				t.Errorf("log: got %q", line)
			}
			server.Close()
			client.Close()
			otherServer.Close()
			other.Close()
			s.Stop()
			got, err := os.ReadFile(name)
			if err != nil || len(got) != mirrored {
				t.Errorf("the file has %d bytes, %v; want %d", len(got), err, mirrored)
			}
			// The pings come as whole pieces.
			if got = bytes.ReplaceAll(got, []byte("ping"), nil); len(got) != mirrored-40 || !bytes.HasPrefix(up, got) {
				t.Errorf("the file has %d bytes without those of the other relay, want the first %d that were sent", len(got), mirrored-40)
			}
		})
	}
}
