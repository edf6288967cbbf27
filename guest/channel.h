/* The byte channel to the host: greeting, resynchronisation, frames in both directions. */
#pragma once
#include "bytes.h"
#include "protocol.h"

struct frame {
    uint32_t stream;
    uint8_t type, flags;
    struct view payload; /* valid until the next call of channel_next */
};

struct channel {
    int input, output, events; /* events: an epoll descriptor that is readable when either may have moved */
    bool synced, more; /* more: there may be bytes that were not read yet */
    bool lost;         /* the port itself was taken away */
    uint32_t seal;
    size_t consumed; /* bytes of received that the last frame took */
    struct bytes received, queued;
};

void channel_open(struct channel *c, int input, int output);
void channel_close(struct channel *c);
/* Read what there is. Returns false when the host went away. */
bool channel_receive(struct channel *c);
/* 1: *frame is set; 2: a new conversation began (its greeting is answered); 0: nothing more yet; -1: the stream broke, the conversation is over. */
int channel_next(struct channel *c, struct frame *frame);
void channel_send(struct channel *c, uint32_t stream, uint8_t type, const void *payload, size_t size);
/* The same with a head before the payload, to save a copy. */
void channel_send_two(struct channel *c, uint32_t stream, uint8_t type, const void *head, size_t head_size, const void *payload, size_t size);
void channel_flush(struct channel *c);
/* Whether a data frame may be queued now. */
bool channel_has_room(const struct channel *c);
void channel_reset(struct channel *c);
void channel_forget(struct channel *c); /* what passed through it before */
