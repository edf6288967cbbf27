/* Everything that runs in the machine but the agent and the kernel stands still (cgroup v2's freezer), until it is let go. */
#pragma once
#include "bytes.h"

/* NULL when all stand still, else a sentence and *code. After deadline_ms (0: never) they are let go whatever happens; again only moves that. */
char *hold_begin(uint32_t deadline_ms, const char **code);
void hold_release(void); /* none held is fine */
bool hold_holds(void);
void hold_keep(void); /* the deadline is off: only hold_release lets go */
void hold_tick(void);
int hold_next_tick(void); /* ms until the deadline; -1 for never */
