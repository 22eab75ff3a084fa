/* crelay: a TCP relay in C, for the price of everything that is not the kernel's. One
 * level-triggered epoll loop; each direction of a connection has a pipe of its own
 * (-mode splice) or goes through one buffer by read and write (-mode copy). What the
 * other side does not take is kept, and nothing more is read until it has left.
 *
 *   gcc -O2 -o crelay crelay.c && ./crelay -addr 127.0.0.1:7030 -to 127.0.0.1:7000 -mode splice
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { MAXFD = 1 << 20, BUF = 64 << 10, CHUNK = 1 << 20, EVENTS = 256 };

/* end is one socket of a relayed connection: what it sends goes to peer. */
static struct end {
	int peer;     /* descriptor; 0 for none */
	int pipe[2];  /* of this direction, in -mode splice */
	size_t held;  /* bytes in the pipe, or in rest */
	char *rest;   /* in -mode copy */
	size_t off;
	int eof, shut;
	unsigned interest;
} ends[MAXFD];

static char buf[BUF];
static int ep, splicing = 1;

static void die(const char *what) {
	fprintf(stderr, "crelay: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void interest(int fd) {
	struct end *e = &ends[fd];
	unsigned want = 0;
	if (!e->eof && !e->held)
		want |= EPOLLIN;
	if (ends[e->peer].held)
		want |= EPOLLOUT;
	if (want == e->interest)
		return;
	struct epoll_event ev = {.events = want, .data.fd = fd};
	if (epoll_ctl(ep, EPOLL_CTL_MOD, fd, &ev) < 0)
		die("epoll_ctl");
	e->interest = want;
}

static void drop_end(int fd) {
	struct end *e = &ends[fd];
	if (splicing) {
		close(e->pipe[0]);
		close(e->pipe[1]);
	}
	free(e->rest);
	memset(e, 0, sizeof *e);
	close(fd);
}

static void drop(int fd) {
	int peer = ends[fd].peer;
	drop_end(fd);
	drop_end(peer);
}

/* push sends what fd's direction holds to the peer; it returns -1 when that has broken. */
static int push(int fd) {
	struct end *e = &ends[fd];
	if (e->held) {
		ssize_t n = splicing ? splice(e->pipe[0], NULL, e->peer, NULL, e->held, SPLICE_F_MOVE | SPLICE_F_NONBLOCK)
				     : write(e->peer, e->rest + e->off, e->held);
		if (n < 0)
			return errno == EAGAIN || errno == EINTR ? 0 : -1;
		e->held -= n;
		e->off += n;
		if (!e->held && e->rest) {
			free(e->rest);
			e->rest = NULL;
		}
	}
	if (e->eof && !e->held && !e->shut) {
		e->shut = 1;
		if (shutdown(e->peer, SHUT_WR) < 0)
			return -1;
		if (ends[e->peer].shut)
			return -1; /* both directions have ended */
	}
	return 0;
}

static int pull(int fd) {
	struct end *e = &ends[fd];
	if (e->held || e->eof)
		return 0;
	if (splicing) {
		ssize_t n = splice(fd, NULL, e->pipe[1], NULL, CHUNK, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
		if (n < 0)
			return errno == EAGAIN || errno == EINTR ? 0 : -1;
		if (n == 0)
			e->eof = 1;
		e->held = n;
		return push(fd);
	}
	ssize_t n = read(fd, buf, sizeof buf);
	if (n < 0)
		return errno == EAGAIN || errno == EINTR ? 0 : -1;
	if (n == 0) {
		e->eof = 1;
		return push(fd);
	}
	ssize_t w = write(e->peer, buf, n);
	if (w < 0) {
		if (errno != EAGAIN && errno != EINTR)
			return -1;
		w = 0;
	}
	if (w < n) {
		if (!(e->rest = malloc(n - w)))
			die("malloc");
		memcpy(e->rest, buf + w, n - w);
		e->off = 0;
		e->held = n - w;
	}
	return 0;
}

static struct sockaddr_in parse(const char *s) {
	struct sockaddr_in a = {.sin_family = AF_INET};
	char host[64];
	const char *colon = strrchr(s, ':');
	if (!colon || (size_t)(colon - s) >= sizeof host) {
		errno = EINVAL;
		die(s);
	}
	memcpy(host, s, colon - s);
	host[colon - s] = 0;
	a.sin_port = htons(atoi(colon + 1));
	if (inet_pton(AF_INET, host, &a.sin_addr) != 1) {
		errno = EINVAL;
		die(s);
	}
	return a;
}

static void add(int fd, int peer) {
	int on = 1;
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
	struct end *e = &ends[fd];
	e->peer = peer;
	if (splicing && pipe2(e->pipe, O_NONBLOCK | O_CLOEXEC) < 0)
		die("pipe2");
	struct epoll_event ev = {.events = e->interest = EPOLLIN, .data.fd = fd};
	if (epoll_ctl(ep, EPOLL_CTL_ADD, fd, &ev) < 0)
		die("epoll_ctl");
}

int main(int argc, char **argv) {
	const char *addr = "127.0.0.1:7030", *to = "127.0.0.1:7000";
	for (int i = 1; i + 1 < argc; i += 2) {
		if (!strcmp(argv[i], "-addr"))
			addr = argv[i + 1];
		else if (!strcmp(argv[i], "-to"))
			to = argv[i + 1];
		else if (!strcmp(argv[i], "-mode"))
			splicing = strcmp(argv[i + 1], "copy") != 0;
	}
	signal(SIGPIPE, SIG_IGN);
	struct sockaddr_in local = parse(addr), target = parse(to);
	socklen_t size = sizeof local;
	int on = 1, l = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (l < 0 || setsockopt(l, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) < 0 ||
	    bind(l, (struct sockaddr *)&local, sizeof local) < 0 || listen(l, 4096) < 0 ||
	    getsockname(l, (struct sockaddr *)&local, &size) < 0)
		die("listen");
	ep = epoll_create1(EPOLL_CLOEXEC);
	struct epoll_event ev = {.events = EPOLLIN, .data.fd = l}, evs[EVENTS];
	if (ep < 0 || epoll_ctl(ep, EPOLL_CTL_ADD, l, &ev) < 0)
		die("epoll");
	printf("listening on tcp://%s:%d\n", inet_ntoa(local.sin_addr), ntohs(local.sin_port));
	fflush(stdout);
	for (;;) {
		int n = epoll_wait(ep, evs, EVENTS, -1);
		for (int i = 0; i < n; i++) {
			int fd = evs[i].data.fd;
			if (fd == l) {
				int c = accept4(l, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
				if (c < 0)
					continue;
				int t = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
				if (t < 0 || connect(t, (struct sockaddr *)&target, sizeof target) < 0)
					die("connect");
				fcntl(t, F_SETFL, O_NONBLOCK);
				add(c, t);
				add(t, c);
				continue;
			}
			int peer = ends[fd].peer;
			if (!peer)
				continue; /* dropped in this round */
			if ((evs[i].events & EPOLLOUT && push(peer) < 0) ||
			    (evs[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR) && pull(fd) < 0)) {
				drop(fd);
				continue;
			}
			interest(fd);
			interest(peer);
		}
	}
}
