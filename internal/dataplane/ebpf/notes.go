package ebpf

import (
	"context"
	"errors"
	"fmt"

	"github.com/cilium/ebpf"

	"github.com/endpointd/endpointd/internal/model"
)

// The programs note in a map to which endpoints clients were led, so that no sockets need to be looked for when another one leaves. An entry
// of ours says whether every socket's endpoint is noted: it is missing in a new map, and programs delete it when they find no room. It's at the key
// that nobody can have, for no pool is 0.
const (
	learning uint32 = 1 // an agent is noting what it finds
	complete uint32 = 2
)

// everythingLeft is what may have left sockets behind at any time: every endpoint noted that is no member now. w is what was just written. It needs a
// table that is right.
func (p *Proxier) everythingLeft(ctx context.Context, w *writes) (left, error) {
	l := left{members: w.members.gone, learn: true} // one of these may be noted a little later
	notes, err := read[programMemberKey, uint32](ctx, p.maps.used)
	if err != nil {
		return l, err
	}
	delete(notes, programMemberKey{})
	for key := range notes {
		member, err := p.isMember(key)
		if err != nil {
			return l, err
		}
		if !member {
			l.members = append(l.members, key)
		}
	}
	return l, nil
}

// forget deletes the notes of which the closer needs to know no more. It must be called before endpoints become members: from then on they are
// noted again.
func (p *Proxier) forget() error {
	for _, key := range p.closer.takeDone() {
		member, err := p.isMember(key)
		if err == nil && !member {
			if err = p.maps.used.Delete(&key); errors.Is(err, ebpf.ErrKeyNotExist) {
				err = nil
			}
		}
		if err != nil {
			return fmt.Errorf("forget an endpoint that left: %w", err)
		}
	}
	return nil
}

// isMember implements memory.
func (p *Proxier) isMember(key programMemberKey) (bool, error) {
	var value uint32
	return p.lookup(func(m *mapSet) *ebpf.Map { return m.members }, &key, &value)
}

// connection implements memory.
func (p *Proxier) connection(cookie uint64) (c programConnection, err error) {
	_, err = p.lookup(func(m *mapSet) *ebpf.Map { return m.connections }, &cookie, &c)
	return c, err
}

// noted implements memory.
func (p *Proxier) noted(key programMemberKey) (model.Protocol, error) {
	var protocol uint32
	_, err := p.lookup(func(m *mapSet) *ebpf.Map { return m.used }, &key, &protocol)
	return model.Protocol(protocol), err
}

// note implements memory.
func (p *Proxier) note(key programMemberKey, protocol model.Protocol) error {
	return p.putUsed(key, uint32(protocol), ebpf.UpdateAny)
}

// isComplete implements memory.
func (p *Proxier) isComplete() (bool, error) {
	var state uint32
	_, err := p.lookup(func(m *mapSet) *ebpf.Map { return m.used }, &programMemberKey{}, &state)
	return state == complete, err
}

// learn implements memory.
func (p *Proxier) learn() error { return p.putUsed(programMemberKey{}, learning, ebpf.UpdateAny) }

// learned implements memory.
func (p *Proxier) learned() error { return p.putUsed(programMemberKey{}, complete, ebpf.UpdateExist) }

func (p *Proxier) putUsed(key programMemberKey, value uint32, flags ebpf.MapUpdateFlags) error {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if err := p.maps.used.Update(&key, &value, flags); err != nil {
		return fmt.Errorf("write to %s: %w", p.maps.used, err)
	}
	return nil
}

// records implements memory.
func (p *Proxier) records(use func(fd int) error) error {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return use(p.maps.records.FD())
}

func (p *Proxier) lookup(of func(*mapSet) *ebpf.Map, key, value any) (found bool, err error) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	err = of(p.maps).Lookup(key, value)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read %s: %w", of(p.maps), err)
	}
	return true, nil
}
