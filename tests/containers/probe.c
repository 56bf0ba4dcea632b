/*
 * The one program of the tests' images. Nothing else is in them, so it plays every part:
 *   probe                   says that it runs, then answers each TCP connection on port 8080
 *   probe wait              does nothing
 *   probe get ADDR PORT     prints what a TCP server there says
 *   probe flood COUNT PORT ADDR...
 *                           before anything else sends COUNT datagrams to each address, then does as without arguments
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static int open_to(int type, const char *address, const char *port)
{
	struct sockaddr_in v4 = { .sin_family = AF_INET, .sin_port = htons(atoi(port)) };
	struct sockaddr_in6 v6 = { .sin6_family = AF_INET6, .sin6_port = htons(atoi(port)) };
	int is_v4 = inet_pton(AF_INET, address, &v4.sin_addr) == 1, fd;

	if (!is_v4 && inet_pton(AF_INET6, address, &v6.sin6_addr) != 1)
		return -1;
	fd = socket(is_v4 ? AF_INET : AF_INET6, type, 0);
	if (fd >= 0 && connect(fd, is_v4 ? (void *)&v4 : (void *)&v6, is_v4 ? sizeof(v4) : sizeof(v6))) {
		close(fd);
		fd = -1;
	}
	return fd;
}

static int get(const char *address, const char *port)
{
	char text[4096];
	ssize_t size;
	int fd = open_to(SOCK_STREAM, address, port);

	if (fd < 0) {
		fprintf(stderr, "%s %s: %s\n", address, port, strerror(errno));
		return 1;
	}
	/* What a server that waits for a request understands; the others do not read it. */
	if (write(fd, "GET / HTTP/1.0\r\n\r\n", 18) < 0)
		return 1;
	while ((size = read(fd, text, sizeof(text))) > 0)
		fwrite(text, 1, size, stdout);
	return size < 0;
}

/* A datagram that policy drops looks sent: only the receiver can tell. */
static int flood(int count, const char *port, char **addresses)
{
	for (int i = 0; i < count; i++) {
		for (char **address = addresses; *address; address++) {
			int fd = open_to(SOCK_DGRAM, *address, port);

			if (fd < 0 || send(fd, "flood\n", 6, 0) != 6) {
				perror(*address);
				return 1;
			}
			close(fd);
		}
	}
	return 0;
}

static int serve(void)
{
	int server = socket(AF_INET6, SOCK_STREAM, 0), off = 0, client;
	struct sockaddr_in6 any = { .sin6_family = AF_INET6, .sin6_port = htons(8080), .sin6_addr = in6addr_any };
	const char ready[] = "ready\n", answer[] = "from the container\n";

	if (setsockopt(server, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof(off)) ||
	    bind(server, (struct sockaddr *)&any, sizeof(any)) || listen(server, 16))
		return 1;
	if (write(1, ready, strlen(ready)) < 0)
		return 1;
	while ((client = accept(server, NULL, NULL)) >= 0) {
		if (write(client, answer, strlen(answer)) < 0)
			return 1;
		close(client);
	}
	return 1;
}

int main(int count, char **words)
{
	if (count == 4 && !strcmp(words[1], "get"))
		return get(words[2], words[3]);
	while (count == 2 && !strcmp(words[1], "wait"))
		pause();
	if (count > 4 && !strcmp(words[1], "flood") && flood(atoi(words[2]), words[3], words + 4))
		return 1;
	return serve();
}
