package runnel_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/codec"
	"github.com/runnel-io/runnel/codec/codectest"
	"github.com/runnel-io/runnel/pipeline"
	"github.com/runnel-io/runnel/pipeline/embedded"
	"github.com/runnel-io/runnel/transport"
)

// The code of docs/guide.md, in its order. TestGuide compares the two.

func discard(c *pipeline.Context, b *buffer.Buf) error {
	b.Release() // done with it
	return nil
}

func serveDiscard(ctx context.Context, addr string) error {
	srv := transport.Server{Init: func(ch pipeline.Channel) error {
		return ch.Pipeline().Add(pipeline.On(discard))
	}}
	return srv.ListenAndServe(ctx, "tcp", addr) // returns when ctx has ended and the drain is over
}

func Example_guideDiscard() {
	ctx, stop := context.WithCancel(context.Background())
	addr := freePort()
	go func() {
		defer stop()
		conn := dial(addr)
		defer conn.Close()
		_, _ = io.WriteString(conn, "anything")
	}()
	fmt.Println(serveDiscard(ctx, addr))
	// Output: <nil>
}

func show(c *pipeline.Context, b *buffer.Buf) error {
	defer b.Release()
	fmt.Printf("%q\n", b.ReadString(b.Len()))
	return nil
}

func Example_guideShow() {
	visit(&transport.Server{Init: handlers(pipeline.On(show))}, func(conn net.Conn) {
		_, _ = io.WriteString(conn, "hello")
	})
	// Output: "hello"
}

func echo(c *pipeline.Context, b *buffer.Buf) error {
	c.Write(b) // hands b over: whoever sends it releases it
	return nil
}

func Example_guideEcho() {
	visit(&transport.Server{Init: handlers(pipeline.On(echo))}, func(conn net.Conn) {
		_, _ = io.WriteString(conn, "hello")
		answer := make([]byte, 5)
		_, _ = io.ReadFull(conn, answer)
		fmt.Println(string(answer))
	})
	// Output: hello
}

const since1900 = 2208988800 // the seconds from 1900 to 1970

func sendTime(c *pipeline.Context) error {
	b := c.Alloc().Alloc(4)
	b.WriteUint32(uint32(time.Now().Unix() + since1900))
	c.Write(b)
	c.Close() // once what was written has left
	return nil
}

func askTime(ctx context.Context, addr string) (t time.Time, err error) {
	got := make(chan time.Time, 1)
	d := transport.Dialer{Init: func(ch pipeline.Channel) error {
		return ch.Pipeline().Add(pipeline.On(func(c *pipeline.Context, b *buffer.Buf) error {
			defer b.Release()
			got <- time.Unix(int64(b.ReadUint32())-since1900, 0)
			return nil
		}))
	}}
	ch, err := d.Dial(ctx, "tcp", addr)
	if err != nil {
		return t, err
	}
	<-ch.Context().Done() // the server closes
	select {
	case t = <-got:
		return t, nil
	default:
		return t, ch.CloseReason()
	}
}

func Example_guideTime() {
	srv := &transport.Server{Init: handlers(pipeline.OnActive(sendTime))}
	l, err := srv.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Println(err)
		return
	}
	t, err := askTime(context.Background(), l.LocalAddr().String())
	fmt.Println(time.Since(t) < time.Minute, err)
	_ = srv.Shutdown(context.Background())
	// Output: true <nil>
}

// collector keeps what has come until it is enough.
type collector struct {
	got chan<- time.Time
	in  *buffer.Buf
}

func (h *collector) HandleRead(c *pipeline.Context, msg any) error {
	b, ok := msg.(*buffer.Buf)
	if !ok {
		c.FireRead(msg)
		return nil
	}
	if h.in == nil {
		h.in = b
	} else {
		h.in.Append(b) // without copying; takes b over
	}
	if n, ok := h.in.TryReadUint32(); ok {
		h.got <- time.Unix(int64(n)-since1900, 0)
		c.Close() // and read no more
	}
	return nil
}

