/* Datagrams of sockets that are not connected, and where those that arrive came from. */
#pragma once

#include "connect.h"

/* The endpoint that a socket's datagrams to a frontend went to before, if it is still one. */
INLINE int last_endpoint(const struct record *r, const struct talk_key *key, u64 pool, struct addr_port *endpoint)
{
	const struct addr_port *last;

	if (r->state & CONNECTED && same(&r->frontend, &key->with)) {
		*endpoint = r->endpoint;
		if (is_member(pool, endpoint))
			return 1;
	}
	last = map_lookup(&requests, key);
	if (!last)
		return 0;
	*endpoint = *last;
	return is_member(pool, endpoint);
}

/* Notes that a socket talks to an address itself, so that answers from there are shown as they are. */
INLINE void forget_talk(struct bpf_sock_addr *ctx, const struct addr_port *to)
{
	const struct record *r = sk_storage(&records, ctx->sk, 0, 0);
	struct talk_key back = {};

	if (!r || !(r->state & SENDER))
		return;
	back.socket = socket_cookie(ctx);
	back.with = *to;
	back.with.protocol = 0;
	map_delete(&replies, &back);
}

INLINE int translate_sendmsg(struct bpf_sock_addr *ctx, struct addr_port *to)
{
	struct talk_key there = {}, back = {};
	const struct addr_port *known;
	struct addr_port endpoint;
	struct frontend f;
	struct record *r;

	if (ctx->protocol != UDP)
		return 0;
	to->protocol = UDP;
	if (!find(ctx, to, &f)) {
		forget_talk(ctx, to);
		return 0;
	}
	r = sk_storage(&records, ctx->sk, 0, SK_STORAGE_CREATE);
	if (!r)
		return 0;
	there.socket = socket_cookie(ctx);
	there.with = *to;
	if (!last_endpoint(r, &there, f.pool, &endpoint)) {
		if (!choose(ctx, &f, &endpoint))
			return 0;
		if (map_update(&requests, &there, &endpoint, 0))
			return 0;
	}
	back.socket = there.socket;
	back.with = endpoint;
	known = map_lookup(&replies, &back);
	if (!known || !same(known, to)) {
		if (map_update(&replies, &back, to, 0))
			return 0;
	}
	r->state |= SENDER;
	*to = endpoint;
	return 1;
}

INLINE int translate_recvmsg(struct bpf_sock_addr *ctx, struct addr_port *from)
{
	const struct record *r;
	const struct addr_port *frontend;
	struct talk_key back = {};

	if (ctx->protocol != UDP)
		return 0;
	r = sk_storage(&records, ctx->sk, 0, 0);
	if (!r)
		return 0;
	if (r->state & CONNECTED && same(&r->endpoint, from)) {
		*from = r->frontend;
		return 1;
	}
	if (!(r->state & SENDER))
		return 0;
	back.socket = socket_cookie(ctx);
	back.with = *from;
	frontend = map_lookup(&replies, &back);
	if (!frontend)
		return 0;
	*from = *frontend;
	return 1;
}
