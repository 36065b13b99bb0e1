package podnet

import (
	"context"
	"errors"
	"fmt"
)

// SetPeers makes the routes to the pods of other nodes as given: it adds, changes and removes what differs, and writes nothing
// when nothing does. A route leads via the peer's address of the same family, which must be on a network in common: a peer for which that
// is not so is an error that names it, and the others are done all the same. Routes that the kernel took away (a
// link went down) and a table that somebody flushed come back with the next call.
func (n *Network) SetPeers(ctx context.Context, peers []Peer) error {
	n.peersMu.Lock()
	defer n.peersMu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	wanted, owner, errs := peerRoutes(n.config, peers)
	have, err := n.kernel.observePeerRoutes()
	if err != nil {
		return err
	}
	for _, change := range diffRoutes(have, wanted) {
		if err := n.kernel.changeRoute(change); err != nil {
			if name := owner[change.dst]; name != "" {
				err = fmt.Errorf("node %s: %w", name, err)
			}
			errs = append(errs, err)
		}
	}
	err = n.restoreTable()
	if err == nil {
		var seen []addrRange
		if seen, err = n.kernel.observeInside(); err == nil {
			err = n.kernel.setInside(seen, inside(n.config, peers))
		}
	}
	if err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// restoreTable makes the nftables table again if somebody removed it, with all host ports.
func (n *Network) restoreTable() error {
	there, err := n.kernel.hasTable()
	if err != nil || there {
		return err
	}
	n.log.Warn("nftables table was removed, making it again", "table", Table)
	if err := n.kernel.setTable(n.config); err != nil {
		return err
	}
	n.mu.Lock()
	forwards := n.ports.all()
	n.mu.Unlock()
	return n.kernel.changePorts(forwards, nil)
}
