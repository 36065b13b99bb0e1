package zone

import (
	"bytes"
	"cmp"
	"net/netip"
	"slices"
	"strings"

	"github.com/cilium/statedb/part"

	"github.com/endpointd/endpointd/internal/dns/wire"
	"github.com/endpointd/endpointd/internal/model"
)

// A pointer is a PTR record that an address has because of a Service.
type pointer struct {
	addr netip.Addr
	name []byte // wire name
	ttl  uint32
}

func (p pointer) compare(other pointer) int {
	return cmp.Or(p.addr.Compare(other.addr), bytes.Compare(p.name, other.name))
}

// podsOf says how many Services of a namespace have a pod with an address as an endpoint.
type podsOf struct {
	namespace string
	services  int
}

// A change is the index of the next Zone on its way.
type change struct {
	*constants
	services   *part.Txn[*service]
	namespaces *part.Txn[int]
	pointers   *part.Txn[[]pointer]
	pods       *part.Txn[[]podsOf]
}

func (z *Zone) change() change {
	return change{z.constants, z.services.Txn(), z.namespaces.Txn(), z.pointers.Txn(), z.pods.Txn()}
}

func (c *change) done() index {
	return index{c.services.Commit(), c.namespaces.Commit(), c.pointers.Commit(), c.pods.Commit()}
}

// replace makes a Service what it is now, nil if there is none anymore.
func (c *change) replace(key model.ServiceKey, now *model.Service) {
	id, ok := serviceKey(key)
	if !ok {
		return
	}
	was, _, _ := c.services.Get(id)
	var next *service
	if now != nil {
		next = c.newService(now)
	}
	if next != nil {
		c.services.Insert(id, next)
	} else {
		c.services.Delete(id)
	}
	if was == nil {
		was = &service{}
	}
	if next == nil {
		next = &service{}
	}
	if was.exists != next.exists {
		c.count(id[1+len(key.Name):], next.exists)
	}
	c.movePointers(was.pointers, next.pointers)
	c.movePods(key.Namespace, was.pods, next.pods)
}

// serviceKey is the key of index.services. It is false if the names are none that the API accepts: nobody can ask for it.
func serviceKey(key model.ServiceKey) ([]byte, bool) {
	if !isLabel(key.Name) || !isLabel(key.Namespace) {
		return nil, false
	}
	id := make([]byte, 0, 2+len(key.Name)+len(key.Namespace))
	return appendLabel(appendLabel(id, key.Name), key.Namespace), true
}

// isLabel says whether a name is made of what the API accepts in one (RFC 1123), so that it is its own lower case and needs no escapes.
func isLabel(name string) bool {
	return name != "" && len(name) <= maxLabel && !strings.ContainsFunc(name, func(r rune) bool {
		return r != '-' && (r < '0' || r > '9') && (r < 'a' || r > 'z')
	})
}

// maxLabel is how long a label may be (RFC 1035, section 2.3.4).
const maxLabel = 63

func appendLabel(dst []byte, label string) []byte {
	return append(append(dst, byte(len(label))), label...)
}

// count a Service more or less of a namespace. The key is kept.
func (c *change) count(namespace []byte, more bool) {
	n, _, _ := c.namespaces.Get(namespace)
	if more {
		n++
	} else {
		n--
	}
	if n == 0 {
		c.namespaces.Delete(namespace)
	} else {
		c.namespaces.Insert(namespace, n)
	}
}

// movePointers makes what a Service had what it has; both are sorted.
func (c *change) movePointers(was, now []pointer) {
	for len(was) > 0 || len(now) > 0 {
		order := 0
		switch {
		case len(was) == 0:
			order = 1
		case len(now) == 0:
			order = -1
		default:
			order = was[0].compare(now[0])
		}
		if order == 0 && was[0].ttl == now[0].ttl {
			was, now = was[1:], now[1:]
			continue
		}
		if order <= 0 {
			c.point(was[0], false)
			was = was[1:]
		} else {
			c.point(now[0], true)
			now = now[1:]
		}
	}
}

func (c *change) point(p pointer, exists bool) {
	key := p.addr.As16()
	list, _, _ := c.pointers.Get(key[:])
	at, found := slices.BinarySearchFunc(list, p, pointer.compare)
	next := make([]pointer, 0, len(list)+1)
	next = append(next, list[:at]...)
	if exists {
		next = append(next, p)
	}
	if found {
		at++
	}
	next = append(next, list[at:]...)
	if len(next) == 0 {
		c.pointers.Delete(key[:])
	} else {
		c.pointers.Insert(key[:], next)
	}
}

// movePods is like movePointers.
func (c *change) movePods(namespace string, was, now []netip.Addr) {
	for len(was) > 0 || len(now) > 0 {
		switch {
		case len(was) == 0 || len(now) > 0 && now[0].Less(was[0]):
			c.countPod(now[0], namespace, 1)
			now = now[1:]
		case len(now) == 0 || was[0].Less(now[0]):
			c.countPod(was[0], namespace, -1)
			was = was[1:]
		default:
			was, now = was[1:], now[1:]
		}
	}
}

func (c *change) countPod(addr netip.Addr, namespace string, n int) {
	key := addr.As16()
	list, _, _ := c.pods.Get(key[:])
	at, found := slices.BinarySearchFunc(list, namespace, func(p podsOf, name string) int { return strings.Compare(p.namespace, name) })
	next := slices.Clone(list)
	if !found {
		next = slices.Insert(next, at, podsOf{namespace: namespace})
	}
	if next[at].services += n; next[at].services == 0 {
		next = slices.Delete(next, at, at+1)
	}
	if len(next) == 0 {
		c.pods.Delete(key[:])
	} else {
		c.pods.Insert(key[:], next)
	}
}

// fits says whether a name is short enough to be one.
func fits(name []byte) bool { return len(name) <= wire.MaxName }
