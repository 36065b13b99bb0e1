package dptest

import (
	"context"

	"github.com/endpointd/endpointd/internal/model"
	"github.com/endpointd/endpointd/internal/model/modeltest"
)

// An ObjectName is that of a "Service" or an "EndpointSlice".
type ObjectName struct{ Kind, Namespace, Name string }

// Objects are what the model is told, and what of it changed.
type Objects struct {
	in model.Input
	// changed: name → JSON, nil for an object that is gone.
	changed map[ObjectName][]byte
	lie     func(patch, endpoints string) (string, string) // nil = the truth
}

func (o *Objects) service(n Numbered, text []byte) (err error) {
	o.changed[ObjectName{"Service", n.Key().Namespace, n.Key().Name}] = text
	o.in, err = modeltest.Apply(o.in, string(text))
	return err
}

func (o *Objects) slices(n Numbered, name string, texts [][]byte) (err error) {
	for i, text := range texts {
		o.changed[ObjectName{"EndpointSlice", n.Key().Namespace, sliceName(name, i == 1)}] = text
		if o.in, err = modeltest.Apply(o.in, string(text)); err != nil {
			return err
		}
	}
	return nil
}

func (o *Objects) withoutService(n Numbered) {
	o.changed[ObjectName{"Service", n.Key().Namespace, n.Key().Name}] = nil
	o.in = o.in.WithoutService(n.Key())
}

func (o *Objects) withoutSlices(n Numbered, name string, families ...bool) {
	for _, v6 := range families {
		o.changed[ObjectName{"EndpointSlice", n.Key().Namespace, sliceName(name, v6)}] = nil
		o.in = o.in.WithoutSlice(n.Key().Namespace, sliceName(name, v6))
	}
}

// Put makes a Service what patch and endpoints say, see [Numbered.Service] and [Numbered.Slices].
func (o *Objects) Put(w *World, n Numbered, patch, endpoints string) error {
	if o.lie != nil {
		patch, endpoints = o.lie(patch, endpoints)
	}
	service, err := n.Service(patch)
	if err != nil {
		return err
	}
	slices, err := n.Slices(w, n.Key().Name, endpoints, "")
	if err != nil {
		return err
	}
	if err := o.service(n, service); err != nil {
		return err
	}
	return o.slices(n, n.Key().Name, slices)
}

// Delete removes a Service and its slices.
func (o *Objects) Delete(n Numbered) {
	o.withoutSlices(n, n.Key().Name, false, true)
	o.withoutService(n)
}

// Change changes objects; when it returns, the proxiers do what they say.
func (s *Suite) Change(ctx context.Context, f func(o *Objects) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := &Objects{in: s.in, changed: map[ObjectName][]byte{}, lie: s.lie}
	if err := f(o); err != nil {
		return err
	}
	s.in = o.in
	if s.options.Objects != nil {
		s.options.Objects(o.changed)
	}
	return s.sync(ctx)
}
