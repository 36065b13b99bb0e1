/* connect() of TCP and UDP, getpeername(), and the end of a socket. */
#pragma once

#include "choose.h"

/* Forgets what a socket was told, for it goes elsewhere. */
INLINE void forget(struct bpf_sock_addr *ctx)
{
	struct record *r = sk_storage(&records, ctx->sk, 0, 0);

	if (!r || !(r->state & CONNECTED))
		return;
	r->state &= ~CONNECTED;
	if (ctx->protocol == UDP) {
		u64 cookie = socket_cookie(ctx);

		map_delete(&connections, &cookie);
	}
}

/* Notes that a client was led to an endpoint, before it can be seen in a socket. If there is no room, the agent's own entry goes: it means that
 * everybody else has one. */
INLINE void note(u64 pool, const struct addr_port *endpoint, u32 protocol)
{
	struct member_key key = { .pool = pool, .endpoint = *endpoint };
	struct member_key everybody = {};

	if (map_lookup(&used, &key) || !map_update(&used, &key, &protocol, 0))
		return;
	map_delete(&used, &everybody);
}

/* Replaces a frontend's address by an endpoint's and says whether it did. A socket that cannot be remembered is left alone: it could not be closed
 * when its endpoint goes. */
INLINE int translate_connect(struct bpf_sock_addr *ctx, struct addr_port *to)
{
	struct addr_port endpoint;
	struct frontend f;
	struct record *r;

	to->protocol = ctx->protocol;
	if (to->protocol != TCP && to->protocol != UDP)
		return 0;
	if (!find(ctx, to, &f) || !choose(ctx, &f, &endpoint)) {
		forget(ctx);
		return 0;
	}
	r = sk_storage(&records, ctx->sk, 0, SK_STORAGE_CREATE);
	if (!r)
		return 0;
	note(f.pool, &endpoint, to->protocol);
	if (to->protocol == UDP) {
		struct connection c = { .endpoint = endpoint, .pool = f.pool };
		u64 cookie = socket_cookie(ctx);

		if (map_update(&connections, &cookie, &c, 0))
			return 0;
	}
	r->frontend = *to;
	r->endpoint = endpoint;
	r->pool = f.pool;
	r->state |= CONNECTED;
	*to = endpoint;
	return 1;
}

/* Replaces the endpoint's address by the frontend's that was dialled. */
INLINE int translate_peer(struct bpf_sock_addr *ctx, struct addr_port *peer)
{
	const struct record *r = sk_storage(&records, ctx->sk, 0, 0);

	if (!r || !(r->state & CONNECTED) || !same(&r->endpoint, peer))
		return 0;
	*peer = r->frontend;
	return 1;
}

INLINE void release(struct bpf_sock *ctx)
{
	u64 cookie;

	if (ctx->protocol != UDP || !sk_storage(&records, ctx, 0, 0))
		return;
	cookie = socket_cookie(ctx);
	map_delete(&connections, &cookie);
}
