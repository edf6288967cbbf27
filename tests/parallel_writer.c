/* parallel_writer DEVICE SECONDS DEPTH: as many threads write 4 KiB at random places of their own, straight past the page cache, and read
   256 KiB now and then, so that requests end in another order than they began. Afterwards every block has to hold what was written to it
   last. Prints how many writes were done. Ends with 7 when a request does not come back, with 8 when one fails or a block is another. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { BLOCK = 4096, READ = 256 << 10, MOST = 64, EACH = 256, PATIENCE = 30 };

static int file, depth, ending, wrong, ended[MOST];
static uint64_t written[MOST][EACH], writes[MOST];

static off_t place(int me, int one) { return (off_t)(one * depth + me) * BLOCK; }

static void *room(size_t size) {
    void *found;
    if (posix_memalign(&found, BLOCK, size)) exit(3);
    return found;
}

static void fill(uint64_t *data, off_t at, uint64_t sequence) {
    for (int i = 0; i < BLOCK / 8; i++) data[i] = (uint64_t)at * 0x9e3779b97f4a7c15ull + sequence * 0x100000001b3ull + (uint64_t)i;
}

static void *work(void *argument) {
    int me = (int)(intptr_t)argument;
    uint64_t *data = room(BLOCK), seed = 88172645463325252ull + (uint64_t)me * 7919;
    void *much = room(READ);
    while (!__atomic_load_n(&ending, __ATOMIC_RELAXED)) {
        seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
        int one = (int)(seed % EACH);
        fill(data, place(me, one), written[me][one] + 1);
        if ((seed % 8 == 0 && pread(file, much, READ, (off_t)(seed % 32) * READ) != READ) ||
            pwrite(file, data, BLOCK, place(me, one)) != BLOCK) {
            wrong = 1;
            break;
        }
        written[me][one]++, writes[me]++;
    }
    __atomic_store_n(&ended[me], 1, __ATOMIC_RELEASE);
    return NULL;
}

int main(int argc, char **argv) {
    pthread_t threads[MOST];
    uint64_t *data = room(BLOCK), *found = room(BLOCK), all = 0;
    if (argc != 4 || (file = open(argv[1], O_RDWR | O_DIRECT)) < 0) return 1;
    depth = atoi(argv[3]);
    for (int me = 0; me < depth; me++)
        for (int one = 0; one < EACH; one++) {
            fill(data, place(me, one), 0);
            if (pwrite(file, data, BLOCK, place(me, one)) != BLOCK) return 8;
        }
    for (int me = 0; me < depth; me++) pthread_create(&threads[me], NULL, work, (void *)(intptr_t)me);
    sleep((unsigned)atoi(argv[2]));
    __atomic_store_n(&ending, 1, __ATOMIC_RELAXED);
    for (int me = 0, left = PATIENCE * 10; me < depth; me++) {
        while (!__atomic_load_n(&ended[me], __ATOMIC_ACQUIRE)) {
            if (!left--) return fprintf(stderr, "thread %d waits\n", me), 7;
            usleep(100000);
        }
        all += writes[me];
    }
    for (int me = 0; me < depth; me++)
        for (int one = 0; one < EACH; one++) {
            fill(data, place(me, one), written[me][one]);
            if (pread(file, found, BLOCK, place(me, one)) != BLOCK || memcmp(data, found, BLOCK)) wrong = 1;
        }
    printf("%llu\n", (unsigned long long)all);
    return wrong ? 8 : 0;
}
