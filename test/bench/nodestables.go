package main

// nodeTable is a table of what upstream has no part in here: its figures are others' and published.
type nodeTable struct {
	title string
	rows  []*nodeRow
}

type nodeRow struct{ Row }

// add is for a figure with its value in each run.
func (t *nodeTable) add(name, unit string, runs []float64, samples int) *nodeRow {
	r := &nodeRow{Row{Name: name, Unit: unit, Values: map[string]Value{}}}
	if len(runs) > 0 {
		r.Values[oursName] = median(runs, samples)
	}
	t.rows = append(t.rows, r)
	return r
}

// spread is for a figure of many samples: their median and their p99, a row each.
func (t *nodeTable) spread(name, unit string, samples []float64) (p50, p99 *nodeRow) {
	one := func(q float64) []float64 {
		if len(samples) == 0 {
			return nil
		}
		return []float64{quantile(samples, q)}
	}
	return t.add(name+" p50", unit, one(0.5), len(samples)), t.add(name+" p99", unit, one(0.99), len(samples))
}

// published says what others have measured of theirs, and where they say so.
func (r *nodeRow) published(text string) *nodeRow {
	r.Published = text
	return r
}

func (t *nodeTable) section() Section {
	s := Section{Title: t.title, Columns: []string{oursName}}
	for _, r := range t.rows {
		s.Rows = append(s.Rows, r.Row)
	}
	return s
}
