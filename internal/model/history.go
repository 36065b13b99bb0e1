package model

// A history is the last changes of a value, each naming what it touched: a list that grows at its head and shares its tail with the values that
// it was made from. The address of the head says which value it is, so that one finds out whether another is its ancestor.
//
// It keeps the last one to two times generation changes: then the older half is forgotten, else a process would keep all it ever saw.
type history struct {
	newer *change // latest first; its last one is the first after older
	older *change // the whole generation before; nil if there is none
	cut   bool    // there were still older ones
}

// generation is how many changes a history surely has. A Snapshot that is further behind costs a full comparison.
const generation = 4096

// A change says that something happened to the Service of a key.
type change struct {
	key  string
	prev *change
	n    int // which one of its generation
}

// with is h after one more change.
func (h history) with(key string) history {
	c := &change{key: key, prev: h.newer, n: 1}
	if h.newer != nil {
		c.n = h.newer.n + 1
	}
	if c.n > generation {
		c.prev, c.n = nil, 1
		return history{newer: c, older: h.newer, cut: h.cut || h.older != nil}
	}
	h.newer = c
	return h
}

// head identifies the value; nil is the empty history's.
func (h history) head() *change {
	if h.newer != nil {
		return h.newer
	}
	return h.older
}

// since is what was touched between was and h, each key once, or false if was is no ancestor or too old to tell.
func (h history) since(was history) (map[string]struct{}, bool) {
	end := was.head()
	touched := map[string]struct{}{}
	for _, c := range [...]*change{h.newer, h.older} {
		for ; c != nil; c = c.prev {
			if c == end {
				return touched, true
			}
			touched[c.key] = struct{}{}
		}
	}
	return touched, end == nil && !h.cut
}
