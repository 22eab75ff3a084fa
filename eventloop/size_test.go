package eventloop

import (
	"math/bits"
	"reflect"
	"testing"
)

// A server has a registration for each of perhaps a million connections.
func TestRegistrationSize(t *testing.T) {
	if got := reflect.TypeFor[Registration]().Size(); bits.UintSize == 64 && got > 48 {
		t.Errorf("size of a Registration: got %d, want at most 48", got)
	}
}
