/* Which frontend an address is, and which endpoint a client gets. */
#pragma once

#include "address.h"
#include "maps.h"

/* The cookie of the node's own network namespace; set when the programs are loaded. */
const volatile u64 node_cookie = 0;

/* Copies the frontend that has this key. The kernel may use the memory of an element that was replaced for another one while
 * we read; that writes the key first and we read it last, so a mixture has a wrong key. Then the packets go untranslated. */
INLINE int find(struct bpf_sock_addr *ctx, const struct addr_port *key, struct frontend *copy)
{
	const struct frontend *f = map_lookup(&frontends, key);

	if (!f)
		return 0;
	copy->pool = f->pool;
	copy->size = f->size;
	copy->affinity = f->affinity;
	copy->flags = f->flags;
	BARRIER();
	copy->key = f->key;
	if (!same(&copy->key, key) || copy->key.protocol != key->protocol)
		return 0;
	if (copy->flags & NODE_ONLY)
		return netns_cookie(ctx) == node_cookie;
	return 1;
}

INLINE int is_member(u64 pool, const struct addr_port *endpoint)
{
	struct member_key key = { .pool = pool, .endpoint = *endpoint };

	return map_lookup(&members, &key) != 0;
}

/* Draws an endpoint. While the agent writes, a slot may be missing or have been read half: then it draws again. */
INLINE int draw(const struct frontend *f, struct addr_port *endpoint)
{
#pragma clang loop unroll(disable)
	for (int i = 0; i < 8; i++) {
		struct slot_key key = { .pool = f->pool, .index = (u64)random_u32() * f->size >> 32 };
		const struct addr_port *slot = map_lookup(&slots, &key);

		if (!slot)
			continue;
		*endpoint = *slot;
		if (is_member(f->pool, endpoint))
			return 1;
	}
	return 0;
}

/* Chooses an endpoint, the same one again for a client that has affinity. */
INLINE int choose(struct bpf_sock_addr *ctx, const struct frontend *f, struct addr_port *endpoint)
{
	if (!f->affinity)
		return draw(f, endpoint);

	struct affinity_key key = { .client = netns_cookie(ctx), .pool = f->pool };
	struct affinity *last = map_lookup(&affinities, &key);
	u64 now = ktime_ns();

	if (last && now - last->used <= (u64)f->affinity * 1000000000) {
		*endpoint = last->endpoint;
		if (is_member(f->pool, endpoint)) {
			last->used = now;
			return 1;
		}
	}
	if (!draw(f, endpoint))
		return 0;

	struct affinity value = { .endpoint = *endpoint, .used = now };

	map_update(&affinities, &key, &value, 0);
	return 1;
}
