/*
 * lamella-tsc: prints how fast this host's time stamp counter runs, in kHz.
 *
 * A guest under QEMU's TCG sees the host's counter and cannot calibrate it when the host is busy; it is told instead
 * (tsc_early_khz=). /proc/cpuinfo shows the clock of a core at this moment, which is another thing.
 * The best of several short measurements is taken: the one that was interrupted least while it read both clocks.
 */
#include <stdint.h>
#include <stdio.h>
#include <time.h>
#include <x86intrin.h>

struct reading {
    uint64_t ticks, nanoseconds, doubt;
};

static struct reading look(void) {
    struct reading best = {0, 0, UINT64_MAX};
    for (int i = 0; i < 32; i++) {
        struct timespec now;
        uint64_t before = __rdtsc();
        clock_gettime(CLOCK_MONOTONIC_RAW, &now);
        uint64_t doubt = __rdtsc() - before;
        if (doubt < best.doubt) best = (struct reading){before + doubt / 2, now.tv_sec * 1000000000ull + now.tv_nsec, doubt};
    }
    return best;
}

int main(void) {
    struct reading from = look();
    nanosleep(&(struct timespec){0, 50000000}, NULL);
    struct reading to = look();
    double khz = (double)(to.ticks - from.ticks) * 1e6 / (double)(to.nanoseconds - from.nanoseconds);
    printf("%.0f\n", khz);
    return khz < 1000;
}
