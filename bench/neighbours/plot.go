//go:build linux

package main

import (
	"bufio"
	"fmt"
	"io"
	"math"
	"os"
	"strings"
	"time"
)

// Buckets of the plots: powers of two, from 1 us to 33 ms.
const (
	firstBucket = time.Microsecond
	buckets     = 16
)

func bucket(d time.Duration) int {
	for i := range buckets {
		if d < firstBucket<<i {
			return i
		}
	}
	return buckets - 1
}

// shares returns the part of the values in each bucket.
func shares(v []time.Duration) (p [buckets]float64) {
	for _, d := range v {
		p[bucket(d)] += 1 / float64(len(v))
	}
	return p
}

// plot draws both distributions beside each other, a line for each bucket.
func (s *series) plot(w io.Writer) {
	ours, theirs := shares(s.all("runnel")), shares(s.all("net"))
	const width = 30
	top := 0.0
	first, last := buckets, 0
	for i := range buckets {
		if ours[i] > 0 || theirs[i] > 0 {
			first, last = min(first, i), i
		}
		top = max(top, ours[i], theirs[i])
	}
	bar := func(p float64) string {
		if p == 0 {
			return ""
		}
		return fmt.Sprintf("%s %.2f%%", strings.Repeat("#", int(math.Round(p/top*width))), 100*p)
	}
	fmt.Fprintf(w, "\nGOMAXPROCS %d, %s: share of the wakeups by lateness\n%10s  %-*s  %s\n", s.procs, s.name, "below", width+8, "runnel", "net")
	for i := first; i <= last; i++ {
		name := (firstBucket << i).String()
		if i == buckets-1 {
			name = "more"
		}
		fmt.Fprintf(w, "%10s  %-*s  %s\n", name, width+8, bar(ours[i]), bar(theirs[i]))
	}
}

// writeCSV writes a line for each bucket of each distribution.
func writeCSV(name string, all []*series) error {
	return writeFile(name, func(w io.Writer) {
		fmt.Fprintln(w, "gomaxprocs,probe,server,below_us,share")
		for _, s := range all {
			for _, kind := range kinds {
				for i, p := range shares(s.all(kind)) {
					fmt.Fprintf(w, "%d,%s,%s,%g,%.6f\n", s.procs, s.name, kind, us(firstBucket<<i), p)
				}
			}
		}
	})
}

// writeSVG draws a panel for each probe: the part of the wakeups that is not yet
// over, by lateness, both axes logarithmic.
func writeSVG(name string, all []*series) error {
	const (
		panel, height, margin = 300, 220, 40
		decades               = 4 // of the share: down to 1 in 10,000
	)
	colours := map[string]string{"runnel": "#1f6fb4", "net": "#c8641e"}
	return writeFile(name, func(w io.Writer) {
		fmt.Fprintf(w, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="10">`+"\n",
			len(all)*(panel+margin)+margin, height+3*margin)
		for i, s := range all {
			left, top := margin+i*(panel+margin), margin
			x := func(d time.Duration) float64 {
				v := math.Log2(max(1, us(d))) / buckets
				return float64(left) + min(1, v)*panel
			}
			y := func(rest float64) float64 {
				v := -math.Log10(max(rest, 1e-9)) / decades
				return float64(top) + min(1, v)*height
			}
			fmt.Fprintf(w, `<text x="%d" y="%d">GOMAXPROCS %d, %s: part later than x</text>`+"\n", left, top-8, s.procs, s.name)
			fmt.Fprintf(w, `<rect x="%d" y="%d" width="%d" height="%d" fill="none" stroke="#888"/>`+"\n", left, top, panel, height)
			for b := 0; b <= buckets; b += 4 {
				d := firstBucket << b
				fmt.Fprintf(w, `<text x="%.1f" y="%d" text-anchor="middle">%v</text>`+"\n", x(d), top+height+14, d)
			}
			for d := range decades + 1 {
				p := math.Pow(10, -float64(d))
				fmt.Fprintf(w, `<text x="%d" y="%.1f" text-anchor="end">%g%%</text>`+"\n", left-3, y(p)+3, 100*p)
			}
			for k, kind := range kinds {
				v := s.all(kind)
				var line strings.Builder
				for j := range 201 {
					// As many points in each decade, so that the tail shows.
					rest := math.Pow(10, -decades*float64(j)/200)
					fmt.Fprintf(&line, "%.1f,%.1f ", x(quantile(v, 1-rest)), y(rest))
				}
				fmt.Fprintf(w, `<polyline fill="none" stroke="%s" points="%s"/>`+"\n", colours[kind], line.String())
				fmt.Fprintf(w, `<text x="%d" y="%d" fill="%s">%s</text>`+"\n", left+8+60*k, top+height+32, colours[kind], kind)
			}
		}
		fmt.Fprintln(w, "</svg>")
	})
}

func writeFile(name string, write func(io.Writer)) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	w := bufio.NewWriter(f)
	write(w)
	if err := w.Flush(); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}
