package buffer_test

import (
	"fmt"
	"strings"

	"github.com/runnel-io/runnel/buffer"
)

func ExampleCheckLeaks() {
	t := new(fakeT) // in a test, its *testing.T
	buffer.CheckLeaks(t)

	kept, b := buffer.Default().Alloc(100), buffer.Default().Alloc(100)
	buffer.Touch(kept, "Cache#0") // a pipeline does this
	b.Release()

	t.end() // the test ends
	report, _, _ := strings.Cut(t.errors[0], "allocated at:")
	fmt.Print(report)
	kept.Release()
	// Output:
	// not released: 1 of what was allocated meanwhile
	// a Buf of 112 bytes was not released
	// given to: Cache#0
}
