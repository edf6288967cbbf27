#define _GNU_SOURCE
#include "volumes.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <mntent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/statfs.h>
#include <unistd.h>

#include "files.h"
#include "machine.h"
#include "protocol.h"

#define MOST 64
#define EXT4_IOC_RESIZE_FS _IOW('f', 16, uint64_t) /* fs/ext4/ext4.h */

static struct volume {
    char *serial, *target;
    bool read_only;
} volumes[MOST];
static size_t count;

static struct volume *find(const char *serial) {
    for (size_t i = 0; i < count; i++)
        if (strcmp(volumes[i].serial, serial) == 0) return &volumes[i];
    return NULL;
}

static void forget(struct volume *v) {
    free(v->serial);
    free(v->target);
    *v = volumes[--count];
}

/* Whether what is mounted last at target is this device. An agent that was started again knows nothing of what it mounted. */
static bool mounted(const char *node, const char *target) {
    char *place = realpath(target, NULL);
    FILE *table = place ? setmntent("/proc/self/mounts", "re") : NULL;
    struct mntent *entry;
    bool found = false;
    while (table && (entry = getmntent(table)))
        if (strcmp(entry->mnt_dir, place) == 0) found = strcmp(entry->mnt_fsname, node) == 0;
    if (table) endmntent(table);
    free(place);
    return found;
}

/* A disk that was made larger: ext4 grows while it is mounted. What it cannot grow to it leaves as it is. */
static void grow(const char *node, const char *target) {
    struct statfs facts;
    uint64_t size = 0;
    int disk = open(node, O_RDONLY | O_CLOEXEC), directory = open(target, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (disk >= 0 && directory >= 0 && ioctl(disk, BLKGETSIZE64, &size) == 0 && fstatfs(directory, &facts) == 0 && facts.f_bsize > 0) {
        uint64_t blocks = size / (uint64_t)facts.f_bsize;
        (void)!ioctl(directory, EXT4_IOC_RESIZE_FS, &blocks);
    }
    if (disk >= 0) close(disk);
    if (directory >= 0) close(directory);
}

static char *release(const char *target, const char **code) {
    if (umount2(target, 0) == 0 || errno == EINVAL || errno == ENOENT) return NULL;
    *code = errno == EBUSY ? "conflict" : "internal";
    return format_text("%s cannot be unmounted: %s", target, errno == EBUSY ? "something uses it" : strerror(errno));
}

static char *mount_at(const char *serial, const char *place, const char *target, const char *kind, bool read_only, const char **code) {
    char *node = machine_disk(serial, place, !machine_has_init()), *problem = NULL;
    struct volume *known = find(serial);
    *code = "not-found";
    if (!node) return format_text("there is no disk with the serial %s", serial);
    *code = "invalid";
    if (known && strcmp(known->target, target) != 0) {
        if ((problem = release(known->target, code))) goto end;
        forget(known);
        known = NULL;
    }
    if (!mounted(node, target)) {
        int number = make_directory(target, 0755, 0, 0);
        if (number) problem = format_text("%s cannot be made: %s", target, strerror(number));
        else if (mount(node, target, kind, MS_NODEV | MS_NOSUID | (read_only ? MS_RDONLY : 0), NULL) < 0)
            problem = format_text("the disk %s cannot be mounted at %s as %s: %s", serial, target, kind, strerror(errno));
    }
    if (!problem && !known) {
        if (count == MOST) problem = format_text("there are too many volumes");
        else volumes[count++] = (struct volume){copy_text(serial, strlen(serial)), copy_text(target, strlen(target)), read_only};
    }
    if (!problem && !read_only) grow(node, target);
end:
    free(node);
    return problem;
}

char *volumes_mount(struct view body, const char **code) {
    char *serial = find_text(body, TAG_SERIAL), *place = find_text(body, TAG_PLACE), *target = find_text(body, TAG_TARGET);
    char *kind = find_text(body, TAG_FILESYSTEM), *problem;
    *code = "invalid";
    if (!serial || !*serial || !target || *target != '/' || !target[1] || !kind || !*kind)
        problem = format_text("a volume has a serial, a target and a file system");
    else
        problem = mount_at(serial, place, target, kind, find_number(body, TAG_READ_ONLY, 0), code);
    free(serial), free(place), free(target), free(kind);
    return problem;
}

char *volumes_unmount(struct view body, const char **code) {
    char *serial = find_text(body, TAG_SERIAL), *place = find_text(body, TAG_PLACE), *target = find_text(body, TAG_TARGET);
    char *node = NULL, *problem = NULL;
    struct volume *known = serial ? find(serial) : NULL;
    *code = "invalid";
    if (!serial || !target) problem = format_text("no volume was named");
    else if (known) problem = release(known->target, code);
    else if ((node = machine_disk(serial, place, false)) && mounted(node, target)) problem = release(target, code);
    if (!problem && known) forget(known);
    free(serial), free(place), free(target), free(node);
    return problem;
}

size_t volumes_open(int *directories, size_t most) {
    size_t opened = 0;
    for (size_t i = 0; i < count && opened < most; i++) {
        if (volumes[i].read_only) continue;
        directories[opened] = open(volumes[i].target, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (directories[opened] >= 0) opened++;
    }
    return opened;
}

void volumes_end(void) {
    for (size_t i = count; i > 0; i--)
        if (umount2(volumes[i - 1].target, 0) < 0) umount2(volumes[i - 1].target, MNT_DETACH);
}
