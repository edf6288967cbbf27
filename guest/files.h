/* Files inside the root, named by absolute paths that the kernel resolves. */
#pragma once
#include <dirent.h>

#include "bytes.h"

struct upload {
    int file;
    char *target, *beside; /* where it shall be, and where it is until then */
    unsigned mode, uid, gid;
};

/* Each returns 0 or an errno. */
int file_describe(const char *path, const char *shown, struct bytes *fields); /* not following a link at the end */
int file_open(const char *path, int *file);                                   /* a regular file, to read */
int upload_begin(struct upload *u, const char *path);
int upload_write(struct upload *u, const uint8_t *data, size_t size);
int upload_finish(struct upload *u);
void upload_abandon(struct upload *u); /* safe after finish */
int make_directory(const char *path, unsigned mode, unsigned uid, unsigned gid);
