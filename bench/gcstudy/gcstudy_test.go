//go:build linux

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"testing"

	"github.com/runnel-io/runnel/buffer"
)

func TestTable(t *testing.T) {
	got := table([]*setting{
		{kind: offHeap, name: "default", results: []figures{
			{Cycles: 30, GCSeconds: 1.5, CPUSeconds: 4, PeakRSS: 100 * mib},
			{Cycles: 10, GCSeconds: 0.5, CPUSeconds: 2, PeakRSS: 300 * mib},
			{Cycles: 20, GCSeconds: 0.7, CPUSeconds: 9, PeakRSS: 200 * mib},
		}},
		{kind: onHeap, name: "GOGC=800", results: []figures{{Cycles: 1}, {Cycles: 2}}},
		{kind: onHeap, name: "default", skipped: "needs more"},
	})
	want := `| buffers | setting | GC cycles | GC CPU s | all CPU s | peak RSS MiB |
| --- | --- | --- | --- | --- | --- |
| off the heap | default | 20 | 0.70 | 4.00 | 200 |
| Heap | GOGC=800 | 2 | 0.00 | 0.00 | 0 |
| Heap | default | skipped: needs more | | | |
`
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// A small study of each kind runs through and reports.
func TestStudy(t *testing.T) {
	for _, kind := range []string{offHeap, onHeap} {
		t.Run(kind, func(t *testing.T) {
			before := buffer.Live()
			var out bytes.Buffer
			err := study(&out, options{live: 4 * mib, garbage: 64 * mib, child: kind})
			if errors.Is(err, errOnHeap) {
				t.Skip(err)
			}
			if err != nil {
				t.Fatal(err)
			}
			var f figures
			if err := json.Unmarshal(out.Bytes(), &f); err != nil {
				t.Fatal(err)
			}
			if f.Cycles == 0 || f.CPUSeconds <= 0 || f.PeakRSS < 4*mib {
				t.Errorf("got %+v, want some of each", f)
			}
			if got := buffer.Live(); got != before {
				t.Errorf("got %d live buffers, want %d", got, before)
			}
		})
	}
}

// Every case is complete, and counts on what lives in it.
func TestSettings(t *testing.T) {
	o := options{live: gib, garbage: 8 * gib}
	names := map[string]bool{}
	for _, s := range settings(o) {
		names[s.kind+" "+s.name] = true
		if s.name == "" || s.gogc == "" || s.atMost < max(o.live, s.limit) {
			t.Errorf("%s %q: got GOGC %q and at most %d bytes", s.kind, s.name, s.gogc, s.atMost)
		}
	}
	if got, want := len(names), len(settings(o)); got != want {
		t.Errorf("got %d different cases, want %d", got, want)
	}
}
