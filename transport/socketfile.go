package transport

import (
	"net"
	"os"
)

// socketFile is the file of a Unix socket that was listened on. It would keep the next
// server from the address, so whoever made it removes it. nil stands for none.
type socketFile struct {
	path string
	info os.FileInfo // as it was made
}

// pathOf returns the path of a Unix socket's file. Abstract names have none, nor has
// what is bound to nothing.
func pathOf(addr net.Addr) (string, bool) {
	a, ok := addr.(*net.UnixAddr)
	if !ok || a.Name == "" || a.Name[0] == '@' || a.Name[0] == 0 {
		return "", false
	}
	return a.Name, true
}

// socketFileOf returns the file of a socket that has just been bound to addr.
func socketFileOf(addr net.Addr) *socketFile {
	path, ok := pathOf(addr)
	if !ok {
		return nil
	}
	info, err := os.Lstat(path)
	if err != nil {
		return nil // it is gone already
	}
	return &socketFile{path, info}
}

// remove removes the file, unless another one has taken its place: a new server may
// have moved in. The number of a file is used again soon, its time is not.
func (f *socketFile) remove() {
	if f == nil {
		return
	}
	info, err := os.Lstat(f.path)
	if err == nil && os.SameFile(info, f.info) && info.ModTime().Equal(f.info.ModTime()) {
		_ = os.Remove(f.path)
	}
}
