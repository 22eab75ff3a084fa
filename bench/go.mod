module github.com/runnel-io/runnel/bench

go 1.26.0

replace github.com/runnel-io/runnel => ../

require (
	github.com/cloudwego/netpoll v0.7.2
	github.com/runnel-io/runnel v0.0.0
	github.com/valyala/bytebufferpool v1.0.0
	golang.org/x/sys v0.49.0
)

require (
	github.com/bytedance/gopkg v0.1.1 // indirect
	github.com/cloudwego/gopkg v0.1.4 // indirect
	github.com/panjf2000/ants/v2 v2.12.1 // indirect
	go.uber.org/multierr v1.10.0 // indirect
	go.uber.org/zap v1.28.0 // indirect
	golang.org/x/sync v0.11.0 // indirect
)
