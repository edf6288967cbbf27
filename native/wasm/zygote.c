/*
 * lamella-wasm: runs WebAssembly modules, each in a confined process of its own.
 *
 *   lamella-wasm LIBRARY ROOM       (standard input: a SOCK_SEQPACKET socket)
 *
 * It loads wasmtime's LIBRARY once, builds an empty read-only room on the directory ROOM, in namespaces of its own, and says "ready"
 * on standard output. Then each datagram on the socket (struct request, with descriptors) makes it fork a monitor, which forks
 * the worker that compiles or runs the module. It looks at nothing that a module or a person wrote: the monitor's child reads the
 * order, without privileges. Monitors and workers outlive it; it ends when the socket is closed.
 */
#define _GNU_SOURCE
#include "lamella-wasm.h"
#include "library.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

int host_proc = -1;

static void die(const char *what) {
    fprintf(stderr, "lamella-wasm: %s: %s\n", what, strerror(errno));
    exit(1);
}

/* An empty root with the places where a module's file and directories are shown, each in its worker's own view of it. */
static void enter_room(const char *room) {
    char name[16];
    host_proc = open("/proc", O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (host_proc < 0) die("cannot open /proc");
    if (unshare(CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS)) die("cannot make namespaces");
    if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL)) die("cannot make mounts private");
    if (mount("room", room, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "size=64k,nr_inodes=64,mode=755")) die(room);
    if (chdir(room)) die(room);
    int file = open("module", O_CREAT | O_WRONLY | O_CLOEXEC, 0444);
    if (file < 0) die("cannot make a place for the module");
    close(file);
    for (int i = 0; i < MOST_DIRECTORIES; i++) {
        snprintf(name, sizeof name, "d%d", i);
        if (mkdir(name, 0755)) die("cannot make a place for a directory");
    }
    if (syscall(SYS_pivot_root, ".", ".")) die("cannot make the room the root");
    if (umount2(".", MNT_DETACH) || chdir("/")) die("cannot let go of the old root");
    if (mount(NULL, "/", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL))
        die("cannot make the room read-only");
}

static char *next(char **at, char *end) {
    char *text = *at, *zero = memchr(text, 0, end - text);
    if (!zero) _exit(2);
    *at = zero + 1;
    return text;
}

static char **several(char **at, char *end, uint32_t count) {
    char **list = calloc(count + 1, sizeof *list);
    if (!list) _exit(2);
    for (uint32_t i = 0; i < count; i++) list[i] = next(at, end);
    return list;
}

/* Reads the order; the daemon wrote it, so one that does not fit is a defect and ends this process alone. */
static void read_order(struct job *job, int file) {
    struct stat status;
    if (fstat(file, &status) || status.st_size < (off_t)sizeof job->order) _exit(2);
    char *data = mmap(NULL, status.st_size, PROT_READ, MAP_PRIVATE, file, 0);
    if (data == MAP_FAILED) _exit(2);
    memcpy(&job->order, data, sizeof job->order);
    char *at = data + sizeof job->order, *end = data + status.st_size;
    job->boot = next(&at, end);
    job->arguments = several(&at, end, job->order.argc);
    job->names = calloc(job->order.envc + 1, sizeof *job->names);
    job->values = calloc(job->order.envc + 1, sizeof *job->values);
    if (!job->names || !job->values) _exit(2);
    for (uint32_t i = 0; i < job->order.envc; i++) {
        job->names[i] = next(&at, end);
        job->values[i] = next(&at, end);
    }
    job->targets = several(&at, end, job->directory_count);
}

static void begin(const struct request *request, const int *fds, int count) {
    struct job job = {.mode = request->mode, .listener = -1, .state = -1, .output = -1};
    int fixed = job.mode == RUN ? 5 : 4;
    if (request->groups > MOST_GROUPS || request->directories > MOST_DIRECTORIES) _exit(2);
    if ((int)(fixed + request->groups + request->directories) != count) _exit(2);
    job.group_count = request->groups;
    job.directory_count = request->directories;
    job.connection = fds[1];
    if (job.mode == RUN) {
        job.listener = fds[2];
        job.state = fds[3];
        job.module = fds[4];
    } else {
        job.module = fds[2];
        job.output = fds[3];
    }
    memcpy(job.groups, fds + fixed, sizeof(int) * job.group_count);
    memcpy(job.directories, fds + fixed + job.group_count, sizeof(int) * job.directory_count);
    read_order(&job, fds[0]);
    close(fds[0]);
    monitor(&job);
}

static void serve(void) {
    static char control[CMSG_SPACE(sizeof(int) * MOST_FDS)];
    struct request request;
    for (;;) {
        struct iovec part = {&request, sizeof request};
        struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
        ssize_t size = recvmsg(0, &message, MSG_CMSG_CLOEXEC);
        if (size < 0 && errno == EINTR) continue;
        if (size <= 0) exit(0);
        struct cmsghdr *head = CMSG_FIRSTHDR(&message);
        int count = 0, fds[MOST_FDS];
        if (head && head->cmsg_type == SCM_RIGHTS) {
            count = (head->cmsg_len - CMSG_LEN(0)) / sizeof(int);
            memcpy(fds, CMSG_DATA(head), sizeof(int) * count);
        }
        if (size == sizeof request && !(message.msg_flags & MSG_CTRUNC)) {
            pid_t child = fork();
            if (!child) {
                close(0);
                begin(&request, fds, count);
            }
            /* A fork that failed closes the connection below: whoever asked sees that nobody is there. */
        }
        for (int i = 0; i < count; i++) close(fds[i]);
    }
}

int main(int argc, char **argv) {
    if (argc != 3) {
        fprintf(stderr, "usage: lamella-wasm LIBRARY ROOM; see the head of zygote.c\n");
        return 2;
    }
    /* Ids and limits that a worker is given must not depend on who started the daemon. */
    umask(022);
    setenv("TOKIO_WORKER_THREADS", "1", 1);
    setenv("RAYON_NUM_THREADS", "2", 1);
    signal(SIGCHLD, SIG_IGN);
    signal(SIGPIPE, SIG_IGN);
    setsid();
    load_library(argv[1]);
    enter_room(argv[2]);
    if (write(1, "ready\n", 6) != 6) return 1;
    /* From here on nobody listens to these; the monitors must not hold the daemon's pipes open. */
    int nothing = memfd_create("nothing", MFD_CLOEXEC);
    if (nothing < 0 || dup2(nothing, 1) < 0 || dup2(nothing, 2) < 0) return 1;
    close(nothing);
    serve();
}
