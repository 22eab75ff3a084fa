/* cloop: the loop of ../bareloop in C, for the price of Go itself. Level-triggered
 * epoll, one read of up to 64 KiB, one write back; what the socket does not take is
 * kept, and that connection is not read until it has left.
 *
 *   gcc -O2 -o cloop cloop.c && ./cloop -addr 127.0.0.1:7000
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { MAXFD = 1 << 20, BUF = 64 << 10, EVENTS = 256 };

static struct { char *p; size_t off, len; } rest[MAXFD]; /* by descriptor; untouched pages cost nothing */
static char buf[BUF];
static int ep;

static void die(const char *what) {
	fprintf(stderr, "cloop: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void ctl(int op, int fd, unsigned events) {
	struct epoll_event ev = {.events = events, .data.fd = fd};
	if (epoll_ctl(ep, op, fd, &ev) < 0)
		die("epoll_ctl");
}

static void drop(int fd) {
	free(rest[fd].p);
	rest[fd].p = NULL;
	close(fd);
}

static void readable(int fd) {
	ssize_t n = read(fd, buf, sizeof buf);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n <= 0) {
		drop(fd);
		return;
	}
	ssize_t w = write(fd, buf, n);
	if (w < 0 && (errno == EAGAIN || errno == EINTR))
		w = 0;
	if (w < 0) {
		drop(fd);
	} else if (w < n) {
		rest[fd].p = malloc(n - w);
		if (!rest[fd].p)
			die("malloc");
		memcpy(rest[fd].p, buf + w, n - w);
		rest[fd].off = 0;
		rest[fd].len = n - w;
		ctl(EPOLL_CTL_MOD, fd, EPOLLOUT);
	}
}

static void writable(int fd) {
	if (!rest[fd].p) { /* error or hangup without anything to send */
		drop(fd);
		return;
	}
	ssize_t w = write(fd, rest[fd].p + rest[fd].off, rest[fd].len);
	if (w < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (w < 0) {
		drop(fd);
		return;
	}
	rest[fd].off += w;
	rest[fd].len -= w;
	if (rest[fd].len == 0) {
		free(rest[fd].p);
		rest[fd].p = NULL;
		ctl(EPOLL_CTL_MOD, fd, EPOLLIN);
	}
}

int main(int argc, char **argv) {
	char host[64] = "127.0.0.1";
	int port = 7000, one = 1;
	if (argc == 3 && strcmp(argv[1], "-addr") == 0) {
		char *colon = strrchr(argv[2], ':');
		if (!colon || colon - argv[2] >= (long)sizeof host) {
			fprintf(stderr, "cloop: bad address %s\n", argv[2]);
			return 2;
		}
		memcpy(host, argv[2], colon - argv[2]);
		host[colon - argv[2]] = 0;
		port = atoi(colon + 1);
	} else if (argc != 1) {
		fprintf(stderr, "usage: cloop [-addr HOST:PORT]\n");
		return 2;
	}
	struct sockaddr_in sa = {.sin_family = AF_INET, .sin_port = htons(port)};
	socklen_t salen = sizeof sa;
	if (inet_pton(AF_INET, host, &sa.sin_addr) != 1) {
		fprintf(stderr, "cloop: bad host %s\n", host);
		return 2;
	}
	signal(SIGPIPE, SIG_IGN);
	int ln = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	setsockopt(ln, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
	if (bind(ln, (struct sockaddr *)&sa, sizeof sa) < 0)
		die("bind");
	if (listen(ln, 4096) < 0)
		die("listen");
	getsockname(ln, (struct sockaddr *)&sa, &salen);
	ep = epoll_create1(EPOLL_CLOEXEC);
	ctl(EPOLL_CTL_ADD, ln, EPOLLIN);
	printf("listening on tcp://%s:%d\n", host, ntohs(sa.sin_port));
	fflush(stdout);

	struct epoll_event events[EVENTS];
	for (;;) {
		int n = epoll_wait(ep, events, EVENTS, -1);
		for (int i = 0; i < n; i++) {
			int fd = events[i].data.fd;
			if (fd == ln) {
				int c;
				while ((c = accept4(ln, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
					if (c >= MAXFD) {
						close(c);
						continue;
					}
					setsockopt(c, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
					ctl(EPOLL_CTL_ADD, c, EPOLLIN);
				}
			} else if (events[i].events & EPOLLIN) {
				readable(fd);
			} else {
				writable(fd);
			}
		}
	}
}
