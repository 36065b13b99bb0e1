package etcd

import (
	"context"
	"fmt"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// Store keeps single values that all servers on one etcd share.
type Store struct{ Client *clientv3.Client }

// CreateOnce writes value under key unless the key exists, in one transaction, and returns what etcd then holds.
// It may be called concurrently, also by several servers: all get the same value.
func (s Store) CreateOnce(ctx context.Context, key string, value []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	res, err := s.Client.Txn(ctx).
		If(clientv3.Compare(clientv3.CreateRevision(key), "=", 0)).
		Then(clientv3.OpPut(key, string(value))).
		Else(clientv3.OpGet(key)).
		Commit()
	if err != nil {
		return nil, fmt.Errorf("etcd key %s: %w", key, err)
	}
	if res.Succeeded {
		return value, nil
	}
	return res.Responses[0].GetResponseRange().Kvs[0].Value, nil
}
