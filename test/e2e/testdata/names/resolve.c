// Prints the addresses that the C library finds for a name.
#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>

int main(int count, char **args) {
	struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *found;
	int failed = getaddrinfo(count > 1 ? args[1] : "", NULL, &hints, &found);
	if (failed) {
		puts(gai_strerror(failed));
		return 1;
	}
	for (; found; found = found->ai_next) {
		char text[INET6_ADDRSTRLEN];
		const void *addr = found->ai_family == AF_INET ? (void *)&((struct sockaddr_in *)found->ai_addr)->sin_addr
		                                               : (void *)&((struct sockaddr_in6 *)found->ai_addr)->sin6_addr;
		puts(inet_ntop(found->ai_family, addr, text, sizeof text));
	}
}
