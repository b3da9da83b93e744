// Executes a script with an io_uring open: its end runs the task's work, and what the kernel knows of the script's file with it.
#define _GNU_SOURCE
#include <sys/syscall.h>
#include <unistd.h>

int main(int count, char **words)
{
    char parameters[120] = {};
    if (syscall(425, 2, parameters) < 0)
        return 3;
    execv(words[1], words + 1);
    return 4;
}
