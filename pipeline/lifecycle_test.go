package pipeline

import "testing"

func TestLifecycle(t *testing.T) {
	tests := []struct {
		name                        string
		from                        lifecycle
		register, started, activate bool
		owed                        owed
	}{
		{"fresh", fresh, true, false, false, owesEnd},
		{"starting", starting, false, true, false, owesEnd},
		{"registered", registered, false, false, true, owesUnregistered | owesEnd},
		{"active", active, false, false, false, owesInactive | owesUnregistered | owesEnd},
		{"closed", closed, false, false, false, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := tt.from
			if got := s.register(); got != tt.register || got != (s == starting && tt.from == fresh) {
				t.Errorf("register: got %v and state %d, want %v", got, s, tt.register)
			}
			s = tt.from
			if got := s.started(); got != tt.started {
				t.Errorf("started: got %v, want %v", got, tt.started)
			}
			s = tt.from
			if got := s.activate(); got != tt.activate {
				t.Errorf("activate: got %v, want %v", got, tt.activate)
			}
			s = tt.from
			if got := s.close(); got != tt.owed || s != closed {
				t.Errorf("close: got %b and state %d, want %b and closed", got, s, tt.owed)
			}
			if got := s.close(); got != 0 {
				t.Errorf("second close: got %b, want nothing owed", got)
			}
		})
	}
}
