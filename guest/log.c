#include "log.h"

#include <string.h>
#include <time.h>

#define RING_SIZE (1u << 20) /* a power of two; larger than a window, so that what is on its way to the host is still here */
#define RECORD_HEADER 21     /* u32 size, u8 stream, u64 time, u64 offset */

static uint8_t ring[RING_SIZE];
static uint64_t oldest, newest; /* positions: all bytes ever put into the ring, headers included */
static uint64_t first_offset, next_offset;

static void put(uint64_t position, const uint8_t *data, size_t size) {
    size_t at = position % RING_SIZE, first = size < RING_SIZE - at ? size : RING_SIZE - at;
    memcpy(ring + at, data, first);
    memcpy(ring, data + first, size - first);
}

static void get(uint64_t position, uint8_t *data, size_t size) {
    size_t at = position % RING_SIZE, first = size < RING_SIZE - at ? size : RING_SIZE - at;
    memcpy(data, ring + at, first);
    memcpy(data + first, ring, size - first);
}

void log_add(uint8_t stream, const void *data, size_t size) {
    uint8_t header[RECORD_HEADER];
    struct timespec now;
    while (newest + RECORD_HEADER + size - oldest > RING_SIZE) {
        get(oldest, header, sizeof header);
        oldest += RECORD_HEADER + load32(header);
        first_offset = load64(header + 13) + load32(header);
    }
    clock_gettime(CLOCK_REALTIME, &now);
    store32(header, (uint32_t)size);
    header[4] = stream;
    store64(header + 5, (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec);
    store64(header + 13, next_offset);
    put(newest, header, sizeof header);
    put(newest + RECORD_HEADER, data, size);
    newest += RECORD_HEADER + size;
    next_offset += size;
}

void log_forget(void) {
    memset(ring, 0, sizeof ring);
    oldest = newest;
    first_offset = next_offset;
}

uint64_t log_start(void) { return first_offset; }
uint64_t log_end(void) { return next_offset; }
struct cursor log_at_end(void) { return (struct cursor){newest, 0}; }

struct cursor log_after(uint64_t offset) {
    struct cursor c = {oldest, 0};
    uint8_t header[RECORD_HEADER];
    while (c.position < newest) {
        get(c.position, header, sizeof header);
        uint64_t begins = load64(header + 13), size = load32(header);
        if (begins + size > offset) {
            if (offset > begins) c.skip = (uint32_t)(offset - begins);
            break;
        }
        c.position += RECORD_HEADER + size;
    }
    return c;
}

bool log_drained(const struct cursor *c) { return c->position >= newest; }

bool log_take(struct cursor *c, uint8_t *data, size_t size, struct piece *piece) {
    if (c->position < oldest) *c = (struct cursor){oldest, 0};
    if (c->position >= newest) return false;
    uint8_t header[RECORD_HEADER];
    get(c->position, header, sizeof header);
    size_t whole = load32(header), left = whole - c->skip;
    *piece = (struct piece){load64(header + 13) + c->skip, load64(header + 5), header[4], left < size ? left : size};
    get(c->position + RECORD_HEADER + c->skip, data, piece->size);
    c->skip += (uint32_t)piece->size;
    if (c->skip == whole) *c = (struct cursor){c->position + RECORD_HEADER + whole, 0};
    return true;
}

size_t log_room(const struct cursor *c) {
    uint64_t from = c->position < oldest ? oldest : c->position, used = newest - from;
    return used + RECORD_HEADER >= RING_SIZE ? 0 : RING_SIZE - RECORD_HEADER - (size_t)used;
}
