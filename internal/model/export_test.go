package model

import "maps"

// SameInput says whether b is a, and not only worth as much.
func SameInput(a, b Input) bool {
	return a.log == b.log && a.network.equal(&b.network) &&
		maps.Equal(maps.Collect(a.services.All()), maps.Collect(b.services.All())) &&
		maps.Equal(maps.Collect(a.slices.All()), maps.Collect(b.slices.All())) &&
		maps.Equal(maps.Collect(a.down.All()), maps.Collect(b.down.All()))
}

// LastResort says whether the API has an endpoint for ready of which this node saw the probe fail.
func LastResort(e *Endpoint) bool { return e.lastResort }
