// SPDX-License-Identifier: Apache-2.0
/* The first thing that a container does: it makes IPv4 sockets until one is denied, for a second at most.
   Prints how many it got, the microseconds from its start to the denial, and the errno of that (0: none was denied). */
#include <errno.h>
#include <stdio.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static long microseconds(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000L + now.tv_nsec / 1000;
}

int main(void)
{
	long began = microseconds(), acts = 0;
	int why = 0;

	while (microseconds() - began < 1000000L) {
		int fd = socket(AF_INET, SOCK_DGRAM, 0);
		if (fd < 0) {
			why = errno;
			break;
		}
		close(fd);
		acts++;
	}
	printf("%ld %ld %d\n", acts, microseconds() - began, why);
	return 0;
}
