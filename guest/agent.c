/* lamella-agent: the init of a microVM; with --service, a service of a machine that has an init of its own; with --stdio, a helper
   inside a container. It serves one host over one channel. */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "channel.h"
#include "freeze.h"
#include "hold.h"
#include "machine.h"
#include "process.h"
#include "streams.h"

#define PORT "org.lamella.agent"
#define MOST_POLLED 1024
#define LONGEST_SLEEP_MS 1000
#define PORT_PAUSE_MS 500

enum end { HOST_GONE, PORT_GONE, TOLD_TO_END };

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

/* Children that end, and for a service the wish of its init. */
static int signals(enum agent_mode mode) {
    sigset_t wanted;
    sigemptyset(&wanted);
    sigaddset(&wanted, SIGCHLD);
    if (mode == MODE_SERVICE) sigaddset(&wanted, SIGTERM), sigaddset(&wanted, SIGINT);
    sigprocmask(SIG_BLOCK, &wanted, NULL);
    return signalfd(-1, &wanted, SFD_NONBLOCK | SFD_CLOEXEC);
}

/* Whether one that asks us to end was among them. */
static bool take_signals(int fd) {
    struct signalfd_siginfo info[8];
    bool ending = false;
    ssize_t got;
    while ((got = read(fd, info, sizeof info)) > 0)
        for (size_t i = 0; i < (size_t)got / sizeof *info; i++) ending |= info[i].ssi_signo != SIGCHLD;
    return ending;
}

static enum end serve(struct channel *c, enum agent_mode mode, int signalled) {
    static struct pollfd list[MOST_POLLED];
    for (;;) {
        bool present = channel_receive(c);
        handle(c);
        if (!present) {
            streams_reset();
            channel_reset(c);
            if (mode == MODE_STDIO) return HOST_GONE;
            if (mode == MODE_SERVICE && c->lost) return PORT_GONE;
        }
        bool again = streams_pump() || c->more;
        channel_flush(c);
        if (streams_off()) machine_off();
        int timeout = again ? 0 : LONGEST_SLEEP_MS;
        list[0] = (struct pollfd){.fd = c->events, .events = POLLIN};
        list[1] = (struct pollfd){.fd = signalled, .events = POLLIN};
        size_t used = 2 + streams_poll(list + 2, MOST_POLLED - 2, &timeout);
        poll(list, used, timeout);
        struct epoll_event events[2];
        epoll_wait(c->events, events, 2, 0);
        if (take_signals(signalled)) return TOLD_TO_END;
    }
}

/* The port may not be there yet, or somebody may still have it open. */
static int service(void) {
    struct channel channel;
    int signalled = signals(MODE_SERVICE);
    machine_serve();
    for (;;) {
        int port = machine_find_port(PORT);
        if (port >= 0) {
            channel_open(&channel, port, port);
            streams_open(&channel, MODE_SERVICE);
            enum end end = serve(&channel, MODE_SERVICE, signalled);
            streams_reset();
            channel_close(&channel);
            if (end == TOLD_TO_END) {
                free(freeze_thaw());
                hold_release();
                return 0;
            }
        }
        struct pollfd told = {.fd = signalled, .events = POLLIN};
        poll(&told, 1, PORT_PAUSE_MS);
        if (take_signals(signalled)) {
            hold_release();
            return 0;
        }
    }
}

int main(int argc, char **argv) {
    struct channel channel;
    signal(SIGPIPE, SIG_IGN);
    if (argc == 2 && strcmp(argv[1], "--stdio") == 0) {
        channel_open(&channel, 0, 1);
        streams_open(&channel, MODE_STDIO);
        serve(&channel, MODE_STDIO, signals(MODE_STDIO));
        return 0;
    }
    if (argc == 2 && strcmp(argv[1], "--service") == 0) return service();
    if (getpid() != 1) {
        fprintf(stderr, "usage: lamella-agent --service | --stdio (or as the init of a machine)\n");
        return 2;
    }
    machine_begin();
    int port = machine_port(PORT);
    if (port < 0) {
        dprintf(2, "lamella-agent: there is no virtio-serial port named %s\n", PORT);
        machine_off();
    }
    channel_open(&channel, port, port);
    streams_open(&channel, MODE_INIT);
    serve(&channel, MODE_INIT, signals(MODE_INIT));
}
