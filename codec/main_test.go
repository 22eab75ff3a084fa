package codec_test

import (
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/runnel-io/runnel/buffer"
)

// TestMain also checks that the tests leave nothing behind.
func TestMain(m *testing.M) {
	before := goleak.IgnoreCurrent() // the import of ants starts two goroutines
	code := m.Run()
	if err := goleak.Find(before); err != nil {
		fmt.Println("goroutines left:", err)
		code = 1
	}
	if n := buffer.Live(); n != 0 {
		fmt.Printf("live buffers: got %d at the end, want 0\n", n)
		code = 1
	}
	os.Exit(code)
}
