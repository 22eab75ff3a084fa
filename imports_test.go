package runnel_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/runnel-io/runnel"

// layers says what of ours each package may import; a name ending in /* stands for
// the packages below it and not for itself. The first line that fits a package is
// its own. Imports point one way, so a line names only lines above it.
var layers = []struct {
	pkg string
	may []string
}{
	{"internal/*", []string{"internal/invariant"}},
	{"buffer", []string{"internal/*"}},
	{"eventloop", []string{"buffer", "internal/*"}},
	{"pipeline", []string{"buffer", "eventloop", "internal/invariant"}},
	{"pipeline/*", []string{"pipeline", "buffer", "eventloop", "internal/invariant"}},
	{"transport", []string{"pipeline", "buffer", "eventloop", "internal/*"}},
	{"transport/transporttest", []string{"transport", "pipeline", "pipeline/embedded", "buffer", "eventloop", "internal/*"}},
	{"transport/*", []string{"transport", "pipeline", "buffer", "eventloop", "internal/*"}},
	{"codec", []string{"pipeline", "buffer", "eventloop"}},
	{"codec/codectest", []string{"codec", "pipeline", "pipeline/embedded", "buffer", "eventloop"}},
	{"codec/*", []string{"codec", "pipeline", "buffer", "eventloop"}},
	{"examples/*", []string{"exported", "examples/*"}},
	{".", nil}, // documentation only
}

// doors are the ways in for third parties, and for unsafe: which files may import
// them. What is not here does not come in.
var doors = []struct {
	imp  string // an import path; ending in /* also all below it
	dir  string // a package, as in layers; empty for any
	file string // a pattern of path.Match; empty for any
}{
	{imp: "golang.org/x/sys/*", dir: "internal/sys"},
	{imp: "github.com/panjf2000/ants/v2", dir: "eventloop", file: "offload.go"},
	{imp: "go.uber.org/zap", dir: "buffer"},
	{imp: "go.uber.org/zap", dir: "eventloop"},
	{imp: "go.uber.org/zap", dir: "pipeline"},
	{imp: "go.uber.org/zap", dir: "pipeline/*"},
	{imp: "go.uber.org/zap", dir: "transport"},
	{imp: "go.uber.org/zap", dir: "transport/*"},
	{imp: "go.uber.org/zap", dir: "codec"},
	{imp: "go.uber.org/zap", dir: "codec/*"},
	{imp: "go.uber.org/zap/*", dir: "examples/*"},
	{imp: "go.uber.org/zap/*", file: "*_test.go"},
	{imp: "go.uber.org/goleak", file: "*_test.go"},
	{imp: "golang.org/x/net/nettest", file: "*_test.go"},
	{imp: "unsafe", dir: "internal/sys"},
	{imp: "unsafe", dir: "buffer"},
	{imp: "unsafe", file: "*_unsafe.go"},
	{imp: "unsafe", file: "*_unsafe_*.go"}, // of one system, or a test
}

// fits reports whether name is what the pattern of layers and doors means.
func fits(pattern, name string) bool {
	if dir, ok := strings.CutSuffix(pattern, "/*"); ok {
		return strings.HasPrefix(name, dir+"/")
	}
	return name == pattern
}

func internal(pkg string) bool {
	for part := range strings.SplitSeq(pkg, "/") {
		if part == "internal" {
			return true
		}
	}
	return false
}

