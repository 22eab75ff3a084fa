package transport

import (
	"bytes"
	"context"
	"io"
	"net"
	"testing"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/pipeline"
)

func TestEchoSmoke(t *testing.T) {
	srv := &Server{Init: func(ch pipeline.Channel) error {
		return ch.Pipeline().Add(pipeline.On(func(c *pipeline.Context, b *buffer.Buf) error { c.Write(b); return nil }))
	}}
	l, err := srv.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nc, err := net.Dial("tcp", l.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	want := bytes.Repeat([]byte("0123456789abcdef"), 100000)
	go func() { nc.Write(want); nc.(*net.TCPConn).CloseWrite() }()
	got, err := io.ReadAll(nc)
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("got %d bytes, %v", len(got), err)
	}
	nc.Close()
	if err := srv.Shutdown(context.Background()); err != nil {
		t.Fatal(err)
	}
}
