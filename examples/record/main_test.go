package main

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/runnel-io/runnel/examples/internal/process"
)

func TestMain(m *testing.M) { process.Main(m) }

func start(t *testing.T, dir string, args ...string) *process.Server {
	t.Helper()
	return process.Start(t, append([]string{"-addr", "127.0.0.1:0", "-dir", dir}, args...)...)
}

func random(n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(n)})
	r.Read(b)
	return b
}

// upload sends content on a connection of its own and returns the answer.
func upload(t *testing.T, s *process.Server, content []byte) string {
	t.Helper()
	c := s.Dial()
	defer c.Close()
	var wg sync.WaitGroup
	wg.Go(func() {
		// A server that has answered before reads on, so that neither fails.
		if _, err := c.Write(content); err != nil {
			t.Error(err)
		}
		_ = c.(interface{ CloseWrite() error }).CloseWrite() // fails if all is over by now
	})
	answer, err := io.ReadAll(c)
	wg.Wait()
	if err != nil {
		t.Errorf("answer: %q, %v", answer, err)
	}
	return string(answer)
}

// waitFile waits until a file has so many bytes.
func waitFile(t *testing.T, s *process.Server, name string, size int64) {
	t.Helper()
	for end := time.Now().Add(process.Patience); ; {
		if info, err := os.Stat(name); err == nil && info.Size() >= size {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s has not got %d bytes", name, size)
		}
		upload(t, s, nil) // a round trip
	}
}

// wantFiles checks which files there are.
func wantFiles(t *testing.T, dir string, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("files: got %v, want %v", got, want)
	}
}

func wantFile(t *testing.T, dir, name string, want []byte) {
	t.Helper()
	got, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s: got %d bytes, %v; want %d, or they differ", name, len(got), err, len(want))
	}
}

func TestRecords(t *testing.T) {
	for _, args := range []string{"", "-sync close", "-loops 1"} {
		t.Run(args, func(t *testing.T) {
			dir := t.TempDir()
			s := start(t, dir, strings.Fields(args)...)
			var names []string
			for i, size := range []int{0, 1, 65536, 65537, 5_000_000} {
				content := random(size)
				if got, want := upload(t, s, content), fmt.Sprintf("OK: %d\n", size); got != want {
					t.Errorf("got %q, want %q", got, want)
				}
				names = append(names, fmt.Sprintf("conn-%d.bin", i+1))
				wantFile(t, dir, names[i], content)
				wantFiles(t, dir, names...)
			}
			s.Stop()
		})
	}
}

func TestUnixSocket(t *testing.T) {
	dir := t.TempDir()
	sock := filepath.Join(t.TempDir(), "s")
	s := process.Start(t, "-network", "unix", "-addr", sock, "-dir", dir)
	content := random(300_000)
	if got := upload(t, s, content); got != "OK: 300000\n" {
		t.Errorf("got %q", got)
	}
	wantFile(t, dir, "conn-1.bin", content)
	s.Stop()
}

// Clients at the same time get a file each, and nothing is left open.
func TestManyClients(t *testing.T) {
	dir := t.TempDir()
	s := start(t, dir)
	upload(t, s, nil)
	before := s.Descriptors()
	var wg sync.WaitGroup
	const clients = 32
	for i := range clients {
		wg.Go(func() {
			size := 100_000 + i
			if got, want := upload(t, s, random(size)), fmt.Sprintf("OK: %d\n", size); got != want {
				t.Errorf("got %q, want %q", got, want)
			}
		})
	}
	wg.Wait()
	var sizes []int64
	for i := range clients {
		info, err := os.Stat(filepath.Join(dir, fmt.Sprintf("conn-%d.bin", i+2)))
		if err != nil {
			t.Fatal(err)
		}
		sizes = append(sizes, info.Size())
	}
	slices.Sort(sizes)
	for i, n := range sizes {
		if n != int64(100_000+i) {
			t.Errorf("size %d: got %d, want %d", i, n, 100_000+i)
		}
	}
	s.WaitDescriptors(before, func() { upload(t, s, nil) })
	s.Stop()
}

// A file has its name when it is complete, and the numbers go on in the next run.
func TestPart(t *testing.T) {
	dir := t.TempDir()
	s := start(t, dir, "-loops", "1") // so that they are numbered in the order of the dials
	upload(t, s, []byte("first"))
	c := s.Dial()
	if _, err := io.WriteString(c, "some"); err != nil {
		t.Fatal(err)
	}
	waitFile(t, s, filepath.Join(dir, "conn-2.part"), 4)
	if _, err := os.Stat(filepath.Join(dir, "conn-2.bin")); err == nil {
		t.Error("conn-2.bin is there before the end")
	}
	io.WriteString(c, " more")
	process.CloseWrite(t, c)
	if answer, err := io.ReadAll(c); err != nil || string(answer) != "OK: 9\n" {
		t.Errorf("got %q, %v", answer, err)
	}
	wantFile(t, dir, "conn-2.bin", []byte("some more"))
	s.Stop()

	last, err := lastNumber(dir)
	if err != nil {
		t.Fatal(err)
	}
	s = start(t, dir)
	upload(t, s, []byte("again"))
	wantFile(t, dir, fmt.Sprintf("conn-%d.bin", last+1), []byte("again"))
	wantFile(t, dir, "conn-1.bin", []byte("first"))
	s.Stop()
}