// violations returns what is wrong with the imports of a file, given its name with
// the path from the top of the module.
func violations(name string, f *ast.File) []string {
	dir, file := path.Split(name)
	if dir = path.Clean(dir); dir == "" {
		dir = "."
	}
	var may []string
	known := false
	for _, l := range layers {
		if fits(l.pkg, dir) {
			may, known = l.may, true
			break
		}
	}
	if !known {
		return []string{fmt.Sprintf("%s: the package %s is in no layer", name, dir)}
	}
	inTest := strings.HasSuffix(file, "_test.go")
	if inTest {
		may = append(may[:len(may):len(may)], "internal/invariant") // which build is this?
		if strings.HasSuffix(f.Name.Name, "_test") {
			may = append(may, "exported", dir)
		}
	}

	var bad []string
	for _, spec := range f.Imports {
		imp, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			bad = append(bad, fmt.Sprintf("%s: import %s: %v", name, spec.Path.Value, err))
			continue
		}
		ours, isOurs := strings.CutPrefix(imp, module+"/")
		first, _, _ := strings.Cut(imp, "/")
		ok := false
		switch {
		case isOurs || imp == module:
			for _, m := range may {
				if fits(m, ours) || m == "exported" && !internal(ours) && !fits("examples/*", ours) {
					ok = true
				}
			}
		case imp == "C": // we build without cgo
		case strings.Contains(first, ".") || imp == "unsafe":
			for _, d := range doors {
				if (fits(d.imp, imp) || strings.TrimSuffix(d.imp, "/*") == imp) && (d.dir == "" || fits(d.dir, dir)) {
					if in, _ := path.Match(d.file, file); in || d.file == "" {
						ok = true
					}
				}
			}
		default: // the standard library
			ok = true
		}
		if !ok {
			bad = append(bad, fmt.Sprintf("%s: may not import %s", name, imp))
		}
	}
	return bad
}

