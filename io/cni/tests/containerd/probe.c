/* The one program of the test's image: says that it runs, then answers each TCP connection on port 8080. Nothing else. */
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

int main(void)
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
