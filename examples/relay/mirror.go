package main

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"sync/atomic"

	"github.com/runnel-io/runnel/pipeline"
	"github.com/runnel-io/runnel/transport"
	"go.uber.org/zap"
)

// mirrors is where a copy of what clients send goes: a server, or a file.
type mirrors struct {
	addr  string   // of the server
	file  *os.File // instead
	end   atomic.Int64
	block bool
}

// newMirrors understands -mirror and -mirror-policy.
func newMirrors(where, policy string) (*mirrors, error) {
	m := &mirrors{}
	switch policy {
	case "drop":
	case "block":
		m.block = true
	default:
		return nil, fmt.Errorf("-mirror-policy %s is neither drop nor block", policy)
	}
	if where == "" {
		return nil, nil
	}
	if _, port, err := net.SplitHostPort(where); err == nil {
		if _, err := strconv.ParseUint(port, 10, 16); err == nil {
			m.addr = where
			return m, nil
		}
	}
	// Not with O_APPEND, which splice refuses: the offsets are handed out here.
	f, err := os.OpenFile(where, os.O_WRONLY|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fmt.Errorf("-mirror: %w", err)
	}
	st, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("-mirror: %w", err)
	}
	m.file = f
	m.end.Store(st.Size())
	return m, nil
}

// connect calls then with the mirrors for a client's relay: one, or none if there are to
// be none or the server is not there.
func (m *mirrors) connect(c *pipeline.Context, log *zap.Logger, then func([]transport.Mirror)) {
	if m == nil {
		then(nil)
		return
	}
	ended := func(n int64, err error) {
		if err != nil {
			log.Warn("mirror detached", zap.Stringer("client", c.Channel().RemoteAddr()), zap.Int64("byte", n), zap.Error(err))
		}
	}
	if m.file != nil {
		then([]transport.Mirror{{
			File:    m.file,
			Reserve: func(n int64) int64 { return m.end.Add(n) - n },
			Block:   m.block,
			Ended:   ended,
		}})
		return
	}
	(&transport.Dialer{Init: quiet}).DialThen(c, "tcp", m.addr, func(ch pipeline.Channel, err error) {
		if err != nil {
			log.Warn("no mirror", zap.Stringer("client", c.Channel().RemoteAddr()), zap.Error(err))
			then(nil)
			return
		}
		then([]transport.Mirror{{Channel: ch, Block: m.block, Ended: func(n int64, err error) {
			ended(n, err)
			ch.Close()
		}}})
	})
}

// quiet has nothing logged when a mirror's server closes or resets: Ended tells.
func quiet(ch pipeline.Channel) error {
	return ch.Pipeline().Add(pipeline.OnError(func(*pipeline.Context, error) {}))
}
