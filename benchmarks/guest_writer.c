/* Reads or writes blocks at random places of a device or a file, straight past the page cache; or tells how that goes on.
   guest_writer FILE read|write SECONDS [DEPTH]: 4 KiB each; prints operations a second, and the longest that one took, in microseconds.
   guest_writer FILE pause SECONDS: one write after another; prints the same.
   guest_writer FILE trace-read|trace-write|trace-buffered SECONDS DEPTH BLOCK: prints, ten times a second, the monotonic clock and the
   bytes so far; "buffered" writes through the page cache and waits for every block (fdatasync). */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/fs.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { ALIGNED = 4096, MOST = 64 };

static int file, writing, buffered;
static size_t block = ALIGNED;
static uint64_t blocks;
static double until;
static uint64_t done[MOST], longest[MOST];

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void *work(void *argument) {
    int me = (int)(intptr_t)argument;
    uint64_t seed = 88172645463325252ull + (uint64_t)me * 7919;
    void *data;
    if (posix_memalign(&data, ALIGNED, block)) exit(3);
    memset(data, 0x5a + me, block);
    for (double begun = now(); begun < until;) {
        seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
        off_t at = (off_t)(seed % blocks) * (off_t)block;
        if ((writing ? pwrite(file, data, block, at) : pread(file, data, block, at)) != (ssize_t)block) exit(4);
        if (buffered && fdatasync(file)) exit(5);
        double end = now();
        uint64_t took = (uint64_t)((end - begun) * 1e6);
        if (took > longest[me]) longest[me] = took;
        __atomic_add_fetch(&done[me], 1, __ATOMIC_RELAXED);
        begun = end;
    }
    return NULL;
}

static uint64_t all_done(int depth) {
    uint64_t all = 0;
    for (int i = 0; i < depth; i++) all += __atomic_load_n(&done[i], __ATOMIC_RELAXED);
    return all;
}

static uint64_t length(void) {
    uint64_t size = 0;
    struct stat seen;
    if (!ioctl(file, BLKGETSIZE64, &size)) return size;
    return fstat(file, &seen) ? 0 : (uint64_t)seen.st_size;
}

int main(int argc, char **argv) {
    if (argc < 4) return 2;
    int depth = argc > 4 ? atoi(argv[4]) : 1, trace = !strncmp(argv[2], "trace-", 6);
    const char *kind = trace ? argv[2] + 6 : argv[2];
    uint64_t worst = 0;
    pthread_t threads[MOST];
    if (argc > 5) block = (size_t)atol(argv[5]);
    buffered = !strcmp(kind, "buffered");
    writing = buffered || !strcmp(kind, "pause") || !strcmp(kind, "write");
    file = open(argv[1], (writing ? O_RDWR : O_RDONLY) | (buffered ? 0 : O_DIRECT));
    if (file < 0 || block % ALIGNED || depth < 1 || depth > MOST || !(blocks = length() / block)) return 1;
    double seconds = atof(argv[3]), begun = now();
    until = begun + seconds;
    for (int i = 0; i < depth; i++) pthread_create(&threads[i], NULL, work, (void *)(intptr_t)i);
    while (trace && now() < until) {
        printf("%.4f %llu\n", now(), (unsigned long long)(all_done(depth) * block));
        fflush(stdout);
        usleep(100000);
    }
    for (int i = 0; i < depth; i++) pthread_join(threads[i], NULL);
    for (int i = 0; i < depth; i++)
        if (longest[i] > worst) worst = longest[i];
    if (!trace) printf("%.1f %llu\n", (double)all_done(depth) / (now() - begun), (unsigned long long)worst);
}
