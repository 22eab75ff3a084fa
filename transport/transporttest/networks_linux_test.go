package transporttest_test

import (
	"testing"

	"github.com/runnel-io/runnel/transport/transporttest"
)

func TestConformance(t *testing.T) {
	for name, tr := range transporttest.Networks() {
		t.Run(name, func(t *testing.T) { transporttest.Run(t, tr) })
	}
	for name, tr := range transporttest.Local() {
		t.Run(name, func(t *testing.T) { transporttest.Run(t, tr) })
	}
}
