#define _GNU_SOURCE
#include "usage.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "protocol.h"

static void processor_time(struct bytes *fields) {
    FILE *file = fopen("/proc/stat", "re");
    unsigned long long user, nice, system, idle, wait, irq, softirq;
    if (file && fscanf(file, "cpu %llu %llu %llu %llu %llu %llu %llu", &user, &nice, &system, &idle, &wait, &irq, &softirq) == 7)
        add_number(fields, TAG_CPU_US, (user + nice + system + irq + softirq) * (1000000u / (unsigned)sysconf(_SC_CLK_TCK)));
    if (file) fclose(file);
}

static void memory(struct bytes *fields) {
    FILE *file = fopen("/proc/meminfo", "re");
    char line[128];
    unsigned long long total = 0, available = 0;
    while (file && fgets(line, sizeof line, file)) {
        sscanf(line, "MemTotal: %llu", &total);
        sscanf(line, "MemAvailable: %llu", &available);
    }
    if (file) fclose(file);
    if (!total) return;
    add_number(fields, TAG_MEMORY, (total - available) << 10);
    add_number(fields, TAG_MEMORY_TOTAL, total << 10);
}

/* Kernel threads have an empty command line; they and the agent itself are not counted. */
static void processes(struct bytes *fields) {
    DIR *directory = opendir("/proc");
    struct dirent *entry;
    uint64_t count = 0;
    while (directory && (entry = readdir(directory))) {
        char path[64], one;
        if (entry->d_name[0] < '1' || entry->d_name[0] > '9') continue;
        snprintf(path, sizeof path, "/proc/%.20s/cmdline", entry->d_name);
        FILE *file = fopen(path, "re");
        if (file && fread(&one, 1, 1, file) == 1 && atoi(entry->d_name) != getpid()) count++;
        if (file) fclose(file);
    }
    if (directory) closedir(directory);
    add_number(fields, TAG_PROCESSES, count);
}

static void network(struct bytes *fields, uint16_t tag, const char *name) {
    DIR *directory = opendir("/sys/class/net");
    struct dirent *entry;
    uint64_t sum = 0;
    while (directory && (entry = readdir(directory))) {
        char path[512];
        unsigned long long value;
        if (entry->d_name[0] == '.' || strcmp(entry->d_name, "lo") == 0) continue;
        snprintf(path, sizeof path, "/sys/class/net/%s/statistics/%s", entry->d_name, name);
        FILE *file = fopen(path, "re");
        if (file && fscanf(file, "%llu", &value) == 1) sum += value;
        if (file) fclose(file);
    }
    if (directory) closedir(directory);
    add_number(fields, tag, sum);
}

void usage_fields(struct bytes *fields) {
    struct statvfs disk;
    processor_time(fields);
    memory(fields);
    processes(fields);
    if (statvfs("/", &disk) == 0) add_number(fields, TAG_DISK_USED, (uint64_t)(disk.f_blocks - disk.f_bfree) * disk.f_frsize);
    network(fields, TAG_RECEIVED, "rx_bytes");
    network(fields, TAG_SENT, "tx_bytes");
}
