#define _GNU_SOURCE
#include "channel.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#define QUEUE_LIMIT (128u << 10)
#define RECEIVE_LIMIT (256u << 10)
#define CHUNK 65536

/* Edge-triggered: a virtio port whose host is gone reports a hang-up for ever, and only the change is of interest. */
static void watch(struct channel *c, int fd, uint32_t what) {
    struct epoll_event event = {.events = what | EPOLLET};
    epoll_ctl(c->events, EPOLL_CTL_ADD, fd, &event);
}

void channel_open(struct channel *c, int input, int output) {
    memset(c, 0, sizeof *c);
    c->input = input;
    c->output = output;
    c->events = epoll_create1(EPOLL_CLOEXEC);
    fcntl(input, F_SETFL, fcntl(input, F_GETFL) | O_NONBLOCK);
    fcntl(output, F_SETFL, fcntl(output, F_GETFL) | O_NONBLOCK);
    if (input == output) {
        watch(c, input, EPOLLIN | EPOLLOUT | EPOLLHUP);
    } else {
        watch(c, input, EPOLLIN | EPOLLHUP);
        watch(c, output, EPOLLOUT);
    }
}

void channel_close(struct channel *c) {
    channel_reset(c);
    close(c->events);
    close(c->input);
    if (c->output != c->input) close(c->output);
}

void channel_reset(struct channel *c) {
    c->synced = false;
    c->consumed = 0;
    bytes_free(&c->received);
    bytes_free(&c->queued);
}

bool channel_receive(struct channel *c) {
    c->more = false;
    while (bytes_held(&c->received) < RECEIVE_LIMIT) {
        uint8_t *room = bytes_reserve(&c->received, CHUNK);
        ssize_t got = read(c->input, room, CHUNK);
        if (got > 0) {
            c->received.end += (size_t)got;
        } else if (got == 0) {
            return false;
        } else if (errno != EINTR) {
            c->lost = errno == ENODEV || errno == EIO;
            return errno == EAGAIN;
        }
    }
    c->more = true;
    return true;
}

/* Look for a greeting; whatever comes before it is of a conversation that is over. */
static int find_greeting(struct channel *c) {
    struct bytes *r = &c->received;
    for (;;) {
        uint8_t *at = memmem(r->data + r->start, bytes_held(r), GREETING_HOST, MAGIC_SIZE);
        if (!at) {
            if (bytes_held(r) >= MAGIC_SIZE) bytes_drop(r, bytes_held(r) - (MAGIC_SIZE - 1));
            return 0;
        }
        bytes_drop(r, (size_t)(at - (r->data + r->start)));
        if (bytes_held(r) < GREETING_SIZE) return 0;
        uint8_t reply[GREETING_SIZE];
        memcpy(reply, r->data + r->start, GREETING_SIZE);
        bytes_drop(r, GREETING_SIZE);
        c->seal = load32(reply + 20);
        if (!c->seal) continue;
        memcpy(reply, GREETING_GUEST, MAGIC_SIZE);
        store32(reply + MAGIC_SIZE, PROTOCOL_VERSION);
        store32(reply + 28, 0);
        bytes_free(&c->queued);
        bytes_add(&c->queued, reply, sizeof reply);
        c->synced = true;
        return 2;
    }
}

int channel_next(struct channel *c, struct frame *frame) {
    struct bytes *r = &c->received;
    if (c->consumed) bytes_drop(r, c->consumed);
    c->consumed = 0;
    if (!bytes_held(r)) return 0;
    if (!c->synced) return find_greeting(c);
    /* A host that starts anew between two frames. */
    size_t held = bytes_held(r), compared = held < MAGIC_SIZE ? held : MAGIC_SIZE;
    if (memcmp(r->data + r->start, GREETING_HOST, compared) == 0) {
        if (held < GREETING_SIZE) return 0;
        return find_greeting(c);
    }
    if (held < HEADER_SIZE) return 0;
    const uint8_t *p = r->data + r->start;
    size_t size = load32(p);
    bool sound = size <= LARGEST_PAYLOAD && p[8] >= FRAME_REQUEST && p[8] <= FRAME_CLOSE && !p[10] && !p[11] && p[9] <= FLAG_MORE;
    if (sound) {
        if (held < HEADER_SIZE + size + SEAL_SIZE) return 0;
        sound = load32(p + HEADER_SIZE + size) == c->seal;
    }
    if (!sound) {
        c->synced = false;
        bytes_free(&c->queued);
        return -1;
    }
    *frame = (struct frame){load32(p + 4), p[8], p[9], {p + HEADER_SIZE, size}};
    c->consumed = HEADER_SIZE + size + SEAL_SIZE;
    return 1;
}

void channel_send_two(struct channel *c, uint32_t stream, uint8_t type, const void *head, size_t head_size, const void *payload, size_t size) {
    if (!c->synced) return;
    uint8_t header[HEADER_SIZE] = {0}, seal[SEAL_SIZE];
    store32(header, (uint32_t)(head_size + size));
    store32(header + 4, stream);
    header[8] = type;
    store32(seal, c->seal);
    bytes_reserve(&c->queued, sizeof header + head_size + size + sizeof seal);
    bytes_add(&c->queued, header, sizeof header);
    bytes_add(&c->queued, head, head_size);
    bytes_add(&c->queued, payload, size);
    bytes_add(&c->queued, seal, sizeof seal);
}

void channel_send(struct channel *c, uint32_t stream, uint8_t type, const void *payload, size_t size) {
    channel_send_two(c, stream, type, NULL, 0, payload, size);
}

void channel_flush(struct channel *c) {
    while (bytes_held(&c->queued)) {
        ssize_t put = write(c->output, c->queued.data + c->queued.start, bytes_held(&c->queued));
        if (put > 0)
            bytes_drop(&c->queued, (size_t)put);
        else if (put == 0 || errno != EINTR)
            return;
    }
}

bool channel_has_room(const struct channel *c) { return c->synced && bytes_held(&c->queued) < QUEUE_LIMIT; }

void channel_forget(struct channel *c) {
    bytes_clear_rest(&c->received);
    bytes_clear_rest(&c->queued);
}
