/* Writes to file systems held, for a snapshot from outside, and let go again at the latest when the deadline has passed. */
#pragma once
#include "bytes.h"

char *freeze_one(int filesystem, uint32_t deadline_ms); /* NULL or a sentence; again only moves the deadline */
char *freeze_machine(uint32_t deadline_ms);             /* every file system on a block device that is mounted writable */
char *freeze_thaw(void);
bool freeze_holds(void);
void freeze_tick(void);     /* thaws when the deadline has passed */
int freeze_next_tick(void); /* ms until then; -1 for never */
