//go:build linux

package main

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/runnel-io/runnel/bench/internal/proc"
)

// nettyAllocators are the columns of Netty, as the benchmark's parameter is called.
var nettyAllocators = []string{"Netty pooled", "Netty adaptive"}

// netty is what JMH has measured of Netty.
type netty struct {
	version, java string
	ns            map[result][]float64 // for an operation, by iteration
}

// result names a figure: a case's key and a column.
type result struct{ key, peer string }

// jmhMethods maps the benchmark's methods to the keys of the cases; the methods with a
// size have it behind a slash.
var jmhMethods = map[string]string{
	"owner":        "owner",
	"remoteSingle": "remote/single",
	"remoteBatch":  "remote/batch",
	"slice":        "slice",
	"readInt":      "read",
	"writeInt":     "write",
	"getInt":       "random",
}

// measureNetty builds the Maven project and has JMH measure what belongs to the cases
// with these keys. It says why it was skipped where there is no Maven or no Java.
func measureNetty(keys []string) (n netty, skipped string, err error) {
	methods, sizes := choose(keys)
	if methods == nil {
		return n, "it has none of these cases", nil
	}
	for _, tool := range []string{"mvn", "java"} {
		if _, err := exec.LookPath(tool); err != nil {
			return n, tool + " is not installed", nil
		}
	}
	module, err := proc.ModuleDir()
	if err != nil {
		return n, "", err
	}
	dir := filepath.Join(module, "netty")
	if n.version, err = nettyVersion(filepath.Join(dir, "pom.xml")); err != nil {
		return n, "", err
	}
	if err := command(dir, "mvn", "-B", "-q", "compile", "dependency:build-classpath"); err != nil {
		return n, "", err
	}
	target := filepath.Join(dir, "target")
	classpath, err := os.ReadFile(filepath.Join(target, "classpath")) // as the pom says
	if err != nil {
		return n, "", err
	}
	out := filepath.Join(target, "results.json")
	args := []string{
		"-cp", filepath.Join(target, "classes") + string(filepath.ListSeparator) + strings.TrimSpace(string(classpath)),
		"org.openjdk.jmh.Main", `\.(` + strings.Join(methods, "|") + ")$", "-foe", "true", "-rf", "json", "-rff", out,
	}
	if sizes != nil {
		args = append(args, "-p", "size="+strings.Join(sizes, ","))
	}
	if err := command(dir, "java", args...); err != nil {
		return n, "", err
	}
	f, err := os.Open(out)
	if err != nil {
		return n, "", err
	}
	defer f.Close()
	return n, "", n.parse(f)
}

// choose returns the benchmark's methods for the cases with these keys, and the sizes
// among them.
func choose(keys []string) (methods, sizes []string) {
	for method, key := range jmhMethods {
		if slices.ContainsFunc(keys, func(k string) bool { return k == key || strings.HasPrefix(k, key+"/") }) {
			methods = append(methods, method)
		}
	}
	slices.Sort(methods)
	for _, k := range keys {
		if size, ok := strings.CutPrefix(k, "owner/"); ok {
			sizes = append(sizes, size)
		}
	}
	return methods, sizes
}

// command runs a program quietly; what it printed becomes part of the error.
func command(dir, name string, args ...string) error {
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := proc.StartPinned(cmd, -1)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		return fmt.Errorf("%s: %w\n%s", name, err, out.Bytes()[max(0, out.Len()-4<<10):])
	}
	return nil
}

// nettyVersion reads the version from the project file.
func nettyVersion(pom string) (string, error) {
	text, err := os.ReadFile(pom)
	if err != nil {
		return "", err
	}
	var p struct {
		Version string `xml:"properties>netty.version"`
	}
	if err := xml.Unmarshal(text, &p); err != nil {
		return "", fmt.Errorf("%s: %w", pom, err)
	}
	if p.Version == "" {
		return "", fmt.Errorf("%s: no netty.version", pom)
	}
	return p.Version, nil
}

// parse reads JMH's results.
func (n *netty) parse(r io.Reader) error {
	var runs []struct {
		Benchmark string            `json:"benchmark"`
		Java      string            `json:"jdkVersion"`
		Params    map[string]string `json:"params"`
		Metric    struct {
			Unit string      `json:"scoreUnit"`
			Raw  [][]float64 `json:"rawData"` // by fork, then by iteration
		} `json:"primaryMetric"`
	}
	if err := json.NewDecoder(r).Decode(&runs); err != nil {
		return fmt.Errorf("JMH's results: %w", err)
	}
	if len(runs) == 0 {
		return errors.New("JMH's results are empty")
	}
	n.ns = map[result][]float64{}
	for _, run := range runs {
		method := run.Benchmark[strings.LastIndexByte(run.Benchmark, '.')+1:]
		key, ok := jmhMethods[method]
		if !ok {
			return fmt.Errorf("JMH's results: unknown benchmark %q", run.Benchmark)
		}
		if size := run.Params["size"]; size != "" {
			key += "/" + size
		}
		peer := "Netty " + run.Params["allocator"]
		if !slices.Contains(nettyAllocators, peer) {
			return fmt.Errorf("JMH's results: %s has allocator %q", method, run.Params["allocator"])
		}
		raw := slices.Concat(run.Metric.Raw...)
		if run.Metric.Unit != "ns/op" || len(raw) == 0 {
			return fmt.Errorf("JMH's results: %s has %d iterations in %q, want some in ns/op", method, len(raw), run.Metric.Unit)
		}
		n.ns[result{key, peer}] = raw
		n.java = run.Java
	}
	return nil
}
