package eventloop_test

import (
	"fmt"

	"github.com/runnel-io/runnel/eventloop"
)

// Tasks that may block, one after the other: what they share needs no lock.
func ExampleStrand() {
	o, err := eventloop.NewOffload(eventloop.OffloadConfig{})
	if err != nil {
		fmt.Println(err)
		return
	}
	s, err := o.NewStrand(eventloop.StrandConfig{})
	if err != nil {
		fmt.Println(err)
		return
	}
	total := 0
	for i := range 5 {
		if err := s.Execute(func() { total += i }); err != nil {
			fmt.Println(err)
		}
	}
	_ = s.Execute(func() { fmt.Println(total) })
	_ = o.Close() // waits for them
	// Output: 10
}
