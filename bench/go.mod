module github.com/runnel-io/runnel/bench

go 1.26.0

replace github.com/runnel-io/runnel => ../

require golang.org/x/sys v0.49.0
