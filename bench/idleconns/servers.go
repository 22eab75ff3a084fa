//go:build linux

package main

import (
	"context"
	"fmt"

	"github.com/cloudwego/netpoll"

	"github.com/runnel-io/runnel/pipeline"
	"github.com/runnel-io/runnel/transport"
)

var servers = map[string]func(ctx context.Context, addr string) error{
	"runnel":  serveRunnel,
	"netpoll": serveNetpoll,
}

// passer is a handler that only passes messages on.
type passer struct{ n int }

func (p *passer) HandleRead(c *pipeline.Context, msg any) error {
	p.n++
	c.FireRead(msg)
	return nil
}

// echoer sends them back.
type echoer struct{ n int }

func (e *echoer) HandleRead(c *pipeline.Context, msg any) error {
	e.n++
	c.Write(msg)
	return nil
}

func serveRunnel(ctx context.Context, addr string) error {
	srv := &transport.Server{
		Init: func(ch pipeline.Channel) error {
			return ch.Pipeline().Add(new(passer), new(passer), new(echoer))
		},
		DrainTimeout: -1,
		ListenerInit: func(l pipeline.Channel) error {
			return l.Pipeline().Add(pipeline.OnActive(func(c *pipeline.Context) error {
				_, err := fmt.Printf("listening on tcp://%s\n", c.Channel().LocalAddr())
				return err
			}))
		},
	}
	return srv.ListenAndServe(ctx, "tcp", addr)
}

func serveNetpoll(ctx context.Context, addr string) error {
	l, err := netpoll.CreateListener("tcp", addr)
	if err != nil {
		return err
	}
	loop, err := netpoll.NewEventLoop(func(_ context.Context, c netpoll.Connection) error {
		r := c.Reader()
		p, err := r.Next(r.Len())
		if err != nil {
			return err
		}
		if _, err := c.Writer().WriteBinary(append([]byte(nil), p...)); err != nil {
			return err
		}
		if err := c.Writer().Flush(); err != nil {
			return err
		}
		return r.Release()
	})
	if err != nil {
		return err
	}
	fmt.Printf("listening on tcp://%s\n", l.Addr())
	go func() {
		<-ctx.Done()
		_ = loop.Shutdown(context.Background())
	}()
	err = loop.Serve(l)
	if ctx.Err() != nil {
		return nil
	}
	return err
}
