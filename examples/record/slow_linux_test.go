package main

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/runnel-io/runnel/examples/internal/process"
)

// sameHash reports whether a file has the content.
func sameHash(t *testing.T, name string, want []byte) {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Error(err)
		return
	}
	defer f.Close()
	h := sha256.New()
	n, err := io.Copy(h, f)
	if sum := sha256.Sum256(want); err != nil || !bytes.Equal(h.Sum(nil), sum[:]) {
		t.Errorf("%s: got %d bytes, %v, and another hash than that of the %d sent", name, n, err, len(want))
	}
}

// point has a link lead to dir, at once.
func point(t *testing.T, link, dir string) {
	t.Helper()
	if err := os.Symlink(dir, link+".new"); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(link+".new", link); err != nil {
		t.Fatal(err)
	}
}

func answerOf(t *testing.T, who string, c net.Conn, want string) {
	t.Helper()
	if answer, err := io.ReadAll(c); err != nil || string(answer) != want {
		t.Errorf("%s: got %q, %v; want %q", who, answer, err, want)
	}
}

// A disk that takes nothing for a while holds up those who write to it, and nobody else:
// on the one loop of the server others come, and are answered if their files are on
// another disk. Afterwards all goes on as if nothing had been.
func TestSlowDisk(t *testing.T) {
	disk := process.NewSlowDisk(t)
	elsewhere := t.TempDir()
	dir := filepath.Join(t.TempDir(), "dir")
	point(t, dir, disk.Dir)
	s := start(t, dir, "-loops", "1")

	// Two are in the middle of their files.
	content := random(64 << 20) // more than sockets hold
	long := s.Dial()
	if _, err := long.Write(content[:1]); err != nil {
		t.Fatal(err)
	}
	waitFile(t, s, filepath.Join(disk.Dir, "conn-1.part"), 1)
	resets := s.Dial()
	if _, err := io.WriteString(resets, "before"); err != nil {
		t.Fatal(err)
	}
	part := ""
	for end := time.Now().Add(process.Patience); part == ""; upload(t, s, nil) {
		for _, name := range parts(t, disk.Dir) {
			if info, err := os.Stat(name); err == nil && info.Size() == 6 {
				part = name
			}
		}
		if time.Now().After(end) {
			t.Fatal("what was sent is not in a file")
		}
	}

	disk.Freeze()
	sent := make(chan error, 1)
	go func() {
		_, err := long.Write(content[1:])
		sent <- err
	}()
	s.WaitAsleep(process.CallSplice, 1)
	if _, err := io.WriteString(resets, " after"); err != nil {
		t.Fatal(err)
	}
	s.WaitAsleep(process.CallSplice, 2)
	resets.(*net.TCPConn).SetLinger(0)
	resets.Close()

	// Others whose files are on another disk do not notice, nor does it matter how many
	// wait with the disk.
	point(t, dir, elsewhere)
	other := random(1_000_000)
	for range 3 {
		if got, want := upload(t, s, other), "OK: 1000000\n"; got != want {
			t.Errorf("elsewhere: got %q, want %q", got, want)
		}
	}
	names, err := filepath.Glob(filepath.Join(elsewhere, "conn-*.bin"))
	if err != nil || len(names) != 3 {
		t.Errorf("files elsewhere: got %v, %v; want 3", names, err)
	}
	for _, name := range names {
		sameHash(t, name, other)
	}

	// The disk is still the one for those who come now, who wait for their files.
	point(t, dir, disk.Dir)
	late := s.Dial()
	if _, err := io.WriteString(late, "late"); err != nil {
		t.Fatal(err)
	}
	process.CloseWrite(t, late)
	s.WaitAsleep(process.CallOpen, 1)
	select {
	case err := <-sent:
		t.Errorf("all has been taken (%v) while the disk took nothing", err)
	default: // the sender is held up
	}

	disk.Thaw()
	if err := <-sent; err != nil {
		t.Error("sending:", err)
	}
	process.CloseWrite(t, long)
	answerOf(t, "long", long, fmt.Sprintf("OK: %d\n", len(content)))
	sameHash(t, filepath.Join(disk.Dir, "conn-1.bin"), content)
	answerOf(t, "late", late, "OK: 4\n")
	if line := s.WaitLog("not recorded"); !strings.Contains(line, filepath.Base(part)) || !strings.Contains(line, "reset") {
		t.Errorf("log: got %q", line)
	}
	if got := parts(t, disk.Dir); len(got) != 1 || got[0] != part {
		t.Errorf("part files: got %v, want %v", got, part)
	}
	if got, err := os.ReadFile(part); err != nil || !strings.HasPrefix("before after", string(got)) || len(got) < 6 {
		t.Errorf("%s: got %q, %v", part, got, err)
	}
	s.Stop()
}

// A server that is told to end while its disk takes nothing lets its clients go when the
// drain is over. The process itself the kernel keeps until the disk answers; then it ends
// well, and what could not be finished stays a part.
func TestSlowDiskDrain(t *testing.T) {
	disk := process.NewSlowDisk(t)
	s := start(t, disk.Dir, "-loops", "1", "-drain", "100ms")
	writing := s.Dial()
	if _, err := io.WriteString(writing, "before"); err != nil {
		t.Fatal(err)
	}
	waitFile(t, s, filepath.Join(disk.Dir, "conn-1.part"), 6)
	disk.Freeze()
	if _, err := io.WriteString(writing, " after"); err != nil {
		t.Fatal(err)
	}
	s.WaitAsleep(process.CallSplice, 1)
	opening := s.Dial()
	if _, err := io.WriteString(opening, "opening"); err != nil {
		t.Fatal(err)
	}
	s.WaitAsleep(process.CallOpen, 1)

	s.Signal(syscall.SIGTERM)
	for who, c := range map[string]net.Conn{"writing": writing, "opening": opening} {
		if n, err := c.Read(make([]byte, 1)); n > 0 || !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%s: got %d bytes, %v; want a reset", who, n, err)
		}
	}
	s.WaitLog("drain incomplete")

	disk.Thaw()
	s.Ended()
	var recorded string
	for _, name := range parts(t, disk.Dir) {
		got, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		recorded += fmt.Sprintf("%q ", got)
	}
	if recorded != `"before after" "" ` && recorded != `"" "before after" ` {
		t.Errorf("parts: got %s", recorded)
	}
}