// HandleRemoved is called once, also at the end of the channel.
func (h *collector) HandleRemoved(*pipeline.Context) {
	if h.in != nil {
		h.in.Release()
	}
}

func TestGuide_Collector(t *testing.T) {
	got := make(chan time.Time, 1)
	ch := embedded.NewTest(t, embedded.Config{}, &collector{got: got})
	ch.WriteInbound("passes")
	embedded.Inbound[string](t, ch)
	for _, b := range []byte{0x83, 0xaa, 0x7e, 0x81} {
		if len(got) != 0 {
			t.Error("before the last byte: got a time")
		}
		ch.WriteInbound(buffer.FromBytes([]byte{b}))
	}
	if len(got) != 1 || (<-got).Unix() != 1 {
		t.Error("got another time than 1")
	}
	if ch.Open() {
		t.Error("it is still open")
	}
}

type fourBytes struct{}

func (fourBytes) Decode(c *pipeline.Context, in *buffer.Buf) (any, error) {
	b, ok := in.TryReadSlice(4)
	if !ok {
		return nil, nil // not yet
	}
	return b, nil
}

func initTimeClient(ch pipeline.Channel, got chan<- time.Time) error {
	return ch.Pipeline().Add(
		codec.Decoding{New: func() codec.Decoder { return fourBytes{} }, Max: 4},
		pipeline.On(func(c *pipeline.Context, b *buffer.Buf) error {
			defer b.Release()
			got <- time.Unix(int64(b.ReadUint32())-since1900, 0) // there are always four
			return nil
		}),
	)
}

func TestGuide_Decoder(t *testing.T) {
	got := make(chan time.Time, 1)
	ch := embedded.NewTest(t, embedded.Config{})
	if err := initTimeClient(ch, got); err != nil {
		t.Fatal(err)
	}
	for _, b := range []byte{0x83, 0xaa, 0x7e, 0x81} {
		ch.WriteInbound(buffer.FromBytes([]byte{b}))
	}
	if len(got) != 1 || (<-got).Unix() != 1 {
		t.Error("got another time than 1")
	}
}

// Moment is what the protocol is about: seconds since 1900.
type Moment uint32

func (m Moment) String() string {
	return time.Unix(int64(m)-since1900, 0).UTC().Format(time.DateTime)
}

type momentDecoder struct{}

func (momentDecoder) Decode(c *pipeline.Context, in *buffer.Buf) (any, error) {
	n, ok := in.TryReadUint32()
	if !ok {
		return nil, nil
	}
	return Moment(n), nil
}

func encodeMoment(c *pipeline.Context, m Moment, out *buffer.Buf) error {
	out.WriteUint32(uint32(m))
	return nil
}

// moments is the protocol; client and server add it alike.
func moments(ch pipeline.Channel) error {
	return ch.Pipeline().Add(
		codec.Decoding{New: func() codec.Decoder { return momentDecoder{} }, Max: 4},
		codec.Encode(encodeMoment),
	)
}

func initServer(ch pipeline.Channel) error {
	if err := moments(ch); err != nil {
		return err
	}
	return ch.Pipeline().Add(pipeline.OnActive(func(c *pipeline.Context) error {
		c.Write(Moment(time.Now().Unix() + since1900))
		c.Close()
		return nil
	}))
}

func initClient(ch pipeline.Channel) error {
	if err := moments(ch); err != nil {
		return err
	}
	return ch.Pipeline().Add(pipeline.On(func(c *pipeline.Context, m Moment) error {
		fmt.Println("it is", m)
		return nil
	}))
}

func TestMomentDecoder(t *testing.T) {
	codectest.Verify(t, func() any {
		return codec.Decoding{New: func() codec.Decoder { return momentDecoder{} }, Max: 4}
	}, "\x83\xaa\x7e\x81\x83\xaa\x7e\x82\x00", []string{"1970-01-01 00:00:01", "1970-01-01 00:00:02"}, nil)
}

