/* The streams that the host opened: one request each, its data in both directions, its result. */
#pragma once
#include <poll.h>

#include "channel.h"

enum agent_mode { MODE_INIT, MODE_STDIO, MODE_SERVICE };

void streams_open(struct channel *c, enum agent_mode mode);
void streams_hello(void);                      /* a new conversation: say who we are */
bool streams_frame(const struct frame *frame); /* false when it breaks the protocol */
bool streams_pump(void);                       /* move what can be moved; whether to call again at once */
void streams_reset(void);                      /* the host is gone */
size_t streams_poll(struct pollfd *list, size_t most, int *timeout_ms);
bool streams_off(void); /* the exit is acknowledged and its answer is sent */
