//go:build linux

package main

import (
	"math"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/runnel-io/runnel/buffer"
)

// Every way of every case does its passes, twice, and keeps no buffer.
func TestCasesRun(t *testing.T) {
	for _, g := range suite() {
		for _, c := range g.cases {
			t.Run(c.key, func(t *testing.T) {
				before := buffer.Live()
				contenders, done := c.setup()
				for _, x := range contenders {
					x.run(3)
					x.run(1)
				}
				done()
				if got := buffer.Live(); got != before {
					t.Errorf("got %d live buffers, want %d", got, before)
				}
				if contenders[0].name != runnel {
					t.Errorf("got %q as the first, want %q", contenders[0].name, runnel)
				}
				for _, target := range c.targets {
					found := target.peer == ""
					for _, x := range contenders {
						found = found || x.name == target.peer
					}
					if !found {
						t.Errorf("the target names %q, which is not among the peers", target.peer)
					}
				}
			})
		}
	}
}

// What goes through a relay comes out once, in both forms.
func TestRelay(t *testing.T) {
	const passes = 20
	for _, tt := range []struct {
		name    string
		batches bool
	}{{"singly", false}, {"in batches", true}} {
		t.Run(tt.name, func(t *testing.T) {
			made := 0
			seen := map[int]bool{}
			relay(tt.batches,
				func(int) int { made++; return made },
				func(v int) int { seen[v] = true; return 0 })(passes)
			if want := passes * batchSize; made != want || len(seen) != want {
				t.Errorf("got %d made and %d different ones released, want %d", made, len(seen), want)
			}
		})
	}
}

func TestMeasure(t *testing.T) {
	var runs [2]int
	c := &bench{key: "count", per: 10, setup: func() ([]contender, func()) {
		work := func(i int) func(int) {
			return func(passes int) {
				runs[i]++
				for range passes * 1000 {
					sink++
				}
			}
		}
		return []contender{{runnel, work(0)}, {"other", work(1)}}, func() {}
	}}
	const rounds = 4
	if err := measure([]group{{cases: []*bench{c}}}, rounds, 100*time.Microsecond); err != nil {
		t.Fatal(err)
	}
	for i, w := range c.ways {
		if len(w.ns) != rounds || len(w.ratio) != rounds {
			t.Errorf("%s: got %d times and %d ratios, want %d of each", w.name, len(w.ns), len(w.ratio), rounds)
		}
		if w.passes < 1 || runs[i] < 2*rounds {
			t.Errorf("%s: got %d passes in %d runs, want some in at least %d", w.name, w.passes, runs[i], 2*rounds)
		}
	}
	if w := c.ways[1]; math.Abs(w.ratio[0]-c.ways[0].ns[0]/w.ns[0]) > 1e-9 {
		t.Errorf("got ratio %v of %v to %v ns", w.ratio[0], c.ways[0].ns[0], w.ns[0])
	}
}

func TestMedianAndSpread(t *testing.T) {
	tests := []struct {
		v              []float64
		median, spread float64
	}{
		{v: []float64{3}, median: 3},
		{v: []float64{4, 2}, median: 3, spread: 1. / 3},
		{v: []float64{10, 9, 11, 100, 1}, median: 10, spread: 0.1},
	}
	for _, tt := range tests {
		if got := median(tt.v); got != tt.median {
			t.Errorf("median(%v): got %v, want %v", tt.v, got, tt.median)
		}
		if got := spread(tt.v); math.Abs(got-tt.spread) > 1e-9 {
			t.Errorf("spread(%v): got %v, want %v", tt.v, got, tt.spread)
		}
	}
}

