/*
 * The monitor of one worker: takes its output, writes the log, tells how it ended. It outlives the daemon, has no capabilities, and
 * looks at no byte of what the module wrote.
 *
 * It speaks in packets on a socket: the connection that came with the order, and whoever connects to the listener.
 *   to us:    S start   K<signal> interrupt   A attach   W tell when the log grows   I<bytes> input   Z end of input
 *   from us:  H<state> hello   R ready   B begun   F|D<code><text> not made   A attached   O|E<bytes> output   G grown   X<code><text> ended
 * An attached reader that does not read holds the module up, never us: nothing is read from the module until it has.
 */
#define _GNU_SOURCE
#include "lamella-wasm.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { MOST_CLIENTS = 64, LINGER_MS = 10000 };

struct packet { struct packet *next; size_t size; char data[]; };
struct client { int fd, attached, watching; struct packet *first, **last; };

int ends[5];

static struct client clients[MOST_CLIENTS];
static int client_count;
static char state = 'P'; /* Preparing, Ready, Begun, eXited, Failed */
static int input = -1, outputs[2] = {-1, -1}, control = -1, told = -1, state_directory = -1;
static pid_t worker_pid;
static char *boot, started_at[40] = "", reason[LARGEST_TEXT];
static char waiting_input[LARGEST_DATA];
static size_t input_size, input_sent;
static int input_ends, code_told = -1;
static unsigned long long start_ticks;

static void now_text(char *text, size_t size) {
    struct timespec now;
    struct tm parts;
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &parts);
    size_t length = strftime(text, size, "%Y-%m-%dT%H:%M:%S", &parts);
    snprintf(text + length, size - length, ".%06ldZ", now.tv_nsec / 1000);
}

