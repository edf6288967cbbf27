#define _GNU_SOURCE
#include "machine_id.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "bytes.h"

#define MACHINE_ID "/etc/machine-id"
#define TRANSIENT "/run/machine-id" /* systemd mounts this one over an /etc/machine-id that it cannot write, read only */
#define DBUS_ID "/var/lib/dbus/machine-id"
#define BOOT_ID "/proc/sys/kernel/random/boot_id"
#define BOOT_ID_SOURCE "/dev/.lamella-boot-id"
#define MOST_LAYERS 16

/* A random UUID (RFC 9562, version 4), which is what both are. */
static bool make_id(uint8_t id[16]) {
    if (getrandom(id, 16, 0) != 16) return false;
    id[6] = (uint8_t)((id[6] & 0x0f) | 0x40);
    id[8] = (uint8_t)((id[8] & 0x3f) | 0x80);
    return true;
}

/* An empty file, or one that says "uninitialized", identifies nobody yet. */
static bool identifies(const char *path) {
    char text[33] = "";
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    ssize_t got = fd < 0 ? -1 : read(fd, text, 32);
    if (fd >= 0) close(fd);
    return got == 32 && strspn(text, "0123456789abcdefABCDEF") == 32;
}

/* In place: something may be mounted over it. */
static bool overwrite(const char *path, const char *text) {
    size_t size = strlen(text);
    int fd = open(path, O_WRONLY | O_CLOEXEC | O_NONBLOCK);
    bool done = fd >= 0 && pwrite(fd, text, size, 0) == (ssize_t)size && ftruncate(fd, (off_t)size) == 0;
    int kept = errno;
    if (fd >= 0) close(fd);
    errno = kept;
    return done;
}

char *machine_id_renew(void) {
    struct stat s;
    uint8_t id[16];
    char text[34];
    bool own = identifies(MACHINE_ID), bus = lstat(DBUS_ID, &s) == 0 && S_ISREG(s.st_mode) && identifies(DBUS_ID);
    if (!make_id(id)) return format_text("there is no randomness: %s", strerror(errno));
    for (int i = 0; i < 16; i++) snprintf(text + 2 * i, 3, "%02x", id[i]);
    strcpy(text + 32, "\n");
    if (own && !overwrite(MACHINE_ID, text) && (errno != EROFS || !overwrite(TRANSIENT, text))) return format_text(MACHINE_ID " cannot be written: %s", strerror(errno));
    if (bus && !overwrite(DBUS_ID, text)) return format_text(DBUS_ID " cannot be written: %s", strerror(errno));
    return NULL;
}

char *boot_id_renew(void) {
    uint8_t id[16];
    char text[64];
    if (access(BOOT_ID, F_OK) < 0) return NULL;
    if (!make_id(id)) return format_text("there is no randomness: %s", strerror(errno));
    for (int i = 0, at = 0; i < 16; i++) at += snprintf(text + at, sizeof text - (size_t)at, i == 4 || i == 6 || i == 8 || i == 10 ? "-%02x" : "%02x", id[i]);
    strcat(text, "\n");
    unlink(BOOT_ID_SOURCE);
    int fd = open(BOOT_ID_SOURCE, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0444);
    bool made = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text) && fchmod(fd, 0444) == 0;
    if (fd >= 0) close(fd);
    /* A template that was a clone itself has one there already. */
    for (int i = 0; made && i < MOST_LAYERS && umount2(BOOT_ID, MNT_DETACH) == 0; i++) continue;
    bool done = made && mount(BOOT_ID_SOURCE, BOOT_ID, NULL, MS_BIND, NULL) == 0 && mount(NULL, BOOT_ID, NULL, MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL) == 0;
    char *problem = done ? NULL : format_text("the boot's identity cannot be hidden by another: %s", strerror(errno));
    unlink(BOOT_ID_SOURCE);
    return problem;
}
