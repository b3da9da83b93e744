// SPDX-License-Identifier: Apache-2.0
// new_names SECONDS PROCESSES [exists DIRECTORY]: opens another path each time, as fast as it can; prints how many in all.
// Without `exists` the paths are missing; with it each is made first, so that every call passes.
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    int seconds = atoi(argv[1]), processes = atoi(argv[2]), makes = argc > 3;
    const char *directory = argc > 4 ? argv[4] : "/nonexistent";
    long *count = mmap(0, processes * sizeof(long), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0), all = 0;
    time_t end = time(0) + seconds;
    for (int p = 0; p < processes; p++)
        if (!fork()) {
            char path[300];
            while (time(0) < end)
                for (int i = 0; i < 64; i++) {
                    snprintf(path, sizeof(path), "%s/%d-%ld-xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx", directory, getpid(), count[p]++);
                    int fd = open(path, makes ? O_RDWR | O_CREAT : O_RDONLY, 0600);
                    if (fd >= 0) {
                        unlink(path);
                        close(fd);
                    }
                }
            _exit(0);
        }
    while (wait(0) > 0)
        ;
    for (int p = 0; p < processes; p++)
        all += count[p];
    printf("%ld\n", all);
    return 0;
}