/* A small file that appears whole or not at all. */
static void write_file(const char *name, const char *text) {
    char fresh[64];
    if (state_directory < 0) return;
    snprintf(fresh, sizeof fresh, "%s.new", name);
    int file = openat(state_directory, fresh, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (file < 0) return;
    ssize_t length = strlen(text);
    if (write(file, text, length) == length) renameat(state_directory, fresh, state_directory, name);
    close(file);
}

static void write_process(void) {
    char text[512], quoted[48] = "null";
    if (*started_at) snprintf(quoted, sizeof quoted, "\"%s\"", started_at);
    snprintf(text, sizeof text, "{\"pid\":%d,\"started\":%llu,\"worker\":%d,\"boot\":\"%s\",\"started_at\":%s}", getpid(), start_ticks,
             worker_pid, boot, quoted);
    write_file("process.json", text);
}

static void write_exit(int code) {
    char text[LARGEST_TEXT + 256], finished[40], plain[LARGEST_TEXT], quoted[48] = "null";
    size_t n = 0;
    /* What a module may have had a hand in becomes plain text: no quotes, escapes, or bytes that are not ASCII. */
    for (const char *at = reason; *at && n < sizeof plain - 1; at++)
        plain[n++] = *at == '\n' ? ' ' : *at < 32 || *at > 126 || *at == '"' || *at == '\\' ? '\'' : *at;
    plain[n] = 0;
    now_text(finished, sizeof finished);
    if (*started_at) snprintf(quoted, sizeof quoted, "\"%s\"", started_at);
    snprintf(text, sizeof text, "{\"exit_code\":%d,\"started_at\":%s,\"finished_at\":\"%s\",\"reason\":\"%s\"}", code, quoted, finished, plain);
    write_file("exit.json", text);
}

static void read_start_time(void) {
    char text[1024], *at;
    int file = openat(host_proc, "self/stat", O_RDONLY | O_CLOEXEC);
    ssize_t size = file < 0 ? -1 : read(file, text, sizeof text - 1);
    if (file >= 0) close(file);
    if (size <= 0) _exit(2);
    text[size] = 0;
    at = strrchr(text, ')'); /* proc(5): field 22 */
    for (int field = 2; at && field < 22; field++) at = strchr(at + 1, ' ');
    if (at) start_ticks = strtoull(at, NULL, 10);
}

static void drop(int index) {
    struct client *client = &clients[index];
    while (client->first) {
        struct packet *packet = client->first;
        client->first = packet->next;
        free(packet);
    }
    close(client->fd);
    clients[index] = clients[--client_count];
    if (!clients[index].first) clients[index].last = &clients[index].first;
}

static void add(int fd) {
    if (fd < 0) return;
    if (client_count == MOST_CLIENTS) { close(fd); return; }
    fcntl(fd, F_SETFL, O_NONBLOCK);
    struct client *client = &clients[client_count++];
    *client = (struct client){.fd = fd};
    client->last = &client->first;
}

/* Sends it now, or keeps it until the reader takes more. */
static void give(struct client *client, char kind, const void *data, size_t size) {
    struct iovec parts[] = {{&kind, 1}, {(void *)data, size}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
    if (!client->first && sendmsg(client->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0) return;
    if (!client->first && errno != EAGAIN) return; /* it hung up: poll will tell */
    struct packet *packet = malloc(sizeof *packet + 1 + size);
    if (!packet) return;
    packet->next = NULL;
    packet->size = 1 + size;
    packet->data[0] = kind;
    memcpy(packet->data + 1, data, size);
    *client->last = packet;
    client->last = &packet->next;
}

static void send_waiting(struct client *client) {
    while (client->first) {
        struct packet *packet = client->first;
        if (send(client->fd, packet->data, packet->size, MSG_DONTWAIT | MSG_NOSIGNAL) < 0 && errno == EAGAIN) return;
        if (!(client->first = packet->next)) client->last = &client->first;
        free(packet);
    }
}

static void announce(char kind, int code, const char *text) {
    char data[4 + LARGEST_TEXT];
    int32_t number = code;
    size_t length = strlen(text);
    memcpy(data, &number, 4);
    memcpy(data + 4, text, length);
    for (int i = 0; i < client_count; i++) give(&clients[i], kind, data, 4 + length);
}

static int somebody_waits(void) {
    for (int i = 0; i < client_count; i++)
        if (clients[i].first) return 1;
    return 0;
}

static void begin(void) {
    if (state != 'R') return;
    now_text(started_at, sizeof started_at);
    write_process();
    state = 'B';
    if (write(control, "", 1) != 1) { /* it died; that is told next */ }
    announce('B', 0, started_at);
}

/* Takes one packet; false when the other end is gone. */
static int hear(struct client *client) {
    static char data[1 + LARGEST_DATA];
    ssize_t size = recv(client->fd, data, sizeof data, MSG_DONTWAIT);
    if (size < 0) return errno == EAGAIN || errno == EINTR;
    if (size == 0) return 0;
    switch (data[0]) {
    case 'S': begin(); break;
    case 'K':
        if (size == 2 && data[1] && write(control, data + 1, 1) != 1) { /* it died */ }
        break;
    case 'A':
        client->attached = 1;
        give(client, 'A', "", 0);
        break;
    case 'W':
        client->watching = 1;
        give(client, 'G', "", 0); /* for what was written until now */
        break;
    case 'I':
        if (input >= 0) {
            input_size = size - 1;
            input_sent = 0;
            memcpy(waiting_input, data + 1, input_size);
        }
        break;
    case 'Z': input_ends = 1; break;
    }
    return 1;
}

static void pass_input(void) {
    while (input >= 0 && input_sent < input_size) {
        ssize_t part = write(input, waiting_input + input_sent, input_size - input_sent);
        if (part < 0 && (errno == EAGAIN || errno == EINTR)) return;
        if (part < 0) input_ends = 1;
        if (part < 0) break;
        input_sent += part;
    }
    input_size = input_sent = 0;
    if (input_ends && input >= 0) {
        close(input);
        input = -1;
    }
}

/* Takes what the module wrote, once; false when there is nothing more for now. */
static int pass_output(int which) {
    static char data[LARGEST_DATA];
    ssize_t size = read(outputs[which], data, sizeof data);
    if (size < 0) return 0;
    if (size == 0) {
        close(outputs[which]);
        outputs[which] = -1;
        return 0;
    }
    journal_write(1 + which, data, size);
    for (int i = 0; i < client_count; i++) {
        if (clients[i].attached) give(&clients[i], which ? 'E' : 'O', data, size);
        if (clients[i].watching) send(clients[i].fd, "G", 1, MSG_DONTWAIT | MSG_NOSIGNAL);
    }
    return 1;
}

static void hear_worker(void) {
    char text[5 + LARGEST_TEXT];
    int32_t code;
    ssize_t size = read(told, text, sizeof text - 1);
    if (size < 0) return;
    if (size < 5) {
        close(told);
        told = -1;
        return;
    }
    text[size] = 0;
    memcpy(&code, text + 1, 4);
    switch (text[0]) {
    case READY:
        if (state != 'P') break;
        state = 'R';
        announce('R', 0, "");
        break;
    case FAILED:
    case STALE:
        if (state != 'P') break; /* what runs a module says is no more than its own end */
        state = 'F';
        announce(text[0], code, text + 5);
        break;
    case ENDED:
        code_told = code;
        snprintf(reason, sizeof reason, "%s", text + 5);
        break;
    }
}

/* The worker is gone: everything that it left is taken, its end written down and told. */
static void conclude(void) {
    int status = 0, code;
    while (waitpid(worker_pid, &status, 0) < 0 && errno == EINTR) {}
    while (told >= 0) hear_worker();
    for (int which = 0; which < 2; which++)
        while (outputs[which] >= 0 && pass_output(which)) {}
    code = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
    if (WIFSIGNALED(status) && code_told < 0) snprintf(reason, sizeof reason, "the worker was killed by signal %d", WTERMSIG(status));
    if (state == 'F') return;
    if (*started_at) write_exit(code); /* what never began has no end to tell of */
    state = 'X';
    announce('X', code, reason);
}

static void watch(struct job *job, int pidfd) {
    struct timespec ended = {0};
    for (;;) {
        struct pollfd polled[MOST_CLIENTS + 7];
        int n = 0, over = state == 'X' || state == 'F', held = somebody_waits();
        if (over && !held) return;
        if (over) {
            struct timespec now;
            clock_gettime(CLOCK_MONOTONIC, &now);
            if (!ended.tv_sec) ended = now;
            if ((now.tv_sec - ended.tv_sec) * 1000 > LINGER_MS) return;
        }
        enum { WORKER, TOLD_END, LISTENER, INPUT, OUTPUT, ERRORS, FIRST };
        polled[n++] = (struct pollfd){over ? -1 : pidfd, POLLIN, 0};
        polled[n++] = (struct pollfd){over ? -1 : told, POLLIN, 0};
        polled[n++] = (struct pollfd){over ? -1 : job->listener, POLLIN, 0};
        polled[n++] = (struct pollfd){input_size ? input : -1, POLLOUT, 0};
        for (int which = 0; which < 2; which++) polled[n++] = (struct pollfd){over || held ? -1 : outputs[which], POLLIN, 0};
        int polled_clients = client_count;
        for (int i = 0; i < client_count; i++)
            polled[n++] = (struct pollfd){clients[i].fd, (input_size ? 0 : POLLIN) | (clients[i].first ? POLLOUT : 0), 0};
        if (poll(polled, n, over ? 1000 : -1) < 0) continue;
        /* From the last on: a client that goes is replaced by the last. */
        for (int i = polled_clients - 1; i >= 0; i--) {
            short events = polled[FIRST + i].revents;
            int gone = 0;
            if (events & POLLOUT) send_waiting(&clients[i]);
            if (events & POLLIN && !input_size) gone = !hear(&clients[i]);
            else if (events & (POLLERR | POLLHUP)) gone = 1;
            if (gone) {
                drop(i);
                /* A module that is being made for somebody who has gone is made for nobody. */
                if (state == 'P' && !client_count) _exit(1);
            }
        }
        pass_input();
        if (polled[LISTENER].revents & POLLIN) {
            add(accept4(job->listener, NULL, NULL, SOCK_CLOEXEC));
            int32_t pids[2] = {getpid(), worker_pid};
            char hello[9];
            hello[0] = state;
            memcpy(hello + 1, pids, 8);
            if (client_count) give(&clients[client_count - 1], 'H', hello, sizeof hello);
        }
        if (polled[TOLD_END].revents) hear_worker();
        for (int which = 0; which < 2; which++)
            if (polled[OUTPUT + which].revents) pass_output(which);
        if (polled[WORKER].revents & POLLIN) conclude();
    }
}

void monitor(struct job *job) {
    int pipes[5][2];
    boot = job->boot;
    state_directory = job->state;
    signal(SIGCHLD, SIG_DFL);
    read_start_time();
    add(job->connection);
    for (int i = 0; i < 5; i++)
        if (pipe2(pipes[i], O_CLOEXEC | (i == TOLD ? O_DIRECT : 0))) _exit(2);
    for (int i = 0; i < job->directory_count; i++) map_owner(job->directories[i], job->order.user, job->targets[i][0] == 'w');
    if (unshare(CLONE_NEWPID)) _exit(2);
    for (int i = 0; i < 5; i++) ends[i] = pipes[i][i == 1 || i == 2 || i == TOLD];
    worker_pid = fork();
    if (worker_pid < 0) _exit(2);
    if (!worker_pid) worker(job);
    int pidfd = syscall(SYS_pidfd_open, worker_pid, 0);
    if (pidfd < 0) _exit(2);
    for (int i = 0; i < 5; i++) close(ends[i]);
    input = pipes[0][1];
    outputs[0] = pipes[1][0];
    outputs[1] = pipes[2][0];
    control = pipes[CONTROL][1];
    told = pipes[TOLD][0];
    for (int i = 0; i < 2; i++) fcntl(outputs[i], F_SETFL, O_NONBLOCK);
    fcntl(input, F_SETFL, O_NONBLOCK);
    if (!(job->order.flags & STDIN)) {
        close(input);
        input = -1;
    }
    write_process();
    if (state_directory >= 0) journal_open(state_directory);
    for (int i = 0; i < job->group_count; i++) close(job->groups[i]);
    for (int i = 0; i < job->directory_count; i++) close(job->directories[i]);
    close(job->module);
    if (job->output >= 0) close(job->output);
    close(host_proc);
    drop_capabilities();
    watch(job, pidfd);
    _exit(0);
}
