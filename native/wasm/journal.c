/*
 * The log of an instance: log.<n> in its state directory, two of them at most, in the frames that qemu/log.py reads. The newest goes
 * on; a torn end was cut off by whoever started us. Nothing a module writes makes it larger than twice SHARE.
 */
#define _GNU_SOURCE
#include "lamella-wasm.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { SHARE = 4 << 20, HEADER = 25 };

static int directory = -1, file = -1;
static unsigned long number;
static uint64_t offset;
static off_t size;

static uint32_t crc_of(uint32_t crc, const unsigned char *data, size_t length) {
    static uint32_t table[256];
    if (!table[1])
        for (uint32_t i = 0; i < 256; i++) {
            uint32_t value = i;
            for (int bit = 0; bit < 8; bit++) value = value & 1 ? 0xedb88320u ^ (value >> 1) : value >> 1;
            table[i] = value;
        }
    for (crc = ~crc; length--; data++) crc = table[(crc ^ *data) & 255] ^ (crc >> 8);
    return ~crc;
}

static void open_file(void) {
    char name[32];
    snprintf(name, sizeof name, "log.%lu", number);
    if (file >= 0) close(file);
    file = openat(directory, name, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600);
    struct stat status;
    size = file >= 0 && !fstat(file, &status) ? status.st_size : 0;
    if (number > 2) {
        snprintf(name, sizeof name, "log.%lu", number - 2);
        unlinkat(directory, name, 0);
    }
}

void journal_write(int kind, const char *data, size_t length) {
    unsigned char header[HEADER];
    struct timespec now;
    if (directory < 0) return;
    if (size && size + HEADER + (off_t)length > SHARE) {
        number++;
        open_file();
    }
    clock_gettime(CLOCK_REALTIME, &now);
    int64_t at = now.tv_sec * 1000000LL + now.tv_nsec / 1000;
    uint32_t length32 = length;
    memcpy(header + 4, &offset, 8);
    memcpy(header + 12, &at, 8);
    memcpy(header + 20, &length32, 4);
    header[24] = kind;
    uint32_t crc = crc_of(crc_of(0, header + 4, HEADER - 4), (const unsigned char *)data, length);
    memcpy(header, &crc, 4);
    struct iovec parts[] = {{header, HEADER}, {(char *)data, length}};
    ssize_t wrote = file < 0 ? -1 : writev(file, parts, 2);
    if (wrote != (ssize_t)(HEADER + length)) {
        /* A full disk: the log has a gap, and no torn frame that would hide what comes later. */
        if (wrote > 0 && ftruncate(file, size)) { /* nothing more can be done */ }
        wrote = 0;
    }
    size += wrote;
    offset += length;
}

void journal_open(int state) {
    directory = state;
    number = 1;
    /* openat: a directory stream of our own, the descriptor stays. */
    int again = openat(state, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *list = again < 0 ? NULL : fdopendir(again);
    for (struct dirent *entry; list && (entry = readdir(list));) {
        char *end;
        if (strncmp(entry->d_name, "log.", 4)) continue;
        unsigned long found = strtoul(entry->d_name + 4, &end, 10);
        if (!*end && found > number) number = found;
    }
    if (list) closedir(list);
    open_file();
    journal_write(0, "", 0);
}
