package invariant_test

import (
	"strings"
	"testing"

	"github.com/runnel-io/runnel/internal/invariant"
)

type loop bool

func (l loop) InLoop() bool { return bool(l) }

func TestAssertions(t *testing.T) {
	tests := []struct {
		name string
		call func()
		want string // in the panic's text; empty for none
	}{
		{"check holds", func() { invariant.Check(true, "never") }, ""},
		{"check broken", func() { invariant.Check(false, "got %d refs, want %d", 2, 1) }, "got 2 refs, want 1"},
		{"on the loop", func() { invariant.OnLoop(loop(true)) }, ""},
		{"off the loop", func() { invariant.OnLoop(loop(false)) }, "loop"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			want := tt.want
			if !invariant.Enabled {
				want = ""
			}
			defer func() {
				v := recover()
				if want == "" {
					if v != nil {
						t.Errorf("got panic %v, want none", v)
					}
					return
				}
				if text, _ := v.(string); !strings.Contains(text, want) {
					t.Errorf("got panic %v, want one with %q", v, want)
				}
			}()
			tt.call()
		})
	}
}

// The race detector brings the assertions with it.
func TestRaceImpliesEnabled(t *testing.T) {
	if invariant.Race && !invariant.Enabled {
		t.Error("got Race without Enabled")
	}
}

var sink = 1

// An assertion that is off may not cost an allocation for its arguments.
func TestCheckIsFreeWhenOff(t *testing.T) {
	if invariant.Enabled {
		t.Skip("assertions are on")
	}
	got := testing.AllocsPerRun(100, func() {
		invariant.Check(sink > 1000, "sink is %d of %s", sink, "many")
		sink++
	})
	if got != 0 {
		t.Errorf("got %v allocations, want 0", got)
	}
}
