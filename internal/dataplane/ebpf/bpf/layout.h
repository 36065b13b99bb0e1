/* Keys and values of the maps. Go has the same types, made from these by bpf2go. No struct has padding: every byte of a key counts. */
#pragma once

#include "kernel.h"

/* An address and a port in network byte order; IPv4 as ::ffff:a.b.c.d. Protocol is that of a frontend, and 0 of an endpoint. */
struct addr_port {
	u32 addr[4];
	u16 port;
	u16 protocol;
};

enum frontend_flag {
	NODE_ONLY = 1, /* a loopback address: in another network namespace it is somebody else's */
};

/* Where a frontend leads. It has its key in it, see find(). */
struct frontend {
	struct addr_port key;
	u32 size; /* slots of the pool, never 0 */
	u64 pool;
	u32 affinity; /* seconds, 0 = none */
	u32 flags;
};

struct slot_key {
	u64 pool;
	u32 index;
	u32 zero;
};

struct member_key {
	u64 pool;
	struct addr_port endpoint;
	u32 zero;
};

/* Whose client has affinity to which endpoint of a pool. */
struct affinity_key {
	u64 client; /* cookie of a network namespace */
	u64 pool;
};

struct affinity {
	struct addr_port endpoint;
	u32 zero;
	u64 used; /* ns of the monotonic clock */
};

enum record_state {
	CONNECTED = 1, /* frontend, endpoint and pool are those of the last connect() */
	SENDER = 2,    /* datagrams to frontends were sent without connect() */
};

/* What a socket was told. It lives as long as the socket. */
struct record {
	struct addr_port frontend;
	struct addr_port endpoint;
	u64 pool;
	u32 state;
	u32 zero;
};

/* What is known of a connected socket by its cookie, where sock_diag does not tell its record: it does for TCP only. */
struct connection {
	struct addr_port endpoint;
	u32 zero;
	u64 pool;
};

/* A socket that is not connected, and somebody it talks to. */
struct talk_key {
	u64 socket; /* cookie */
	struct addr_port with;
	u32 zero;
};
