/* Reads or writes blocks of 4 KiB at random places of a device, straight past the guest's page cache; or appends and tells its longest wait.
   guest_writer FILE read|write SECONDS [DEPTH]: prints operations a second.
   guest_writer FILE pause SECONDS: writes one block after another and prints the longest that one took, in microseconds. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/fs.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

enum { BLOCK = 4096, MOST = 64 };

static int file, writing;
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
    if (posix_memalign(&data, BLOCK, BLOCK)) exit(3);
    memset(data, 0x5a + me, BLOCK);
    for (double begun = now(); begun < until;) {
        seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
        off_t at = (off_t)(seed % blocks) * BLOCK;
        if ((writing ? pwrite(file, data, BLOCK, at) : pread(file, data, BLOCK, at)) != BLOCK) exit(4);
        double end = now();
        uint64_t took = (uint64_t)((end - begun) * 1e6);
        if (took > longest[me]) longest[me] = took;
        done[me]++;
        begun = end;
    }
    return NULL;
}

int main(int argc, char **argv) {
    if (argc < 4) return 2;
    int depth = argc > 4 ? atoi(argv[4]) : 1, pause = !strcmp(argv[2], "pause");
    uint64_t size = 0, all = 0, worst = 0;
    pthread_t threads[MOST];
    writing = pause || !strcmp(argv[2], "write");
    file = open(argv[1], (writing ? O_RDWR : O_RDONLY) | O_DIRECT);
    if (file < 0 || ioctl(file, BLKGETSIZE64, &size) || depth < 1 || depth > MOST) return 1;
    blocks = size / BLOCK;
    double seconds = atof(argv[3]), begun = now();
    until = begun + seconds;
    for (int i = 0; i < depth; i++) pthread_create(&threads[i], NULL, work, (void *)(intptr_t)i);
    for (int i = 0; i < depth; i++) pthread_join(threads[i], NULL);
    for (int i = 0; i < depth; i++) {
        all += done[i];
        if (longest[i] > worst) worst = longest[i];
    }
    printf("%.1f %llu\n", (double)all / (now() - begun), (unsigned long long)worst);
}
