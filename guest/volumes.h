/* Disks that the host gives the machine beside its own: found by their serial number, mounted where the host says. */
#pragma once
#include "bytes.h"

/* Each answers NULL or a sentence, with *code what kind of refusal it is. */
char *volumes_mount(struct view body, const char **code);   /* again is fine: the file system then grows to its disk */
char *volumes_unmount(struct view body, const char **code); /* not mounted is fine */
size_t volumes_open(int *directories, size_t most);         /* the roots of those that may be written, for freezing; the caller closes them */
void volumes_end(void);                                     /* unmount all: the machine is about to power off */
