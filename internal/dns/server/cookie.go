package server

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"hash"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// Server cookies are the first 8 octets of HMAC-SHA-256 over the client's cookie and address (RFC 7873, section 4.2 and appendix B.2). The form of
// RFC 9018 is for servers that share a secret behind one address; a node shares it with nobody, and forgets it when it stops.
const (
	clientCookie = 8
	serverCookie = 8
)

// secrets are the two that cookies are good for: that of this period and that of the one before.
type secrets struct {
	lifetime time.Duration
	now      atomic.Pointer[secretPair]
	mu       sync.Mutex // held while a new pair is made
}

type secretPair struct {
	keys  [2][32]byte // the newer first
	until time.Time
}

func (s *secrets) init(lifetime time.Duration, now time.Time) {
	s.lifetime = lifetime
	p := &secretPair{until: now.Add(lifetime)}
	for i := range p.keys {
		_, _ = rand.Read(p.keys[i][:]) // it does not fail
	}
	s.now.Store(p)
}

// pair returns the secrets of a time.
func (s *secrets) pair(now time.Time) *secretPair {
	if p := s.now.Load(); now.Before(p.until) {
		return p
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	was := s.now.Load()
	if now.Before(was.until) {
		return was
	}
	p := &secretPair{until: now.Add(s.lifetime)}
	_, _ = rand.Read(p.keys[0][:])
	if p.keys[1] = was.keys[0]; now.Sub(was.until) > s.lifetime {
		_, _ = rand.Read(p.keys[1][:])
	}
	s.now.Store(p)
	return p
}

// A baker makes cookies for one worker without allocating.
type baker struct {
	pair   *secretPair
	macs   [2]hash.Hash
	input  [clientCookie + 16]byte
	sum    [sha256.Size]byte
	result [clientCookie + serverCookie]byte
}

// cookie returns what to say to the client, and whether what it said is a cookie that it got from us.
func (b *baker) cookie(s *secrets, said []byte, client netip.Addr, now time.Time) (full []byte, good bool) {
	if p := s.pair(now); p != b.pair {
		b.pair = p
		for i := range p.keys {
			b.macs[i] = hmac.New(sha256.New, p.keys[i][:])
		}
	}
	copy(b.input[:], said[:clientCookie])
	*(*[16]byte)(b.input[clientCookie:]) = client.As16()
	copy(b.result[:], said[:clientCookie])
	copy(b.result[clientCookie:], b.bake(0))
	if len(said) != clientCookie+serverCookie {
		return b.result[:], false
	}
	good = hmac.Equal(said[clientCookie:], b.result[clientCookie:]) || hmac.Equal(said[clientCookie:], b.bake(1))
	return b.result[:], good
}

func (b *baker) bake(key int) []byte {
	b.macs[key].Reset()
	_, _ = b.macs[key].Write(b.input[:]) // a hash takes everything
	return b.macs[key].Sum(b.sum[:0])[:serverCookie]
}