func TestTable(t *testing.T) {
	made := func(name string, ns, ratio float64) *way {
		return &way{contender: contender{name: name}, ns: []float64{ns + 2, ns, ns + 1}, ratio: []float64{ratio, ratio / 2, 2 * ratio}}
	}
	g := group{cases: []*bench{
		{
			key: "owner/64", name: "64 B",
			targets: []target{{ns: 10}, {peer: syncPool, ratio: 0.5}},
			ways:    []*way{made(runnel, 8, 1), made(syncPool, 12, 0.6), made(plainMake, 1000, 0.008)},
		},
		{
			key: "remote", name: "elsewhere", wall: true,
			targets: []target{{ns: 10}},
			ways:    []*way{made(runnel, 10, 1), made(syncPool, 12, 0.9)},
			allocs:  1,
		},
	}}
	n := netty{ns: map[result][]float64{{"owner/64", "Netty pooled"}: {17, 16, 30}, {"remote", "Netty pooled"}: {20, 40, 22}, {"slice", "Netty adaptive"}: {1}}}
	want := `| ns | Runnel | sync.Pool | make | Netty pooled | allocs | target |
| --- | --- | --- | --- | --- | --- | --- |
| 64 B | 8.00 | 12.0 (0.60) | 1000 (0.008) | 16.0 (0.50) | 0 | ≤ 10 ns met; ≤ 0.5 × sync.Pool **not met**; no allocs met |
| elsewhere | 11.0 | 13.0 (0.90) | - | 22.0 (0.50) | 1 | ≤ 10 ns **not met**; no allocs **not met** |
`
	if got := g.table(n); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestParseJMH(t *testing.T) {
	const head = `[{"benchmark": "runnel.bench.BufferBench.owner", "jdkVersion": "17.0.1", "params": {"allocator": "pooled", "size": "64"},
		"primaryMetric": {"score": 21, "scoreUnit": "ns/op", "rawData": [[22, 20.5], [21]]}}`
	tests := []struct {
		name, in, wantErr string
		key               result
		want              []float64
	}{
		{name: "with a size, two forks", in: head + "]", key: result{"owner/64", "Netty pooled"}, want: []float64{22, 20.5, 21}},
		{name: "without", in: head + `, {"benchmark": "runnel.bench.BufferBench.readInt", "params": {"allocator": "adaptive"},
			"primaryMetric": {"scoreUnit": "ns/op", "rawData": [[0.5]]}}]`, key: result{"read", "Netty adaptive"}, want: []float64{0.5}},
		{name: "unknown benchmark", in: strings.Replace(head, "owner", "other", 1) + "]", wantErr: "unknown benchmark"},
		{name: "unknown allocator", in: strings.Replace(head, "pooled", "new", 1) + "]", wantErr: `allocator "new"`},
		{name: "another unit", in: strings.Replace(head, "ns/op", "us/op", 1) + "]", wantErr: "want some in ns/op"},
		{name: "no iteration", in: strings.Replace(head, "[[22, 20.5], [21]]", "[[]]", 1) + "]", wantErr: "has 0 iterations"},
		{name: "nothing", in: "[]", wantErr: "empty"},
		{name: "cut off", in: head, wantErr: "unexpected EOF"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var n netty
			err := n.parse(strings.NewReader(tt.in))
			if tt.wantErr != "" {
				if err == nil || !strings.Contains(err.Error(), tt.wantErr) {
					t.Fatalf("got error %v, want one with %q", err, tt.wantErr)
				}
				return
			}
			if err != nil || !slices.Equal(n.ns[tt.key], tt.want) {
				t.Errorf("got %v, %v; want %v for %v", n.ns, err, tt.want, tt.key)
			}
		})
	}
}

// The project file has a version, and each method that belongs to a case is in the
// benchmark, with the sizes of the cases.
func TestNettyProject(t *testing.T) {
	if v, err := nettyVersion("../netty/pom.xml"); err != nil || !strings.HasPrefix(v, "4.2.") {
		t.Errorf("got version %q, %v; want 4.2", v, err)
	}
	java, err := os.ReadFile("../netty/src/main/java/runnel/bench/BufferBench.java")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := strings.Count(string(java), "\n    @Benchmark\n"), len(jmhMethods); got != want {
		t.Errorf("got %d benchmarks in Java, want %d", got, want)
	}
	var keys []string
	for _, g := range suite() {
		for _, c := range g.cases {
			keys = append(keys, c.key)
		}
	}
	methods, sizes := choose(keys)
	if len(methods) != len(jmhMethods) {
		t.Errorf("got the methods %q for all cases, want all of %v", methods, jmhMethods)
	}
	if list := `@Param({"` + strings.Join(sizes, `", "`) + `"})`; !strings.Contains(string(java), list) {
		t.Errorf("%s is not in the benchmark", list)
	}
	for method := range jmhMethods {
		if !strings.Contains(string(java), " "+method+"(Allocator a") {
			t.Errorf("%s is not in the benchmark", method)
		}
	}
	if methods, sizes := choose([]string{"owner/64", "read"}); !slices.Equal(methods, []string{"owner", "readInt"}) || !slices.Equal(sizes, []string{"64"}) {
		t.Errorf("got %q with sizes %q, want owner and readInt with 64", methods, sizes)
	}
}
