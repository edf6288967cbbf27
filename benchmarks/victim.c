/* Requests of UNITS of work each, from a schedule of one every PERIOD microseconds for SECONDS; with a PERIOD of 0 one after the other.
   Prints how many were done and, in microseconds, the median and the 99th percentile of how long each took from its due time on.
   With UNITS 0: how many units 10 ms of processor are. */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define MOST 100000

static volatile uint64_t sink;

static void work(long units) {
    uint64_t x = 88172645463325252u;
    for (long unit = 0; unit < units; unit++)
        for (int step = 0; step < 1000; step++) x ^= x << 13, x ^= x >> 7, x ^= x << 17;
    sink = x;
}

static int64_t now(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

static int ascending(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv) {
    static int64_t took[MOST];
    if (argc != 4) return 2;
    long units = atol(argv[1]), period = atol(argv[2]), count = 0;
    int64_t length = atol(argv[3]) * 1000000;
    if (units == 0) {
        int64_t best = INT64_MAX;
        for (int round = 0; round < 20; round++) {
            int64_t began = now(CLOCK_THREAD_CPUTIME_ID);
            work(2000);
            int64_t used = now(CLOCK_THREAD_CPUTIME_ID) - began;
            if (used < best) best = used;
        }
        printf("%ld\n", (long)(2000 * 10000 / best));
        return 0;
    }
    int64_t began = now(CLOCK_MONOTONIC), due = began;
    while (now(CLOCK_MONOTONIC) - began < length && count < MOST) {
        if (period) {
            struct timespec at = {due / 1000000, due % 1000000 * 1000};
            clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL);
        } else {
            due = now(CLOCK_MONOTONIC);
        }
        work(units);
        took[count++] = now(CLOCK_MONOTONIC) - due;
        due += period;
    }
    qsort(took, (size_t)count, sizeof *took, ascending);
    printf("%ld %lld %lld\n", count, (long long)took[count / 2], (long long)took[count * 99 / 100]);
    return 0;
}
