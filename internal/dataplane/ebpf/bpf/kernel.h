/* What the programs use of the kernel's interface for BPF, which never changes: numbers and layouts from the documentation of bpf(2) and
 * bpf-helpers(7). Written here so that a build needs clang alone, without anybody's headers. */
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define SEC(name) __attribute__((section(name), used))
#define INLINE static inline __attribute__((always_inline))

/* The shape of a map is read from the types of such pointers. */
#define NUMBER(name, value) int (*name)[value]
#define TYPE(name, type) type *name

enum map_type {
	MAP_HASH = 1,
	MAP_LRU_HASH = 9,
	MAP_SK_STORAGE = 24,
};

enum map_flag {
	NO_PREALLOC = 1,
};

enum protocol {
	TCP = 6,
	UDP = 17,
};

/* A socket, as far as it matters here. */
struct bpf_sock {
	u32 bound_dev_if;
	u32 family;
	u32 type;
	u32 protocol;
};

/* What a cgroup's hook on an address of a socket is given. Addresses and ports are in network byte order. */
struct bpf_sock_addr {
	u32 user_family;
	u32 user_ip4;
	u32 user_ip6[4];
	u32 user_port;
	u32 family;
	u32 type;
	u32 protocol;
	u32 msg_src_ip4;
	u32 msg_src_ip6[4];
	struct bpf_sock *sk __attribute__((aligned(8)));
};

#define HELPER(number) ((void *)number)

static void *(*const map_lookup)(void *map, const void *key) = HELPER(1);
static long (*const map_update)(void *map, const void *key, const void *value, u64 flags) = HELPER(2);
static long (*const map_delete)(void *map, const void *key) = HELPER(3);
static u64 (*const ktime_ns)(void) = HELPER(5);
static u32 (*const random_u32)(void) = HELPER(7);
static u64 (*const socket_cookie)(void *ctx) = HELPER(46);
static void *(*const sk_storage)(void *map, struct bpf_sock *sk, void *value, u64 flags) = HELPER(107);
static u64 (*const netns_cookie)(void *ctx) = HELPER(122);

enum sk_storage_flag {
	SK_STORAGE_CREATE = 1,
};

/* Keeps loads and stores on their side of it. */
#define BARRIER() asm volatile("" ::: "memory")

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define NETWORK32(x) __builtin_bswap32(x)
#else
#define NETWORK32(x) (x)
#endif
