/*
 * Reads 4 KiB blocks of a disk past the page cache, from as many CPUs as it
 * has queues, with so many requests at a time on each: what dd cannot do.
 * Static, for a guest that has nothing else.
 *
 * Usage: load DISK QUEUES DEPTH REQUESTS
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { BLOCK = 4096, MAX_DEPTH = 256, BLOCKS = 16384 };

static void check(int ok, const char *what)
{
    if (!ok) {
        perror(what);
        _exit(1);
    }
}

/* Every other block, so that nobody makes one request of two. */
static long long place(long n)
{
    return n * 2 % BLOCKS * BLOCK;
}

static void work(const char *disk, int cpu, long depth, long requests)
{
    static struct iocb iocbs[MAX_DEPTH];
    struct iocb *list[MAX_DEPTH];
    struct io_event events[MAX_DEPTH];
    aio_context_t context = 0;
    cpu_set_t cpus;
    long sent, done = 0;
    char *data = mmap(NULL, depth * BLOCK, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    int fd = open(disk, O_RDONLY | O_DIRECT);

    check(fd >= 0, disk);
    check(data != MAP_FAILED, "mmap");
    CPU_ZERO(&cpus);
    CPU_SET(cpu, &cpus);
    check(!sched_setaffinity(0, sizeof(cpus), &cpus), "sched_setaffinity");
    check(!syscall(SYS_io_setup, depth, &context), "io_setup");

    for (sent = 0; sent < depth; sent++) {
        iocbs[sent] = (struct iocb) {
            .aio_lio_opcode = IOCB_CMD_PREAD,
            .aio_fildes = fd,
            .aio_buf = (unsigned long)(data + sent * BLOCK),
            .aio_nbytes = BLOCK,
            .aio_offset = place(sent),
        };
        list[sent] = &iocbs[sent];
    }
    check(syscall(SYS_io_submit, context, depth, list) == depth, "io_submit");
    while (done < requests) {
        long more = 0;
        long n = syscall(SYS_io_getevents, context, 1, depth, events, NULL);

        check(n > 0, "io_getevents");
        for (long i = 0; i < n; i++) {
            struct iocb *iocb = (struct iocb *)(unsigned long)events[i].obj;

            check(events[i].res == BLOCK, "read");
            if (sent < requests) {
                iocb->aio_offset = place(sent++);
                list[more++] = iocb;
            }
        }
        done += n;
        check(!more || syscall(SYS_io_submit, context, more, list) == more,
              "io_submit");
    }
}

int main(int argc, char **argv)
{
    int queues = argc == 5 ? atoi(argv[2]) : 0;
    long depth = queues ? atol(argv[3]) : 0;
    int status, failed = 0;

    if (depth < 1 || depth > MAX_DEPTH || atol(argv[4]) < depth) {
        fprintf(stderr, "Usage: load DISK QUEUES DEPTH REQUESTS\n");
        return 2;
    }
    for (int cpu = 0; cpu < queues; cpu++) {
        if (!fork()) {
            work(argv[1], cpu, depth, atol(argv[4]));
            _exit(0);
        }
    }
    while (wait(&status) > 0) {
        failed |= status;
    }
    return failed ? 1 : 0;
}
