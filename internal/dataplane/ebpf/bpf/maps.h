/* The maps. How many entries one may have is set when it is loaded; the numbers here are for nobody. */
#pragma once

#include "layout.h"

/* The table: written by the agent, read here. Members are read to make sure of a slot, see choose(). */
struct {
	NUMBER(type, MAP_HASH);
	TYPE(key, struct addr_port);
	TYPE(value, struct frontend);
	NUMBER(max_entries, 1);
	NUMBER(map_flags, NO_PREALLOC);
} frontends SEC(".maps");

struct {
	NUMBER(type, MAP_HASH);
	TYPE(key, struct slot_key);
	TYPE(value, struct addr_port);
	NUMBER(max_entries, 1);
	NUMBER(map_flags, NO_PREALLOC);
} slots SEC(".maps");

struct {
	NUMBER(type, MAP_HASH);
	TYPE(key, struct member_key);
	TYPE(value, u32);
	NUMBER(max_entries, 1);
	NUMBER(map_flags, NO_PREALLOC);
} members SEC(".maps");

/* Endpoints that clients on this node were connected to → protocol. For others, no socket is to be closed. The entry with a key of zeros is the
 * agent's; see note(). */
struct {
	NUMBER(type, MAP_HASH);
	TYPE(key, struct member_key);
	TYPE(value, u32);
	NUMBER(max_entries, 1);
	NUMBER(map_flags, NO_PREALLOC);
} used SEC(".maps");

/* What happened: written here. The agent reads records, through sock_diag, and connections. */
struct {
	NUMBER(type, MAP_SK_STORAGE);
	TYPE(key, int);
	TYPE(value, struct record);
	NUMBER(map_flags, NO_PREALLOC);
} records SEC(".maps");

struct {
	NUMBER(type, MAP_LRU_HASH);
	TYPE(key, struct affinity_key);
	TYPE(value, struct affinity);
	NUMBER(max_entries, 1);
} affinities SEC(".maps");

/* Cookie → where a socket of UDP is connected to; until it is closed. */
struct {
	NUMBER(type, MAP_LRU_HASH);
	TYPE(key, u64);
	TYPE(value, struct connection);
	NUMBER(max_entries, 1);
} connections SEC(".maps");

/* Frontend → endpoint of a socket's datagrams, and back. */
struct {
	NUMBER(type, MAP_LRU_HASH);
	TYPE(key, struct talk_key);
	TYPE(value, struct addr_port);
	NUMBER(max_entries, 1);
} requests SEC(".maps");

struct {
	NUMBER(type, MAP_LRU_HASH);
	TYPE(key, struct talk_key);
	TYPE(value, struct addr_port);
	NUMBER(max_entries, 1);
} replies SEC(".maps");
