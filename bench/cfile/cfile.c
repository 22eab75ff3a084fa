/* cfile: the file server that the examples' fileregion is measured against. A
 * level-triggered epoll loop; for every request openat, fstat, the header with
 * MSG_MORE, sendfile until the socket is full, close. It answers PATH\n and nothing
 * more, and trusts its clients.
 *
 *   gcc -O2 -o cfile cfile.c && ./cfile -root DIR -addr 127.0.0.1:7010
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
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MAXFD = 1 << 16, LINES = 16 << 10, EVENTS = 256 };

struct conn {
	size_t len;   /* bytes of requests in line */
	int file;     /* being sent, or -1 */
	off_t off;
	off_t left;
	int waiting;  /* for EPOLLOUT */
	char line[LINES];
};

static struct conn *conns[MAXFD]; /* by descriptor */
static int ep, root;

static void die(const char *what) {
	fprintf(stderr, "cfile: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void ctl(int op, int fd, unsigned events) {
	struct epoll_event ev = {.events = events, .data.fd = fd};
	if (epoll_ctl(ep, op, fd, &ev) < 0)
		die("epoll_ctl");
}

static void drop(int fd) {
	if (conns[fd]->file >= 0)
		close(conns[fd]->file);
	free(conns[fd]);
	conns[fd] = NULL;
	close(fd);
}

/* body sends the file: 1 when all of it has left, 0 when the socket is full, -1 when
 * the connection is gone. */
static int body(int fd, struct conn *c) {
	while (c->left > 0) {
		ssize_t n = sendfile(fd, c->file, &c->off, c->left > 0x7ffff000 ? 0x7ffff000 : c->left);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN) {
			if (!c->waiting) {
				c->waiting = 1;
				ctl(EPOLL_CTL_MOD, fd, EPOLLOUT);
			}
			return 0;
		}
		if (n <= 0)
			return -1;
		c->left -= n;
	}
	close(c->file);
	c->file = -1;
	if (c->waiting) {
		c->waiting = 0;
		ctl(EPOLL_CTL_MOD, fd, EPOLLIN);
	}
	return 1;
}

/* answer begins the answer to a request; as body. */
static int answer(int fd, struct conn *c, const char *path) {
	char head[64];
	struct stat st;
	int file = openat(root, path, O_RDONLY | O_CLOEXEC);
	int n;
	if (file >= 0 && fstat(file, &st) == 0 && S_ISREG(st.st_mode)) {
		n = snprintf(head, sizeof head, "OK: %lld\r\n", (long long)st.st_size);
	} else {
		if (file >= 0)
			close(file);
		file = -1;
		n = snprintf(head, sizeof head, "ERR: no such file\r\n");
	}
	/* A socket without room for a header is one of a client that does not read. */
	if (send(fd, head, n, MSG_NOSIGNAL | (file >= 0 ? MSG_MORE : 0)) != n) {
		if (file >= 0)
			close(file);
		return -1;
	}
	if (file < 0)
		return 1;
	c->file = file;
	c->off = 0;
	c->left = st.st_size;
	return body(fd, c);
}

/* answers answers what has been asked, one after the other. */
static void answers(int fd, struct conn *c) {
	char *at = c->line, *end;
	int more = 1;
	while (more > 0 && (end = memchr(at, '\n', c->line + c->len - at)) != NULL) {
		*end = 0;
		more = answer(fd, c, at);
		at = end + 1;
	}
	if (more < 0 || (more > 0 && at == c->line && c->len == LINES)) {
		drop(fd);
		return;
	}
	c->len -= at - c->line;
	memmove(c->line, at, c->len);
}

static void readable(int fd, struct conn *c) {
	ssize_t n = read(fd, c->line + c->len, LINES - c->len);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n <= 0) {
		drop(fd);
		return;
	}
	c->len += n;
	answers(fd, c);
}

static void writable(int fd, struct conn *c) {
	int more = c->file >= 0 ? body(fd, c) : -1;
	if (more > 0)
		answers(fd, c);
	else if (more < 0)
		drop(fd);
}

int main(int argc, char **argv) {
	char host[64] = "127.0.0.1";
	const char *dir = ".";
	int port = 7010, one = 1;
	for (int i = 1; i < argc; i += 2) {
		if (i + 1 < argc && strcmp(argv[i], "-addr") == 0) {
			char *colon = strrchr(argv[i + 1], ':');
			if (!colon || colon - argv[i + 1] >= (long)sizeof host) {
				fprintf(stderr, "cfile: bad address %s\n", argv[i + 1]);
				return 2;
			}
			memcpy(host, argv[i + 1], colon - argv[i + 1]);
			host[colon - argv[i + 1]] = 0;
			port = atoi(colon + 1);
		} else if (i + 1 < argc && strcmp(argv[i], "-root") == 0) {
			dir = argv[i + 1];
		} else {
			fprintf(stderr, "usage: cfile [-addr HOST:PORT] [-root DIR]\n");
			return 2;
		}
	}
	root = open(dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (root < 0)
		die(dir);
	struct sockaddr_in sa = {.sin_family = AF_INET, .sin_port = htons(port)};
	socklen_t salen = sizeof sa;
	if (inet_pton(AF_INET, host, &sa.sin_addr) != 1) {
		fprintf(stderr, "cfile: bad host %s\n", host);
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
					if (c >= MAXFD || !(conns[c] = calloc(1, sizeof **conns))) {
						close(c);
						continue;
					}
					conns[c]->file = -1;
					setsockopt(c, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
					ctl(EPOLL_CTL_ADD, c, EPOLLIN);
				}
			} else if (events[i].events & EPOLLOUT) {
				writable(fd, conns[fd]);
			} else if (events[i].events & EPOLLIN) {
				readable(fd, conns[fd]);
			} else {
				drop(fd);
			}
		}
	}
}
