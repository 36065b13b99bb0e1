/* Addresses of a hook's context. */
#pragma once

#include "layout.h"

INLINE int same(const struct addr_port *a, const struct addr_port *b)
{
	return a->addr[0] == b->addr[0] && a->addr[1] == b->addr[1] && a->addr[2] == b->addr[2] && a->addr[3] == b->addr[3] &&
	       a->port == b->port;
}

INLINE void read4(const struct bpf_sock_addr *ctx, struct addr_port *a)
{
	a->addr[0] = 0;
	a->addr[1] = 0;
	a->addr[2] = NETWORK32(0xffff);
	a->addr[3] = ctx->user_ip4;
	a->port = ctx->user_port;
	a->protocol = 0;
}

INLINE void write4(struct bpf_sock_addr *ctx, const struct addr_port *a)
{
	ctx->user_ip4 = a->addr[3];
	ctx->user_port = a->port;
}

/* An IPv6 socket that talks IPv4 has a mapped address here, which is how the maps have it. */
INLINE void read6(const struct bpf_sock_addr *ctx, struct addr_port *a)
{
	a->addr[0] = ctx->user_ip6[0];
	a->addr[1] = ctx->user_ip6[1];
	a->addr[2] = ctx->user_ip6[2];
	a->addr[3] = ctx->user_ip6[3];
	a->port = ctx->user_port;
	a->protocol = 0;
}

INLINE void write6(struct bpf_sock_addr *ctx, const struct addr_port *a)
{
	ctx->user_ip6[0] = a->addr[0];
	ctx->user_ip6[1] = a->addr[1];
	ctx->user_ip6[2] = a->addr[2];
	ctx->user_ip6[3] = a->addr[3];
	ctx->user_port = a->port;
}
