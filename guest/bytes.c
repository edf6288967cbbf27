#define _GNU_SOURCE
#include "bytes.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FIELD_HEADER 6

void *allocate(size_t size) {
    void *p = calloc(1, size ? size : 1);
    if (!p) abort();
    return p;
}

char *copy_text(const void *data, size_t size) {
    char *text = allocate(size + 1);
    if (size) memcpy(text, data, size);
    return text;
}

char *format_text(const char *format, ...) {
    char *text = NULL;
    va_list list;
    va_start(list, format);
    if (vasprintf(&text, format, list) < 0) abort();
    va_end(list);
    return text;
}

size_t bytes_held(const struct bytes *b) { return b->end - b->start; }

uint8_t *bytes_reserve(struct bytes *b, size_t size) {
    if (b->room - b->end >= size) return b->data + b->end;
    size_t held = bytes_held(b);
    if (b->start && b->room >= held + size && b->start >= held) {
        memcpy(b->data, b->data + b->start, held);
    } else {
        size_t room = b->room ? b->room : 256;
        while (room < held + size) room *= 2;
        uint8_t *data = malloc(room);
        if (!data) abort();
        if (held) memcpy(data, b->data + b->start, held);
        if (b->data) explicit_bzero(b->data, b->room);
        free(b->data);
        b->data = data;
        b->room = room;
    }
    b->start = 0;
    b->end = held;
    return b->data + b->end;
}

void bytes_add(struct bytes *b, const void *data, size_t size) {
    if (!size) return;
    memcpy(bytes_reserve(b, size), data, size);
    b->end += size;
}

void bytes_drop(struct bytes *b, size_t size) {
    b->start += size;
    if (b->start < b->end) return;
    b->start = b->end = 0;
    if (b->room > (1u << 20)) bytes_free(b);
}

void bytes_clear_rest(struct bytes *b) {
    if (!b->data) return;
    explicit_bzero(b->data, b->start);
    explicit_bzero(b->data + b->end, b->room - b->end);
}

void bytes_free(struct bytes *b) {
    if (b->data) explicit_bzero(b->data, b->room);
    free(b->data);
    memset(b, 0, sizeof *b);
}

uint32_t load32(const uint8_t *p) {
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

uint64_t load64(const uint8_t *p) { return (uint64_t)load32(p) | (uint64_t)load32(p + 4) << 32; }

void store32(uint8_t *p, uint32_t value) {
    for (int i = 0; i < 4; i++) p[i] = (uint8_t)(value >> (8 * i));
}

void store64(uint8_t *p, uint64_t value) {
    store32(p, (uint32_t)value);
    store32(p + 4, (uint32_t)(value >> 32));
}

void add_field(struct bytes *b, uint16_t tag, const void *data, size_t size) {
    uint8_t header[FIELD_HEADER] = {(uint8_t)tag, (uint8_t)(tag >> 8)};
    store32(header + 2, (uint32_t)size);
    bytes_add(b, header, sizeof header);
    bytes_add(b, data, size);
}

void add_text(struct bytes *b, uint16_t tag, const char *text) { add_field(b, tag, text, strlen(text)); }

void add_number(struct bytes *b, uint16_t tag, uint64_t value) {
    uint8_t raw[8];
    store64(raw, value);
    add_field(b, tag, raw, sizeof raw);
}

/* The field at *at, which moves past it; false at the end or when it does not fit. */
static bool take_field(struct view body, size_t *at, uint16_t *tag, struct view *value) {
    if (body.size - *at < FIELD_HEADER) return false;
    const uint8_t *p = body.data + *at;
    size_t size = load32(p + 2);
    if (body.size - *at - FIELD_HEADER < size) return false;
    *tag = (uint16_t)(p[0] | p[1] << 8);
    *value = (struct view){p + FIELD_HEADER, size};
    *at += FIELD_HEADER + size;
    return true;
}

bool fields_sound(struct view body) {
    size_t at = 0;
    uint16_t tag;
    struct view value;
    while (take_field(body, &at, &tag, &value)) continue;
    return at == body.size;
}

bool next_field(struct view body, uint16_t tag, size_t *cursor, struct view *value) {
    uint16_t found;
    while (take_field(body, cursor, &found, value))
        if (found == tag) return true;
    return false;
}

bool find_field(struct view body, uint16_t tag, struct view *value) {
    size_t cursor = 0;
    return next_field(body, tag, &cursor, value);
}

uint64_t find_number(struct view body, uint16_t tag, uint64_t fallback) {
    struct view value;
    return find_field(body, tag, &value) && value.size == 8 ? load64(value.data) : fallback;
}

static char *text_of(struct view value) {
    return memchr(value.data, 0, value.size) ? NULL : copy_text(value.data, value.size);
}

char *find_text(struct view body, uint16_t tag) {
    struct view value;
    return find_field(body, tag, &value) ? text_of(value) : NULL;
}

char **find_texts(struct view body, uint16_t tag) {
    size_t count = 0, cursor = 0;
    struct view value;
    while (next_field(body, tag, &cursor, &value)) count++;
    char **texts = allocate((count + 1) * sizeof *texts);
    cursor = count = 0;
    while (next_field(body, tag, &cursor, &value))
        if ((texts[count] = text_of(value))) count++;
    return texts;
}

void free_texts(char **texts) {
    if (!texts) return;
    for (char **t = texts; *t; t++) explicit_bzero(*t, strlen(*t)), free(*t);
    free(texts);
}
