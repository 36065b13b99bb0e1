package main

import "slices"

// A scale says which targets hold.
type scale int

const (
	manyServices scale = iota // of ten pods each
	oneService                // of all pods, fewer than the targets are about
	fullService               // of at least ten thousand pods
)

// flipSection makes the table of flips from the runs of each contender.
func flipSection(title string, columns []string, runs map[string][]*flipRun, size scale) Section {
	pooled := func(pick func(*flipRun) []float64, q float64) func([]*flipRun) Value {
		return func(rs []*flipRun) Value {
			var all, each []float64
			for _, r := range rs {
				if samples := pick(r); len(samples) > 0 {
					all, each = append(all, samples...), append(each, quantile(samples, q))
				}
			}
			v := median(each, len(all))
			if q > 0.5 && len(all) > 0 {
				v.Value = quantile(all, q)
			}
			return v
		}
	}
	perFlip := func(of func(*flipRun) float64) func([]*flipRun) Value {
		return func(rs []*flipRun) Value {
			var each []float64
			flips := 0
			for _, r := range rs {
				each, flips = append(each, of(r)/float64(r.flips)), flips+r.flips
			}
			return median(each, flips)
		}
	}
	patch := func(r *flipRun) []float64 { return r.patch }
	slice := func(r *flipRun) []float64 { return r.slice }
	object := func(r *flipRun) []float64 { return r.endpoints }
	s := Section{Title: title, Columns: columns}
	add := func(name, unit string, of func([]*flipRun) Value) *Row {
		row := Row{Name: name, Unit: unit, Values: map[string]Value{}}
		for column, rs := range runs {
			if v := of(rs); v.Runs > 0 {
				row.Values[column] = v
			}
		}
		row.compare()
		s.Rows = append(s.Rows, row)
		return &s.Rows[len(s.Rows)-1]
	}
	add("the PATCH's own round trip p50", "ms", pooled(patch, 0.5)).Ahead = Ahead{}
	r := add("PATCH sent → slice seen p50", "ms", pooled(slice, 0.5))
	if size == fullService {
		r.ahead(30)
	} else {
		r.ahead(1)
	}
	add("PATCH sent → slice seen p99", "ms", pooled(slice, 0.99)).atMost(20)
	add("slice seen p50 / PATCH p50", "×", func(rs []*flipRun) Value {
		var each []float64
		flips := 0
		for _, r := range rs {
			each, flips = append(each, quantile(r.slice, 0.5)/quantile(r.patch, 0.5)), flips+r.flips
		}
		return median(each, flips)
	}).atMost(1.5)
	add("PATCH sent → Endpoints seen p50", "ms", pooled(object, 0.5)).Sparse = size != manyServices // Endpoints hold a thousand addresses, and random pods may not be among them
	add("PATCH sent → Endpoints seen p99", "ms", pooled(object, 0.99)).Sparse = size != manyServices
	r = add("slice writes a flip", "writes", perFlip(func(r *flipRun) float64 { return float64(r.written.slices) }))
	r.atMost(1)
	add("Endpoints writes a flip", "writes", perFlip(func(r *flipRun) float64 { return float64(r.written.endpoints) }))
	add("bytes written a flip", "kB", perFlip(func(r *flipRun) float64 {
		return float64(r.written.sliceBytes+r.written.endpointsBytes) / 1000
	}))
	r = add("controller CPU a flip", "ms", perFlip(func(r *flipRun) float64 { return r.cpu.Seconds() * 1000 }))
	withoutInside(r)
	if size == fullService {
		r.ahead(20)
	}
	r.atMost(1)
	add("server CPU a flip", "ms", perFlip(func(r *flipRun) float64 { return r.serverCPU.Seconds() * 1000 })).Ahead = Ahead{}
	return s
}

// withoutInside marks a row that cannot tell the controllers from the server they are in.
func withoutInside(r *Row) {
	delete(r.Values, insideName)
	r.Sparse = true
	r.Ahead.Inside = 0
}

// replaceSection makes the table of rolling replacements.
func replaceSection(title string, columns []string, runs map[string][]*replaceRun, size scale) Section {
	s := Section{Title: title, Columns: columns}
	add := func(name, unit string, of func(*replaceRun) float64) *Row {
		row := Row{Name: name, Unit: unit, Values: map[string]Value{}}
		for column, rs := range runs {
			var each []float64
			pods := 0
			for _, r := range rs {
				each, pods = append(each, of(r)), pods+r.pods
			}
			row.Values[column] = median(each, pods)
		}
		row.compare()
		s.Rows = append(s.Rows, row)
		return &s.Rows[len(s.Rows)-1]
	}
	add("until the API took all writes of pods", "s", func(r *replaceRun) float64 { return r.api.Seconds() }).Ahead = Ahead{}
	add("until slices hold exactly the new pods", "s", func(r *replaceRun) float64 { return r.slices.Seconds() }).ahead(1)
	add("slices right after the last write of a pod", "s", func(r *replaceRun) float64 { return (r.slices - r.api).Seconds() })
	add("until Endpoints do, too", "s", func(r *replaceRun) float64 { return r.endpoints.Seconds() })
	add("slice writes", "writes", func(r *replaceRun) float64 { return float64(r.written.slices) })
	add("Endpoints writes", "writes", func(r *replaceRun) float64 { return float64(r.written.endpoints) })
	add("bytes written", "MB", func(r *replaceRun) float64 { return float64(r.written.sliceBytes+r.written.endpointsBytes) / 1e6 })
	cpu := add("controller CPU", "s", func(r *replaceRun) float64 { return r.cpu.Seconds() })
	cpu.ahead(1)
	if size == fullService {
		cpu.atMost(3)
	}
	add("server CPU", "s", func(r *replaceRun) float64 { return r.serverCPU.Seconds() }).Ahead = Ahead{}
	add("controller memory, peak", "MB", func(r *replaceRun) float64 { return float64(r.peak) / 1e6 }).ahead(1)
	add("controller memory before", "MB", func(r *replaceRun) float64 { return float64(r.memory) / 1e6 })
	add("server memory afterwards", "MB", func(r *replaceRun) float64 { return float64(r.serverMemory) / 1e6 }).Ahead = Ahead{}
	return s
}

// serverFigure is a row of the table of the server itself.
func serverFigure(name, unit string, runs []float64, peer string, limit float64) Row {
	r := Row{Name: name, Unit: unit, Values: map[string]Value{insideName: median(runs, len(runs))}, Peer: peer}
	if limit > 0 {
		r.atMost(limit)
	}
	return r
}

// columnsOf keeps the order in which contenders appear in tables.
func columnsOf[T any](runs map[string][]T) []string {
	var columns []string
	for _, name := range []string{oursName, peerName, limitedName, insideName} {
		if len(runs[name]) > 0 {
			columns = append(columns, name)
		}
	}
	return slices.Clip(columns)
}
