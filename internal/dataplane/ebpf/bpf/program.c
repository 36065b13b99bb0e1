/* Services for sockets of a cgroup: a client that dials a frontend is connected to an endpoint, and sees the frontend. Every program lets every
 * call pass; what it does not translate is for the rules of the network.
 *
 * What is here has no loop but draw(), which ends, and no policy: which endpoints there are is decided in Go. */

#include "udp.h"

enum { PASS = 1 };

#define HOOK(name, family, translate)                      \
	SEC("cgroup/" #name #family)                       \
	int name##family(struct bpf_sock_addr *ctx)        \
	{                                                  \
		struct addr_port a;                        \
                                                           \
		read##family(ctx, &a);                     \
		if (translate(ctx, &a))                    \
			write##family(ctx, &a);            \
		return PASS;                               \
	}

HOOK(connect, 4, translate_connect)
HOOK(connect, 6, translate_connect)
HOOK(getpeername, 4, translate_peer)
HOOK(getpeername, 6, translate_peer)
HOOK(sendmsg, 4, translate_sendmsg)
HOOK(sendmsg, 6, translate_sendmsg)
HOOK(recvmsg, 4, translate_recvmsg)
HOOK(recvmsg, 6, translate_recvmsg)

SEC("cgroup/sock_release")
int sock_release(struct bpf_sock *ctx)
{
	release(ctx);
	return PASS;
}

char terms[] SEC("license") = "Apache-2.0";
