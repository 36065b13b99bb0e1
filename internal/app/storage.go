package app

import (
	"context"
	"errors"

	"github.com/endpointd/endpointd/internal/apiserver/etcd"
	"github.com/endpointd/endpointd/internal/apiserver/pki"
)

// storage is the etcd that the API uses.
type storage struct {
	etcd.External
	embedded *etcd.Server // nil with an external cluster
}

// openStorage opens etcd and makes the certificates; embedded, both at once, for neither needs the other.
func openStorage(ctx context.Context, o ServerOptions, dir *folder, names pki.Options) (*storage, *pki.Files, error) {
	if len(o.Etcd.Servers) > 0 {
		if err := join(ctx, o.Etcd, dir.pki()); err != nil {
			return nil, nil, err
		}
		files, err := pki.Ensure(dir.pki(), names)
		return &storage{External: o.Etcd}, files, err
	}
	var server *etcd.Server
	started := make(chan error, 1)
	go func() {
		var err error
		server, err = etcd.Start(ctx, etcd.Options{Dir: dir.etcd(), Logger: o.Logger})
		started <- err
	}()
	files, err := pki.Ensure(dir.pki(), names)
	if startErr := <-started; startErr != nil {
		return nil, nil, startErr
	}
	s := &storage{External: etcd.External{Servers: server.Endpoints()}, embedded: server}
	if err != nil {
		s.close()
		return nil, nil, err
	}
	return s, files, nil
}

// join takes the CA that all servers on this etcd share.
func join(ctx context.Context, e etcd.External, pkiDir string) error {
	if err := etcd.Check(ctx, e); err != nil {
		return err
	}
	client, err := etcd.Open(e)
	if err != nil {
		return err
	}
	defer client.Close() //nolint:errcheck // every write was acknowledged
	return pki.Join(ctx, pkiDir, etcd.Store{Client: client}, pki.Options{})
}

// failed yields an error when etcd can not go on; nil, which never yields, for one that is not ours.
func (s *storage) failed() <-chan error {
	if s.embedded == nil {
		return nil
	}
	return s.embedded.Err()
}

func (s *storage) close() {
	if s.embedded != nil {
		s.embedded.Close()
	}
}

func isStorage(err error) bool { return errors.As(err, new(errStorage)) }
