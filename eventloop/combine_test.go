package eventloop

import (
	"errors"
	"testing"
)

func TestAll(t *testing.T) {
	a, b := errors.New("a"), errors.New("b")
	tests := []struct {
		name  string
		order []int   // in which the promises are completed
		errs  []error // of each promise
		want  error
	}{
		{"none", nil, nil, nil},
		{"one", []int{0}, []error{nil}, nil},
		{"all succeed", []int{2, 0, 1}, []error{nil, nil, nil}, nil},
		{"one fails", []int{1, 0, 2}, []error{nil, a, nil}, a},
		{"the first in time counts", []int{2, 0, 1}, []error{b, nil, a}, a},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			man := newTestManual(t)
			var promises []*Promise
			var futures []Future
			for range tt.errs {
				p := NewPromise(man.Loop())
				promises, futures = append(promises, p), append(futures, p.Future())
			}
			var got []error
			man.Enter(func() {
				All(man.Loop(), futures...).Then(func(err error) { got = append(got, err) })
				for i, at := range tt.order {
					if len(got) != 0 {
						t.Errorf("after %d of %d: completed with %v", i, len(tt.order), got)
					}
					promises[at].Complete(tt.errs[at])
				}
			})
			if len(got) != 1 || got[0] != tt.want {
				t.Errorf("got %v, want once %v", got, tt.want)
			}
		})
	}
}

// The futures may belong to many loops; the callbacks run on the one that was named.
func TestAll_ManyLoops(t *testing.T) {
	g := newTestGroup(t, GroupConfig{Loops: 3})
	l := g.Next()
	var promises []*Promise
	var futures []Future
	for range 30 {
		p := NewPromise(g.Next())
		promises, futures = append(promises, p), append(futures, p.Future())
	}
	result := make(chan bool, 1)
	All(l, futures...).Then(func(err error) { result <- err == nil && l.InLoop() })
	for _, p := range promises {
		go p.Complete(nil)
	}
	if !await(t, result, "the result") {
		t.Error("failed, or not on the loop that was named")
	}
}
