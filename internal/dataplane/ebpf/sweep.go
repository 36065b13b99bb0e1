package ebpf

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/endpointd/endpointd/internal/model"
)

// A sweep is one look at the sockets of all namespaces.
type sweep struct {
	*closer
	tcp, udp bool                                // of which protocols
	learning bool                                // note where each socket was led to; false after there was no room for it
	known    map[programMemberKey]bool           // whether it is a member
	stay     map[programMemberKey]model.Protocol // endpoints that are no members, to which sockets stay open
}

func newSweep(c *closer) *sweep {
	return &sweep{closer: c, known: map[programMemberKey]bool{}, stay: map[programMemberKey]model.Protocol{}}
}

// candidate is a socket whose endpoint has left its pool.
type candidate struct {
	socket
	namespace *os.File
}

func (s *socket) key() programMemberKey { return programMemberKey{Pool: s.pool, Endpoint: s.remote} }

// run returns how many sockets it has closed. What goes wrong in one namespace does not keep it from the others.
func (w *sweep) run(ctx context.Context, s *model.Snapshot) (closed int, err error) {
	namespaces, errs := w.open()
	defer func() {
		for _, ns := range namespaces {
			_ = ns.Close()
		}
	}()
	var found []candidate
	for _, ns := range namespaces {
		if ctx.Err() != nil {
			return 0, context.Cause(ctx)
		}
		sockets, err := w.suspects(ns)
		errs = append(errs, err)
		for _, socket := range sockets {
			found = append(found, candidate{socket: socket, namespace: ns})
		}
	}
	if len(found) == 0 {
		return 0, errors.Join(errs...)
	}
	alive := endpointsOf(s, found)
	for _, f := range found {
		if f.protocol == uint8(model.TCP) && alive[f.remote] && (f.state != stateSynSent || f.retries == 0) {
			w.stay[f.key()] = model.TCP
			continue
		}
		if err := destroy(f); err != nil {
			errs = append(errs, err)
			continue
		}
		closed++
	}
	return closed, errors.Join(errs...)
}

// open opens the namespaces, each once.
func (w *sweep) open() (namespaces []*os.File, errs []error) {
	paths := []string{fmt.Sprintf("/proc/self/fd/%d", w.own.Fd())}
	if w.namespaces != nil {
		paths = append(paths, w.namespaces()...)
	}
	seen := map[uint64]bool{} // by inode
	for _, path := range paths {
		ns, err := os.Open(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		var s unix.Stat_t
		if err := unix.Fstat(int(ns.Fd()), &s); err != nil || seen[s.Ino] {
			errs = append(errs, err, ns.Close())
			continue
		}
		seen[s.Ino] = true
		namespaces = append(namespaces, ns)
	}
	return namespaces, errs
}

// suspects are the sockets of a namespace whose endpoint has left the pool that they were led to.
func (w *sweep) suspects(ns *os.File) ([]socket, error) {
	d, err := diagnose(ns)
	if err != nil {
		return nil, err
	}
	defer d.close()
	var found []socket
	for _, protocol := range []model.Protocol{model.TCP, model.UDP} {
		if (protocol == model.TCP && !w.tcp) || (protocol == model.UDP && !w.udp) {
			continue
		}
		for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
			var sockets []socket
			err := w.memory.records(func(fd int) (err error) {
				sockets, err = d.connected(family, uint8(protocol), fd)
				return err
			})
			if err != nil {
				return found, err
			}
			for _, s := range sockets {
				right, err := w.isRight(&s)
				if err != nil {
					return found, err
				}
				if !right {
					found = append(found, s)
				}
			}
		}
	}
	return found, nil
}

// isRight says whether a socket was not translated, or to an endpoint that is still in the pool.
func (w *sweep) isRight(s *socket) (bool, error) {
	if s.protocol == uint8(model.UDP) {
		to, err := w.memory.connection(s.cookie())
		if err != nil {
			return false, err
		}
		if to.Endpoint == s.remote {
			s.pool = to.Pool
		}
	}
	if s.pool == 0 {
		return true, nil
	}
	key := s.key()
	if member, ok := w.known[key]; ok {
		return member, nil
	}
	if w.learning {
		err := w.memory.note(key, model.Protocol(s.protocol))
		if w.learning = err == nil; unlessFull(err) != nil {
			return false, err
		}
	}
	member, err := w.memory.isMember(key)
	if err != nil {
		return false, err
	}
	w.known[key] = member
	return member, nil
}

// endpointKey has the address, protocol and port of an endpoint.
func endpointKey(e *model.Endpoint) model.FrontendKey {
	return model.FrontendKey{Addr: e.Addr(), Protocol: e.Protocol, Port: e.Port()}
}

// endpointsOf are those of the sockets' TCP endpoints that are somewhere in the Snapshot.
func endpointsOf(s *model.Snapshot, found []candidate) map[programAddrPort]bool {
	alive := map[programAddrPort]bool{}
	wanted := map[model.FrontendKey]programAddrPort{}
	for _, f := range found {
		if f.protocol == uint8(model.TCP) {
			at := fromKernel(f.remote)
			wanted[model.FrontendKey{Addr: at.Addr(), Protocol: model.TCP, Port: at.Port()}] = f.remote
		}
	}
	if len(wanted) == 0 || s == nil {
		return alive
	}
	for service := range s.Services() {
		for _, e := range service.Endpoints {
			if k, ok := wanted[endpointKey(e)]; ok {
				alive[k] = true
			}
		}
	}
	return alive
}

func destroy(f candidate) error {
	d, err := diagnose(f.namespace)
	if err != nil {
		return err
	}
	defer d.close()
	return d.destroy(f.socket)
}
