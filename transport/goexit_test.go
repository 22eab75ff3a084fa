package transport

import (
	"runtime"

	"github.com/runnel-io/runnel/internal/invariant"
)

func goexit() { runtime.Goexit() }

// raceEnabled is true in builds whose checks allocate.
const raceEnabled = invariant.Enabled
