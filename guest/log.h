/* What the instance's own process wrote: a ring that forgets the oldest, read through cursors. Offsets count bytes of output. */
#pragma once
#include "bytes.h"

struct cursor {
    uint64_t position; /* of a record in the ring */
    uint32_t skip;     /* bytes of that record already taken */
};

struct piece {
    uint64_t offset, time_ns;
    uint8_t stream;
    size_t size;
};

void log_add(uint8_t stream, const void *data, size_t size);
uint64_t log_start(void); /* offset of the oldest byte kept */
uint64_t log_end(void);   /* offset past the newest */
struct cursor log_at_end(void);
struct cursor log_after(uint64_t offset);
bool log_drained(const struct cursor *c);
/* Copy at most size bytes of one record and move on; false when there is nothing. */
bool log_take(struct cursor *c, uint8_t *data, size_t size, struct piece *piece);
/* How many bytes can be added without losing any that this cursor has not taken. */
size_t log_room(const struct cursor *c);
void log_forget(void); /* all of it; offsets go on */
