/* lamella-agent: the init of a microVM, or with --stdio a helper inside a container. It serves one host over one channel. */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "channel.h"
#include "machine.h"
#include "process.h"
#include "streams.h"

#define PORT "org.lamella.agent"
#define MOST_POLLED 1024
#define LONGEST_SLEEP_MS 1000

/* Act on everything that has arrived. */
static void handle(struct channel *c) {
    struct frame frame;
    int what;
    while ((what = channel_next(c, &frame)) != 0) {
        if (what == 2) {
            streams_hello();
        } else if (what < 0 || !streams_frame(&frame)) {
            streams_reset();
            c->synced = false;
        }
    }
}

static void serve(struct channel *c, bool init) {
    static struct pollfd list[MOST_POLLED];
    sigset_t wanted;
    sigemptyset(&wanted);
    sigaddset(&wanted, SIGCHLD);
    sigprocmask(SIG_BLOCK, &wanted, NULL);
    int ended_children = signalfd(-1, &wanted, SFD_NONBLOCK | SFD_CLOEXEC);
    for (;;) {
        bool present = channel_receive(c);
        handle(c);
        if (!present) {
            streams_reset();
            channel_reset(c);
            if (!init) return;
        }
        bool again = streams_pump() || c->more;
        channel_flush(c);
        if (streams_off()) machine_off();
        int timeout = again ? 0 : LONGEST_SLEEP_MS;
        list[0] = (struct pollfd){.fd = c->events, .events = POLLIN};
        list[1] = (struct pollfd){.fd = ended_children, .events = POLLIN};
        size_t used = 2 + streams_poll(list + 2, MOST_POLLED - 2, &timeout);
        poll(list, used, timeout);
        struct epoll_event events[2];
        struct signalfd_siginfo info[8];
        epoll_wait(c->events, events, 2, 0);
        while (read(ended_children, info, sizeof info) > 0) continue;
    }
}

int main(int argc, char **argv) {
    struct channel channel;
    signal(SIGPIPE, SIG_IGN);
    if (argc == 2 && strcmp(argv[1], "--stdio") == 0) {
        channel_open(&channel, 0, 1);
        streams_open(&channel, false);
        serve(&channel, false);
        return 0;
    }
    if (getpid() != 1) {
        fprintf(stderr, "usage: lamella-agent --stdio (or as the init of a machine)\n");
        return 2;
    }
    machine_begin();
    int port = machine_port(PORT);
    if (port < 0) {
        dprintf(2, "lamella-agent: there is no virtio-serial port named %s\n", PORT);
        machine_off();
    }
    channel_open(&channel, port, port);
    streams_open(&channel, true);
    serve(&channel, true);
}
