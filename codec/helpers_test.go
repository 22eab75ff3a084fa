package codec_test

import (
	"fmt"
	"testing"

	"github.com/runnel-io/runnel/buffer"
	"github.com/runnel-io/runnel/eventloop"
	"github.com/runnel-io/runnel/pipeline/embedded"
)

type completion = eventloop.Promise

// text returns a message's bytes, or what it prints as.
func text(msg any) string {
	if b, ok := msg.(*buffer.Buf); ok {
		return string(b.Window())
	}
	return fmt.Sprint(msg)
}

// inbound takes and releases the messages that passed all handlers.
func inbound(ch *embedded.Channel) (got []string) { return all(ch.ReadInbound) }

// outbound does so with those that were flushed at the head.
func outbound(ch *embedded.Channel) (got []string) { return all(ch.ReadOutbound) }

func all(read func() any) (got []string) {
	for m := read(); m != nil; m = read() {
		got = append(got, text(m))
		buffer.Release(m)
	}
	return got
}

// finish ends a channel that has met no error.
func finish(t *testing.T, ch *embedded.Channel) {
	t.Helper()
	if err := ch.Finish(); err != nil {
		t.Errorf("got error %v at the end, want none", err)
	}
	if n := ch.ReleaseAll(); n != 0 {
		t.Errorf("got %d messages left at the end, want none", n)
	}
	if n := buffer.Live(); n != 0 {
		t.Errorf("got %d live Bufs at the end, want none", n)
	}
}
