package nftables

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/endpointd/endpointd/internal/dataplane"
	"github.com/endpointd/endpointd/internal/dataplane/dptest"
	"github.com/endpointd/endpointd/internal/model"
)

func TestMain(m *testing.M) { dptest.Main(m, false) }

func TestSuite(t *testing.T) {
	wrapped := map[string]func(context.Context) error{}
	for name, damage := range damages() {
		wrapped[name] = func(context.Context) error { return asStranger(damage) }
	}
	dptest.Run(t, dptest.Options{
		New: func(*dptest.World) ([]dataplane.Proxier, error) {
			p, err := New(Options{Untracked: true})
			return []dataplane.Proxier{p}, err
		},
		Check: func(_ context.Context, s *model.Snapshot) error {
			return asStranger(func(p *Proxier) error { return p.differs(s) })
		},
		Damage: wrapped,
	})
}

// asStranger has somebody else at the table in force.
func asStranger(f func(*Proxier) error) error {
	p, err := New(Options{Untracked: true})
	if err != nil {
		return err
	}
	if err = p.find(); err == nil && p.have == nil {
		err = errors.New("there is no table that is right")
	}
	if err == nil {
		err = f(p)
	}
	return errors.Join(err, p.Close())
}

// differs says how the kernel differs from a Snapshot.
func (p *Proxier) differs(s *model.Snapshot) error {
	o, err := p.observe(p.name)
	if err != nil {
		return err
	}
	if o.damage != "" {
		return errors.New(o.damage)
	}
	if c := plan(o.state, nil, s, p.alone); !c.none() {
		return fmt.Errorf("the kernel has something else: %+v", c)
	}
	return nil
}

// damages is what others can do to a table.
func damages() map[string]func(*Proxier) error {
	one := func(o func(*Proxier) order) func(*Proxier) error {
		return func(p *Proxier) error { return p.commit(p.name, []order{o(p)}) }
	}
	flush := func(k kind) func(*Proxier) error {
		return one(func(p *Proxier) order { return p.name.flushSet(k.of(v4)) })
	}
	named := func(name string) chain {
		for _, c := range staticShape(true).chains {
			if c.name == name {
				return c
			}
		}
		panic(name)
	}
	return map[string]func(*Proxier) error{
		"the table is deleted": func(p *Proxier) error { return p.commit(p.name, p.name.removeTable()) },
		"all tables are deleted": func(p *Proxier) error {
			return p.commit(p.name, []order{{kind: unix.NFT_MSG_DELTABLE, what: "everything"}})
		},
		"frontends are flushed":      flush(frontends),
		"slots are flushed":          flush(poolSlots),
		"ClusterIPs are flushed":     flush(addresses),
		"ranges of pods are flushed": flush(podRanges),
		"verdicts are flushed":       flush(pickInternal),
		"the entry is flushed":       flush(entry),
		"a rule is added":            one(func(p *Proxier) order { return p.name.newRules(named("forward"))[0] }),
		"a rule is added in the middle": one(func(p *Proxier) order {
			o := p.name.newRules(named("services4"))[0]
			o.flags = unix.NLM_F_CREATE // at the beginning
			return o
		}),
		"a chain is added": one(func(p *Proxier) order { return p.name.newChain(chain{name: "mine"}) }),
		"a policy is changed": one(func(p *Proxier) order {
			o := p.name.newChain(named("judge-prerouting"))
			at := len(o.body) - len("filter") - 6 - 4 // the value before the type, which is the last
			o.body[at+3] = verdictDrop
			return o
		}),
		"the rules of a chain are deleted": one(func(p *Proxier) order {
			b := attrString(nil, unix.NFTA_RULE_TABLE, string(p.name))
			return order{unix.NFT_MSG_DELRULE, 0, attrString(b, unix.NFTA_RULE_CHAIN, "masquerade4"), "delete rules"}
		}),
		"the table is put to sleep": one(func(p *Proxier) order {
			b := attrString(nil, unix.NFTA_TABLE_NAME, string(p.name))
			return order{unix.NFT_MSG_NEWTABLE, 0, attr32(b, unix.NFTA_TABLE_FLAGS, 1), "sleep"}
		}),
		"a stray slot": func(p *Proxier) error {
			w := p.writer(p.name)
			w.replace(element{set: poolSlots.of(v4), key: []byte("abcdefghijkl"), data: []byte("abcd\x00\x50\x00\x00")}, false, true)
			w.flush()
			return w.err
		},
		"a strange frontend": func(p *Proxier) error {
			w := p.writer(p.name)
			w.replace(element{set: frontends.of(v4), key: []byte("\x0a\x60\x09\x09\x06\x00\x00\x00\x00\x50\x00\x00"), data: make([]byte, frontendData)}, false, true)
			w.flush()
			return w.err
		},
	}
}
