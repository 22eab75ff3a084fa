package eventloop

import "sync"

// All returns a future that completes when all of futures have: with nil if each did,
// else with the error that came first. Without futures that is at once. Callbacks of
// it run on l, whatever loops the futures belong to. Netty: PromiseCombiner.
func All(l *Loop, futures ...Future) Future {
	a := &all{p: NewPromise(l), left: len(futures)}
	if a.left == 0 {
		a.p.Complete(nil)
	}
	for _, f := range futures {
		f.Then(a.one)
	}
	return a.p.Future()
}

// all counts the futures of All.
type all struct {
	p *Promise

	mu   sync.Mutex
	left int
	err  error
}

// one takes note of the end of one. It runs on that one's loop.
func (a *all) one(err error) {
	a.mu.Lock()
	if a.err == nil {
		a.err = err
	}
	a.left--
	done := a.left == 0
	err = a.err
	a.mu.Unlock()
	if done {
		a.p.Complete(err)
	}
}