func TestServer(t *testing.T) {
	ch := embedded.NewTest(t, embedded.Config{})
	if err := moments(ch); err != nil {
		t.Fatal(err)
	}
	ch.WriteOutbound(Moment(since1900))
	b := embedded.Outbound[*buffer.Buf](t, ch)
	defer b.Release()
	if got := Moment(b.ReadUint32()).String(); got != "1970-01-01 00:00:00" {
		t.Errorf("got %s, want the beginning of 1970", got)
	}
}

func TestGuide_Moments(t *testing.T) {
	srv := &transport.Server{Init: initServer}
	visit(srv, func(conn net.Conn) {
		if b, err := io.ReadAll(conn); len(b) != 4 || err != nil {
			t.Errorf("got %d bytes, %v; want 4", len(b), err)
		}
	})
	ch := embedded.NewTest(t, embedded.Config{})
	if err := initClient(ch); err != nil {
		t.Fatal(err)
	}
}

// ask sends a question and says no more; answers come until the other side ends.
func ask(ctx context.Context, d *transport.Dialer, addr, question string) error {
	ch, err := d.Dial(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	defer ch.Close()
	if err := ch.Send(ctx, question); err != nil { // it has left, or this is why not
		return err
	}
	ch.CloseWrite()
	return ch.Closed().Wait(ctx) // the descriptor is gone
}

func Example_guideEnd() {
	srv := &transport.Server{Init: handlers(codec.Line{Max: 80}, pipeline.On(echo))}
	l, err := srv.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Println(err)
		return
	}
	d := &transport.Dialer{Init: handlers(pipeline.On(show))}
	fmt.Println(ask(context.Background(), d, l.LocalAddr().String(), "anybody?\n"))
	fmt.Println(srv.Shutdown(context.Background()))
	// Output:
	// "anybody?"
	// <nil>
	// <nil>
}

// handlers returns an Init for handlers that all channels may share.
func handlers(hs ...any) func(pipeline.Channel) error {
	return func(ch pipeline.Channel) error { return ch.Pipeline().Add(hs...) }
}

// visit has somebody connect to srv, and ends it afterwards.
func visit(srv *transport.Server, talk func(conn net.Conn)) {
	l, err := srv.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	conn := dial(l.LocalAddr().String())
	talk(conn)
	_ = conn.(*net.TCPConn).CloseWrite()
	_, _ = io.Copy(io.Discard, conn) // until the server has read all, and closed
	conn.Close()
	if err := srv.Shutdown(context.Background()); err != nil {
		panic(err)
	}
}

// freePort returns an address on which nobody listens.
func freePort() string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// dial connects to addr as soon as somebody listens there.
func dial(addr string) net.Conn {
	for {
		if conn, err := net.Dial("tcp", addr); err == nil {
			return conn
		}
	}
}

// The Go code of the pages is that of tests, but for the level of its indentation, and
// what they link to is there.
func TestGuide(t *testing.T) {
	for page, sources := range map[string][]string{
		"docs/guide.md":    {"guide_test.go"},
		"docs/pipeline.md": {"pipeline/example_test.go", "pipeline/attr_test.go", "pipeline/group_test.go", "pipeline/send_test.go"},
	} {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		code := ""
		for _, name := range sources {
			source, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			code += flush(string(source))
		}
		snippets := strings.Split(string(text), "```go\n")[1:]
		if len(snippets) == 0 {
			t.Errorf("%s has no Go code", page)
		}
		for _, rest := range snippets {
			snippet, _, _ := strings.Cut(rest, "```")
			if !strings.Contains(code, flush(snippet)) {
				t.Errorf("%s: this is not in %q:\n%s", page, sources, snippet)
			}
		}
		prose := regexp.MustCompile("(?s)```.*?```|`[^`]*`").ReplaceAllString(string(text), "")
		for _, link := range regexp.MustCompile(`\]\(([^)#]+)`).FindAllStringSubmatch(prose, -1) {
			if _, err := os.Stat("docs/" + link[1]); err != nil {
				t.Errorf("%s links to %s: %v", page, link[1], err)
			}
		}
	}
}

// flush takes the indentation away.
func flush(code string) string {
	var b strings.Builder
	for line := range strings.Lines(code) {
		b.WriteString(strings.TrimLeft(line, "\t"))
	}
	return b.String()
}
