//go:build linux

package main

import (
	"fmt"
	"slices"
	"strings"
)

// table renders a group as Markdown, with Netty's figures where there are any.
func (g group) table(n netty) string {
	var peers []string
	add := func(name string) {
		if !slices.Contains(peers, name) {
			peers = append(peers, name)
		}
	}
	for _, c := range g.cases {
		for _, w := range c.ways[1:] {
			add(w.name)
		}
	}
	for _, name := range nettyAllocators {
		if slices.ContainsFunc(g.cases, func(c *bench) bool { return n.ns[result{c.key, name}] != nil }) {
			add(name)
		}
	}

	var s strings.Builder
	row := func(cells ...string) { fmt.Fprintf(&s, "| %s |\n", strings.Join(cells, " | ")) }
	row(slices.Concat([]string{"ns", "Runnel"}, peers, []string{"allocs", "target"})...)
	row(slices.Repeat([]string{"---"}, len(peers)+4)...)
	for _, c := range g.cases {
		cells := []string{c.name, figure(c.stands(c.ways[0].ns))}
		for _, name := range peers {
			cells = append(cells, c.cell(name, n))
		}
		row(append(cells, fmt.Sprintf("%.2g", c.allocs), c.verdict())...)
	}
	return s.String()
}

// cell is one peer's figure and Runnel's as a part of it.
func (c *bench) cell(peer string, n netty) string {
	if w := c.way(peer); w != nil {
		return withRatio(c.stands(w.ns), median(w.ratio))
	}
	if all := n.ns[result{c.key, peer}]; all != nil {
		ns := c.stands(all)
		return withRatio(ns, c.stands(c.ways[0].ns)/ns)
	}
	return "-"
}

func withRatio(ns, ratio float64) string {
	if ratio < 0.1 {
		return fmt.Sprintf("%s (%.2g)", figure(ns), ratio)
	}
	return fmt.Sprintf("%s (%.2f)", figure(ns), ratio)
}

// figure prints three digits, or more where all of them are in front of the point.
func figure(ns float64) string {
	switch {
	case ns < 10:
		return fmt.Sprintf("%.2f", ns)
	case ns < 100:
		return fmt.Sprintf("%.1f", ns)
	default:
		return fmt.Sprintf("%.0f", ns)
	}
}

func (c *bench) way(name string) *way {
	for _, w := range c.ways[1:] {
		if w.name == name {
			return w
		}
	}
	return nil
}

// verdict names the targets and whether they are met. No allocation is one of all.
func (c *bench) verdict() string {
	var parts []string
	judge := func(met bool, format string, args ...any) {
		word := " met"
		if !met {
			word = " **not met**"
		}
		parts = append(parts, fmt.Sprintf(format, args...)+word)
	}
	for _, t := range c.targets {
		if t.peer == "" {
			judge(c.stands(c.ways[0].ns) <= t.ns, "≤ %g ns", t.ns)
		} else if w := c.way(t.peer); w != nil {
			judge(median(w.ratio) <= t.ratio, "≤ %g × %s", t.ratio, t.peer)
		}
	}
	// A collector at work allocates now and then; one in a thousand is none of ours.
	judge(c.allocs < 0.001, "no allocs")
	return strings.Join(parts, "; ")
}
