/* Byte buffers that grow, and the fields inside message bodies: u16 tag, u32 length, value; numbers are u64, all little-endian. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct bytes {
    uint8_t *data;
    size_t start, end, room; /* what is held lies in data[start, end) */
};

/* A view of somebody else's bytes. */
struct view {
    const uint8_t *data;
    size_t size;
};

void *allocate(size_t size); /* zeroed; ends the agent when memory is out */
char *copy_text(const void *data, size_t size);
__attribute__((format(printf, 1, 2))) char *format_text(const char *format, ...);

size_t bytes_held(const struct bytes *b);
void bytes_add(struct bytes *b, const void *data, size_t size);
uint8_t *bytes_reserve(struct bytes *b, size_t size); /* room for size more, not yet held */
void bytes_drop(struct bytes *b, size_t size);        /* forget the first size */
void bytes_clear_rest(struct bytes *b);               /* overwrite what the buffer held before */
void bytes_free(struct bytes *b);                     /* overwritten, too: an environment may be secret */

uint32_t load32(const uint8_t *p);
uint64_t load64(const uint8_t *p);
void store32(uint8_t *p, uint32_t value);
void store64(uint8_t *p, uint64_t value);

void add_field(struct bytes *b, uint16_t tag, const void *data, size_t size);
void add_text(struct bytes *b, uint16_t tag, const char *text);
void add_number(struct bytes *b, uint16_t tag, uint64_t value);

bool fields_sound(struct view body); /* whether the whole body parses */
/* The next field with this tag after *cursor (0 at first); false when there is none. */
bool next_field(struct view body, uint16_t tag, size_t *cursor, struct view *value);
bool find_field(struct view body, uint16_t tag, struct view *value);
uint64_t find_number(struct view body, uint16_t tag, uint64_t fallback);
/* A copy that ends in NUL; NULL when there is none, or a NUL is inside. */
char *find_text(struct view body, uint16_t tag);
/* All values of a tag as a vector that ends in NULL. */
char **find_texts(struct view body, uint16_t tag);
void free_texts(char **texts);