// A client that resets in the middle leaves the part file with what had come, and a client
// beside it does not notice.
func TestReset(t *testing.T) {
	dir := t.TempDir()
	s := start(t, dir, "-loops", "1") // so that they are numbered in the order of the dials
	beside := s.Dial()
	io.WriteString(beside, "beside")
	waitFile(t, s, filepath.Join(dir, "conn-1.part"), 6)
	before := parts(t, dir)
	c := s.Dial()
	content := random(100_000)
	if _, err := c.Write(content); err != nil {
		t.Fatal(err)
	}
	part := ""
	for end := time.Now().Add(process.Patience); part == ""; upload(t, s, nil) {
		for _, name := range parts(t, dir) {
			if info, err := os.Stat(name); err == nil && info.Size() == int64(len(content)) && !slices.Contains(before, name) {
				part = name
			}
		}
		if time.Now().After(end) {
			t.Fatal("what was sent is not in a file")
		}
	}
	c.(*net.TCPConn).SetLinger(0)
	c.Close()
	if line := s.WaitLog("not recorded"); !strings.Contains(line, filepath.Base(part)) || !strings.Contains(line, "reset") {
		t.Errorf("log: got %q", line)
	}
	if got, want := upload(t, s, content), "OK: 100000\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	wantFile(t, dir, filepath.Base(part), content)
	if got := parts(t, dir); len(got) != 2 {
		t.Errorf("part files: got %v, want those of two clients", got)
	}
	process.CloseWrite(t, beside)
	if answer, err := io.ReadAll(beside); err != nil || string(answer) != "OK: 6\n" {
		t.Errorf("beside: got %q, %v", answer, err)
	}
	s.Stop()
}

// parts returns the files that are not complete.
func parts(t *testing.T, dir string) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*.part"))
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// Where no more can be written the client is told why, the part file stays and the server
// goes on. A client beside it does not notice.
func TestFull(t *testing.T) {
	full := func(t *testing.T, dir, reason string, s *process.Server) {
		beside := s.Dial()
		io.WriteString(beside, "beside")
		waitFile(t, s, filepath.Join(dir, "conn-1.part"), 6)
		content := random(3_000_000)
		if got, want := upload(t, s, content), "ERR: "+reason+"\n"; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
		found := false
		for _, name := range parts(t, dir) {
			got, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			found = found || len(got) > 50_000 && bytes.HasPrefix(content, got)
		}
		if !found {
			t.Errorf("no part file with a beginning of what was sent in %v", parts(t, dir))
		}
		process.CloseWrite(t, beside)
		if answer, err := io.ReadAll(beside); err != nil || string(answer) != "OK: 6\n" {
			t.Errorf("beside: got %q, %v", answer, err)
		}
		s.WaitLog("not recorded")
		s.Stop()
	}
	t.Run("limit", func(t *testing.T) {
		dir := t.TempDir()
		full(t, dir, syscall.EFBIG.Error(), process.StartUlimit(t, "-f 200", "-addr", "127.0.0.1:0", "-loops", "1", "-dir", dir))
	})
	t.Run("disk", func(t *testing.T) {
		dir := t.TempDir()
		smallDisk(t, dir)
		full(t, dir, syscall.ENOSPC.Error(), start(t, dir, "-loops", "1"))
	})
}

// A directory that is gone is told to the client.
func TestDirectoryGone(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "sub")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	s := start(t, dir)
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	if got, want := upload(t, s, nil), "ERR: no such file or directory\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	s.Stop()
}

// What is under way when the server is told to end may end.
func TestDrain(t *testing.T) {
	dir := t.TempDir()
	s := start(t, dir, "-drain", "1m", "-loops", "1")
	c := s.Dial()
	if _, err := io.WriteString(c, "before"); err != nil {
		t.Fatal(err)
	}
	waitFile(t, s, filepath.Join(dir, "conn-1.part"), 6)
	s.Signal(syscall.SIGTERM)
	s.WaitLog("draining")
	io.WriteString(c, " after")
	process.CloseWrite(t, c)
	if answer, err := io.ReadAll(c); err != nil || string(answer) != "OK: 12\n" {
		t.Errorf("got %q, %v", answer, err)
	}
	s.Ended()
	wantFile(t, dir, "conn-1.bin", []byte("before after"))
}

func TestBadFlags(t *testing.T) {
	for args, want := range map[string]string{
		"-sync often":              "-sync often is neither none nor close",
		"-dir /nonexistent/record": "/nonexistent/record",
	} {
		stdout, stderr, status := process.Run(t, strings.Fields(args)...)
		first, _, _ := strings.Cut(stderr, "\n")
		if status != 2 || stdout != "" || !strings.HasPrefix(first, "record: ") || !strings.Contains(first, want) {
			t.Errorf("%s: got status %d, stdout %q, stderr %q; want status 2 and a line with %q", args, status, stdout, stderr, want)
		}
	}
}
