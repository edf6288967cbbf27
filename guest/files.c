#define _GNU_SOURCE
#include "files.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "protocol.h"

int file_describe(const char *path, const char *shown, struct bytes *fields) {
    struct stat s;
    if (lstat(path, &s) < 0) return errno;
    enum file_type type = S_ISREG(s.st_mode) ? FILE_REGULAR : S_ISDIR(s.st_mode) ? FILE_DIRECTORY : S_ISLNK(s.st_mode) ? FILE_SYMLINK : FILE_OTHER;
    add_text(fields, TAG_PATH, shown);
    add_number(fields, TAG_FILE_TYPE, type);
    add_number(fields, TAG_SIZE, (uint64_t)s.st_size);
    add_number(fields, TAG_MODE, s.st_mode & 07777);
    add_number(fields, TAG_UID, s.st_uid);
    add_number(fields, TAG_GID, s.st_gid);
    add_number(fields, TAG_MODIFIED_NS, (uint64_t)s.st_mtim.tv_sec * 1000000000u + (uint64_t)s.st_mtim.tv_nsec);
    if (type == FILE_SYMLINK) {
        char target[4096];
        ssize_t size = readlink(path, target, sizeof target);
        if (size > 0) add_field(fields, TAG_TARGET, target, (size_t)size);
    }
    return 0;
}

int file_open(const char *path, int *file) {
    struct stat s;
    *file = open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    if (*file < 0) return errno;
    int problem = fstat(*file, &s) < 0 ? errno : S_ISDIR(s.st_mode) ? EISDIR : S_ISREG(s.st_mode) ? 0 : EINVAL;
    if (problem) close(*file);
    return problem;
}

/* Follow a link at the end, also one that leads to nothing yet, so that the link stays and its target is written. */
static char *resolved(const char *path) {
    char *current = copy_text(path, strlen(path));
    for (int hops = 0; hops < 40; hops++) {
        char target[4096];
        ssize_t size = readlink(current, target, sizeof target - 1);
        if (size < 0) return current;
        target[size] = 0;
        int parent = (int)(strrchr(current, '/') - current);
        char *next = *target == '/' ? copy_text(target, (size_t)size) : format_text("%.*s/%s", parent, current, target);
        free(current);
        current = next;
    }
    free(current);
    errno = ELOOP;
    return NULL;
}

int upload_begin(struct upload *u, const char *path) {
    struct stat s;
    u->file = -1;
    u->beside = NULL;
    u->target = resolved(path);
    if (!u->target) return errno;
    if (stat(u->target, &s) == 0 && !S_ISREG(s.st_mode)) return S_ISDIR(s.st_mode) ? EISDIR : EINVAL;
    if (u->target[strlen(u->target) - 1] == '/') return ENOENT;
    int parent = (int)(strrchr(u->target, '/') - u->target);
    u->beside = format_text("%.*s/.lamella-XXXXXX", parent, u->target);
    u->file = mkostemp(u->beside, O_CLOEXEC);
    if (u->file >= 0) return 0;
    int problem = errno;
    free(u->beside);
    u->beside = NULL;
    return problem;
}

int upload_write(struct upload *u, const uint8_t *data, size_t size) {
    while (size) {
        ssize_t put = write(u->file, data, size);
        if (put < 0 && errno == EINTR) continue;
        if (put <= 0) return put ? errno : EIO;
        data += put;
        size -= (size_t)put;
    }
    return 0;
}

int upload_finish(struct upload *u) {
    if (fchown(u->file, u->uid, u->gid) < 0 || fchmod(u->file, u->mode) < 0 || rename(u->beside, u->target) < 0) return errno;
    free(u->beside);
    u->beside = NULL;
    return 0;
}

void upload_abandon(struct upload *u) {
    if (u->file >= 0) close(u->file);
    if (u->beside) unlink(u->beside);
    free(u->beside);
    free(u->target);
    u->beside = u->target = NULL;
    u->file = -1;
}

int make_directory(const char *path, unsigned mode, unsigned uid, unsigned gid) {
    struct stat s;
    char *copy = copy_text(path, strlen(path));
    int problem = 0;
    for (char *end = copy + 1; !problem; end++) {
        if (*end && *end != '/') continue;
        char kept = *end;
        *end = 0;
        if (mkdir(copy, 0755) == 0) {
            if (chown(copy, uid, gid) < 0 || chmod(copy, mode) < 0) problem = errno;
        } else if (errno != EEXIST) {
            problem = errno;
        } else if (stat(copy, &s) < 0 || !S_ISDIR(s.st_mode)) {
            problem = ENOTDIR;
        }
        *end = kept;
        if (!kept) break;
    }
    free(copy);
    return problem;
}
