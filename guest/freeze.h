/* Writes to file systems held, for a snapshot from outside, and let go again at the latest when the deadline has passed. */
#pragma once
#include <sys/types.h>

#include "bytes.h"

#define MOST_FROZEN 64

/* NULL or a sentence; again only moves the deadline. The first is frozen first, the last thawed first. */
char *freeze_these(const int *filesystems, size_t number, uint32_t deadline_ms);
char *freeze_machine(uint32_t deadline_ms);             /* every file system on a block device that is mounted writable */
char *freeze_thaw(void);
bool freeze_holds(void);
bool freeze_held(void);     /* whether everything stood still until the last thaw */
size_t freeze_count(void);
pid_t freeze_keeper(void);  /* the process that thaws in the agent's stead; 0 for none */
void freeze_tick(void);     /* thaws when the deadline has passed */
int freeze_next_tick(void); /* ms until then; -1 for never */
