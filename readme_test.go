package runnel_test

import (
	"os"
	"strings"
	"testing"
)

// The README's server is the one that the example runs.
func TestReadmeServer(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	example, err := os.ReadFile("example_test.go")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(readme), "```go\n")
	snippet, _, ok := strings.Cut(rest, "```")
	if !ok || !strings.Contains(snippet, "ListenAndServe") {
		t.Fatalf("got %q as the first Go code of the README, want its server", snippet)
	}
	_, body, _ := strings.Cut(string(example), "func Example() {\n")
	if !strings.Contains(body, indent(snippet)) {
		t.Errorf("README.md and example_test.go differ; the README has\n%s", snippet)
	}
}

// indent puts the code one level deeper.
func indent(code string) string {
	var b strings.Builder
	for line := range strings.Lines(code) {
		if line != "\n" {
			b.WriteByte('\t')
		}
		b.WriteString(line)
	}
	return b.String()
}

// What the README and doc.go name is there.
func TestReadmeLinks(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range strings.Split(string(readme), "](")[1:] {
		target, _, _ := strings.Cut(part, ")")
		target, _, _ = strings.Cut(target, "#")
		if target == "" || strings.Contains(target, "://") {
			continue
		}
		if _, err := os.Stat(target); err != nil {
			t.Errorf("README.md links to %s: %v", target, err)
		}
	}
}