// The packages of this module import what STYLE allows and nothing else.
func TestImports(t *testing.T) {
	files := 0
	err := filepath.WalkDir(".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		base := d.Name()
		if d.IsDir() {
			if name == "." {
				return nil
			}
			_, err := os.Stat(filepath.Join(name, "go.mod"))
			if err == nil || base == "testdata" || base[0] == '.' || base[0] == '_' {
				return fs.SkipDir // another module, or no package
			}
			return nil
		}
		if filepath.Ext(base) != ".go" {
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		files++
		for _, v := range violations(filepath.ToSlash(name), f) {
			t.Error(v)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if files < 10 {
		t.Errorf("got %d files to look at: is this the top of the module?", files)
	}
}

// The rules catch what they are for.
func TestImportRules(t *testing.T) {
	const own = module + "/"
	tests := []struct {
		file string // package clauses are made up from it
		imp  string
		ok   bool
	}{
		{"internal/queue/queue.go", own + "internal/invariant", true},
		{"internal/queue/queue.go", own + "internal/sys", false},
		{"internal/sys/io.go", own + "buffer", false},
		{"buffer/buf.go", own + "internal/sys", true},
		{"buffer/buf.go", own + "eventloop", false},
		{"buffer/buf.go", module, false},
		{"eventloop/loop.go", own + "buffer", true},
		{"eventloop/loop.go", own + "internal/goid", true},
		{"eventloop/loop.go", own + "pipeline", false},
		{"pipeline/context.go", own + "eventloop", true},
		{"pipeline/context.go", own + "internal/invariant", true},
		{"pipeline/context.go", own + "internal/sys", false},
		{"pipeline/context.go", own + "pipeline/embedded", false},
		{"pipeline/context.go", own + "transport", false},
		{"pipeline/embedded/channel.go", own + "pipeline", true},
		{"pipeline/embedded/channel.go", own + "transport", false},
		{"pipeline/handler/idle.go", own + "pipeline/embedded", false},
		{"pipeline/handler/idle_test.go", own + "pipeline/embedded", false},
		{"pipeline/handler/idle_external_test.go", own + "pipeline/embedded", true},
		{"transport/stream.go", own + "pipeline", true},
		{"transport/stream.go", own + "internal/sys", true},
		{"transport/stream.go", own + "pipeline/embedded", false},
		{"transport/stream.go", own + "codec", false},
		{"transport/local/pair.go", own + "transport", true},
		{"transport/local/pair.go", own + "pipeline/embedded", false},
		{"transport/transporttest/suite.go", own + "pipeline/embedded", true},
		{"transport/transporttest/suite.go", own + "codec", false},
		{"codec/line.go", own + "pipeline", true},
		{"codec/line.go", own + "buffer", true},
		{"codec/line.go", own + "transport", false},
		{"codec/line.go", own + "internal/invariant", false},
		{"codec/line_test.go", own + "transport", false},
		{"codec/line_external_test.go", own + "transport", true},
		{"codec/codectest/verify.go", own + "pipeline/embedded", true},
		{"codec/codectest/verify.go", own + "transport", false},
		{"codec/http1/parser.go", own + "codec", true},
		{"codec/http1/parser.go", own + "codec/codectest", false},
		{"codec/http1/nethttp/serve.go", own + "transport", false},
		{"examples/echo/main.go", own + "transport", true},
		{"examples/echo/main.go", own + "codec/codectest", true},
		{"examples/echo/main.go", own + "internal/sys", false},
		{"examples/echo/main.go", own + "examples/internal/serve", true},
		{"transport/server.go", own + "examples/echo", false},
		{"transport/server_external_test.go", own + "examples/echo", false},
		{"doc.go", own + "buffer", false},
		{"example_external_test.go", own + "transport", true},
		{"newthing/x.go", "fmt", false},

		{"buffer/external_test.go", own + "internal/sys", true}, // as buffer itself
		{"codec/external_test.go", own + "internal/sys", false},
		{"codec/line_test.go", own + "internal/invariant", true},

		{"internal/sys/io.go", "golang.org/x/sys/unix", true},
		{"internal/sys/io_test.go", "golang.org/x/sys/unix", true},
		{"internal/goid/goid.go", "golang.org/x/sys/unix", false},
		{"transport/socket_linux.go", "golang.org/x/sys/unix", false},
		{"transport/socket_test.go", "golang.org/x/sys/unix", false},
		{"examples/echo/main.go", "golang.org/x/sys/unix", false},
		{"eventloop/offload.go", "github.com/panjf2000/ants/v2", true},
		{"eventloop/loop.go", "github.com/panjf2000/ants/v2", false},
		{"eventloop/offload_test.go", "github.com/panjf2000/ants/v2", false},
		{"transport/offload.go", "github.com/panjf2000/ants/v2", false},
		{"eventloop/group.go", "go.uber.org/zap", true},
		{"eventloop/group.go", "go.uber.org/zap/zapcore", false},
		{"eventloop/group_test.go", "go.uber.org/zap/zaptest/observer", true},
		{"internal/sys/io.go", "go.uber.org/zap", false},
		{"examples/echo/main.go", "go.uber.org/zap/zapcore", true},
		{"eventloop/loop_test.go", "go.uber.org/goleak", true},
		{"eventloop/loop.go", "go.uber.org/goleak", false},
		{"transport/conn_test.go", "golang.org/x/net/nettest", true},
		{"transport/conn.go", "golang.org/x/net/nettest", false},
		{"transport/conn_test.go", "golang.org/x/net/http2", false},
		{"transport/conn_test.go", "github.com/stretchr/testify/require", false},
		{"codec/json.go", "encoding/json", true},
		{"codec/json.go", "github.com/goccy/go-json", false},

		{"internal/sys/io.go", "unsafe", true},
		{"buffer/buf.go", "unsafe", true},
		{"eventloop/loop.go", "unsafe", false},
		{"eventloop/loop_test.go", "unsafe", false},
		{"eventloop/task_unsafe.go", "unsafe", true},
		{"eventloop/task_unsafe_linux.go", "unsafe", true},
		{"eventloop/unsafe.go", "unsafe", false},
		{"examples/echo/main.go", "unsafe", false},
		{"internal/sys/io.go", "C", false},
		{"transport/server.go", "syscall", true},
	}
	for _, tt := range tests {
		dir, base := path.Split(tt.file)
		pkg := path.Base(path.Clean(dir))
		if dir == "" {
			pkg = "runnel"
		}
		if strings.HasSuffix(base, "external_test.go") {
			pkg += "_test"
		}
		src := fmt.Sprintf("package %s\n\nimport _ %q\n", pkg, tt.imp)
		f, err := parser.ParseFile(token.NewFileSet(), tt.file, src, parser.ImportsOnly)
		if err != nil {
			t.Errorf("%s: %v", tt.file, err)
			continue
		}
		got := violations(tt.file, f)
		if ok := len(got) == 0; ok != tt.ok {
			t.Errorf("%s importing %s: got violations %q, want allowed %v", tt.file, tt.imp, got, tt.ok)
		}
	}
}
