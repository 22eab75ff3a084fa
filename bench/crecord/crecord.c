/* crecord: receives connections into files, in C, for the price of everything that is not
 * the kernel's. One connection after the other, blocking: -mode splice goes from socket to
 * pipe to file, -mode copy through one buffer by read and write. A client that closes its
 * sending side is answered by "OK: BYTES".
 *
 *   gcc -O2 -o crecord crecord.c && ./crecord -addr 127.0.0.1:7040 -dir . -mode splice
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { BUF = 256 << 10, CHUNK = 512 << 10 };

static char buf[BUF];

static void die(const char *what) {
	fprintf(stderr, "crecord: %s: %s\n", what, strerror(errno));
	exit(1);
}

static long long copy(int in, int out) {
	long long total = 0;
	ssize_t n;
	while ((n = read(in, buf, sizeof buf)) > 0) {
		for (ssize_t at = 0; at < n;) {
			ssize_t m = write(out, buf + at, n - at);
			if (m < 0)
				die("write");
			at += m;
		}
		total += n;
	}
	if (n < 0)
		die("read");
	return total;
}

static long long splices(int in, int out, int *p) {
	long long total = 0;
	ssize_t n;
	while ((n = splice(in, NULL, p[1], NULL, CHUNK, SPLICE_F_MOVE)) > 0) {
		for (ssize_t left = n; left > 0;) {
			ssize_t m = splice(p[0], NULL, out, NULL, left, SPLICE_F_MOVE);
			if (m <= 0)
				die("splice to file");
			left -= m;
		}
		total += n;
	}
	if (n < 0)
		die("splice");
	return total;
}

int main(int argc, char **argv) {
	const char *addr = "127.0.0.1:7040", *dir = ".", *mode = "splice";
	for (int i = 1; i + 1 < argc; i += 2) {
		if (!strcmp(argv[i], "-addr"))
			addr = argv[i + 1];
		else if (!strcmp(argv[i], "-dir"))
			dir = argv[i + 1];
		else if (!strcmp(argv[i], "-mode"))
			mode = argv[i + 1];
	}
	signal(SIGPIPE, SIG_IGN);
	char host[64];
	const char *colon = strrchr(addr, ':');
	if (!colon || colon - addr >= (long)sizeof host) {
		fprintf(stderr, "crecord: -addr: want host:port\n");
		return 2;
	}
	memcpy(host, addr, colon - addr);
	host[colon - addr] = 0;
	struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(atoi(colon + 1))};
	socklen_t len = sizeof at;
	int l = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1, p[2];
	setsockopt(l, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
	if (l < 0 || inet_pton(AF_INET, host, &at.sin_addr) != 1 || bind(l, (struct sockaddr *)&at, len) < 0 || listen(l, 16) < 0)
		die("listen");
	getsockname(l, (struct sockaddr *)&at, &len);
	printf("listening on tcp://%s:%d\n", host, ntohs(at.sin_port));
	fflush(stdout);
	if (pipe2(p, O_CLOEXEC) < 0 || fcntl(p[0], F_SETPIPE_SZ, CHUNK) < 0)
		die("pipe2");
	for (long i = 1;; i++) {
		int c = accept4(l, NULL, NULL, SOCK_CLOEXEC);
		if (c < 0)
			die("accept");
		char name[4096];
		snprintf(name, sizeof name, "%s/conn-%ld.bin", dir, i);
		int f = open(name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
		if (f < 0)
			die(name);
		long long n = strcmp(mode, "splice") ? copy(c, f) : splices(c, f, p);
		close(f);
		char answer[64];
		int m = snprintf(answer, sizeof answer, "OK: %lld\n", n);
		if (write(c, answer, m) != m)
			die("answer");
		close(c);
	}
}
