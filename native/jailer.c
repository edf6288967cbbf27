/*
 * lamella-jailer: puts a program into an empty room, without privileges, and lets go of it.
 *
 *   lamella-jailer [OPTION]... -- PROGRAM [ARGUMENT]...
 *
 *   --cgroup FILE      join this group first: our pid is written to FILE (a cgroup.procs), before anything is allocated
 *   --room DIRECTORY   an empty directory to build the room on (only its new mount namespace ever sees what is there)
 *   --bind FROM:TO     show FROM (file or directory) read-only at TO inside the room
 *   --device FROM:TO   the same for a device node, which may be written
 *   --write FROM:TO    the same for a directory, which may be written; nothing in it can be executed
 *   --file FROM:TO     the same for a regular file, which may be written
 *   --descriptors TO   show PROGRAM's own open descriptors in the directory TO: a name for files that have none
 *   --user N           uid and gid to run as; 0 is refused
 *   --group N          a supplementary group (at most 8)
 *   --limit WHAT=N     lower the resource limit core, nofile, nproc, memlock, fsize, cpu or as to N; one that is lower already stays
 *   --output FD        an open descriptor that becomes PROGRAM's standard output; without it, standard error does
 *   --wait SECONDS     do not let go: stay until PROGRAM has ended, and end as it did (128 + N after signal N). After SECONDS, or
 *                      when whoever called ends, PROGRAM is killed
 *   --keep FD          an open descriptor that PROGRAM shall inherit; all others above 2 are closed
 *   --network keep     stay in our network namespace rather than one of its own
 *   --capability N     a capability (its number) that PROGRAM keeps, for what it is there to do in our network; with --network keep alone
 *
 * PROGRAM becomes process 1 of its own pid namespace, in its own mount, network, IPC, UTS and cgroup namespaces and its own
 * session, with an empty capability bounding set, no capabilities (but what was said) and no_new_privs. Its root is a read-only tmpfs that holds
 * the mount points and nothing else. The environment is passed on as it is.
 *
 * When PROGRAM has been executed, its pid (as we see it) is printed on standard output and we exit 0: it is nobody's child
 * then and outlives whoever called. With --wait nothing is printed. Otherwise one line on standard error says what failed, and we exit 1 (2: bad usage).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <linux/capability.h>
#include <linux/close_range.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MOST = 256, MOST_GROUPS = 8 };

enum kind { READ_ONLY, DEVICE, WRITABLE, WRITABLE_DIRECTORY };

struct bind {
    char *from, *to;
    enum kind kind;
};

struct limit {
    int resource;
    rlim_t value;
};

static struct {
    char *cgroups[MOST], *room, *descriptors;
    struct bind binds[MOST];
    struct limit limits[MOST];
    gid_t groups[MOST_GROUPS];
    int keep[MOST];
    int cgroup_count, bind_count, limit_count, group_count, keep_count;
    uid_t user;
    int output, network;
    unsigned wait;
    unsigned long long capabilities;
} want = {.output = 2};

static int report = 2; /* where a failure is told: our standard error, in the child the pipe to its parent */

static void fail(const char *format, ...) __attribute__((noreturn, format(printf, 1, 2)));

static void fail(const char *format, ...) {
    char text[PIPE_BUF];
    int error = errno;
    va_list list;
    va_start(list, format);
    int length = vsnprintf(text, sizeof text - 128, format, list);
    va_end(list);
    if (length > (int)sizeof text - 129) length = sizeof text - 129;
    length += snprintf(text + length, 128, ": %s\n", strerror(error));
    ssize_t ignored = write(report, text, length);
    (void)ignored;
    _exit(1);
}

static void usage(const char *what) {
    fprintf(stderr, "lamella-jailer: %s; see the head of jailer.c\n", what);
    exit(2);
}

static long number(const char *text) {
    char *end;
    errno = 0;
    long value = strtol(text, &end, 10);
    if (errno || end == text || *end || value < 0) usage("not a number");
    return value;
}

static char *split(char *text, char at) {
    char *found = strchr(text, at);
    if (!found || found == text || !found[1]) usage("an option wants two parts");
    *found = 0;
    return found + 1;
}

static int resource(const char *name) {
    static const struct { const char *name; int resource; } known[] = {
        {"core", RLIMIT_CORE}, {"nofile", RLIMIT_NOFILE}, {"nproc", RLIMIT_NPROC},
        {"memlock", RLIMIT_MEMLOCK}, {"fsize", RLIMIT_FSIZE}, {"cpu", RLIMIT_CPU}, {"as", RLIMIT_AS},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (!strcmp(known[i].name, name)) return known[i].resource;
    usage("unknown limit");
    return -1;
}

/* Fills `want`; returns the vector of PROGRAM. */
static char **parse(char **arg) {
    for (arg++; *arg && strcmp(*arg, "--"); arg += 2) {
        char *value = arg[1];
        if (!value) usage("an option wants a value");
        if (want.cgroup_count == MOST || want.bind_count == MOST || want.limit_count == MOST || want.keep_count == MOST)
            usage("too many of one option");
        if (!strcmp(*arg, "--cgroup")) want.cgroups[want.cgroup_count++] = value;
        else if (!strcmp(*arg, "--room")) want.room = value;
        else if (!strcmp(*arg, "--bind") || !strcmp(*arg, "--device") || !strcmp(*arg, "--file") || !strcmp(*arg, "--write")) {
            char *to = split(value, ':');
            if (to[0] != '/' || strstr(to, "/../")) usage("a path in the room is absolute and leads down");
            enum kind kind = !strcmp(*arg, "--device") ? DEVICE : !strcmp(*arg, "--file") ? WRITABLE : READ_ONLY;
            if (!strcmp(*arg, "--write")) kind = WRITABLE_DIRECTORY;
            want.binds[want.bind_count++] = (struct bind){value, to, kind};
        } else if (!strcmp(*arg, "--descriptors")) {
            if (value[0] != '/' || strstr(value, "/../")) usage("a path in the room is absolute and leads down");
            want.descriptors = value;
        } else if (!strcmp(*arg, "--user")) want.user = number(value);
        else if (!strcmp(*arg, "--group")) {
            if (want.group_count == MOST_GROUPS) usage("too many groups");
            want.groups[want.group_count++] = number(value);
        } else if (!strcmp(*arg, "--limit")) {
            char *most = split(value, '=');
            want.limits[want.limit_count++] = (struct limit){resource(value), number(most)};
        } else if (!strcmp(*arg, "--output")) want.output = number(value);
        else if (!strcmp(*arg, "--wait")) {
            if (!(want.wait = number(value))) usage("nothing ends at once");
        } else if (!strcmp(*arg, "--network")) {
            if (strcmp(value, "keep")) usage("--network wants keep");
            want.network = 1;
        } else if (!strcmp(*arg, "--capability")) {
            long capability = number(value);
            if (capability > 63) usage("unknown capability");
            want.capabilities |= 1ULL << capability;
        } else if (!strcmp(*arg, "--keep")) want.keep[want.keep_count++] = number(value);
        else usage("unknown option");
    }
    if (!*arg || !arg[1]) usage("no program");
    if (!want.room || !want.user) usage("--room and --user (not 0) are needed");
    if (want.capabilities && !want.network) usage("--capability goes with --network keep");
    return arg + 1;
}

static void join(const char *procs) {
    int file = open(procs, O_WRONLY | O_CLOEXEC);
    if (file < 0 || write(file, "0", 1) != 1) fail("cannot join %s", procs);
    close(file);
}

/* Makes what FROM will be mounted on below the room, with its parents; `path` begins with the room and is written to. */
static void make_place(char *path, size_t room, int directory) {
    for (char *at = path + room + 1; (at = strchr(at, '/')); at++) {
        *at = 0;
        if (mkdir(path, 0755) && errno != EEXIST) fail("cannot make %s", path);
        *at = '/';
    }
    if (directory) {
        if (mkdir(path, 0755) && errno != EEXIST) fail("cannot make %s", path);
        return;
    }
    int file = open(path, O_CREAT | O_WRONLY | O_CLOEXEC | O_NOFOLLOW, 0444);
    if (file < 0) fail("cannot make %s", path);
    close(file);
}

static void show(const struct bind *bind) {
    char path[PATH_MAX];
    struct stat status;
    if (stat(bind->from, &status)) fail("cannot look at %s", bind->from);
    if ((bind->kind == DEVICE) != S_ISCHR(status.st_mode) || (bind->kind == WRITABLE && !S_ISREG(status.st_mode)) || (bind->kind == WRITABLE_DIRECTORY && !S_ISDIR(status.st_mode))) { errno = EINVAL; fail("%s is of another kind", bind->from); }
    if (snprintf(path, sizeof path, "%s%s", want.room, bind->to) >= (int)sizeof path) usage("a path is too long");
    make_place(path, strlen(want.room), S_ISDIR(status.st_mode));
    if (mount(bind->from, path, NULL, MS_BIND, NULL)) fail("cannot show %s", bind->from);
    unsigned long flags = MS_NOSUID | (bind->kind == DEVICE ? MS_NOEXEC : MS_NODEV);
    flags |= bind->kind == READ_ONLY ? MS_RDONLY : MS_NOEXEC;
    if (mount(NULL, path, NULL, MS_REMOUNT | MS_BIND | flags, NULL)) fail("cannot restrict %s", bind->from);
}

/* Of a procfs of our own pid namespace, in which we are process 1 and PROGRAM will be, nothing but the list of descriptors. */
static void show_descriptors(void) {
    char path[PATH_MAX], inside[PATH_MAX];
    if (snprintf(path, sizeof path, "%s%s", want.room, want.descriptors) >= (int)sizeof path - 8) usage("a path is too long");
    make_place(path, strlen(want.room), 1);
    if (mount("proc", path, "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL)) fail("cannot mount proc on %s", path);
    snprintf(inside, sizeof inside, "%.4000s/1/fd", path);
    int tree = syscall(SYS_open_tree, AT_FDCWD, inside, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
    if (tree < 0) fail("cannot take %s", inside);
    if (umount2(path, MNT_DETACH)) fail("cannot unmount %s", path);
    if (syscall(SYS_move_mount, tree, "", AT_FDCWD, path, MOVE_MOUNT_F_EMPTY_PATH)) fail("cannot show %s", path);
    close(tree);
    unsigned long flags = MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC;
    if (mount(NULL, path, NULL, MS_REMOUNT | MS_BIND | flags, NULL)) fail("cannot restrict %s", path);
}

/* Leaves us in a root that holds only what was asked for. */
static void enter_room(void) {
    if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL)) fail("cannot make mounts private");
    if (mount("room", want.room, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "size=64k,nr_inodes=256,mode=755"))
        fail("cannot mount a room on %s", want.room);
    for (int i = 0; i < want.bind_count; i++) show(&want.binds[i]);
    if (want.descriptors) show_descriptors();
    if (chdir(want.room)) fail("cannot enter %s", want.room);
    /* pivot_root(2), "pivot_root(".", ".")": the old root ends up on top of the new one, and goes. */
    if (syscall(SYS_pivot_root, ".", ".")) fail("cannot make %s the root", want.room);
    if (umount2(".", MNT_DETACH) || chdir("/")) fail("cannot let go of the old root");
    if (mount(NULL, "/", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL))
        fail("cannot make the room read-only");
}

static void lower_limits(void) {
    for (int i = 0; i < want.limit_count; i++) {
        struct rlimit now;
        if (getrlimit(want.limits[i].resource, &now)) fail("cannot read a limit");
        if (now.rlim_max > want.limits[i].value) now.rlim_max = want.limits[i].value;
        if (now.rlim_cur > now.rlim_max) now.rlim_cur = now.rlim_max;
        if (setrlimit(want.limits[i].resource, &now)) fail("cannot lower a limit");
    }
}

static void keep_descriptors(void) {
    if (dup2(want.output, 1) < 0) fail("cannot use descriptor %d", want.output);
    if (syscall(SYS_close_range, 3, ~0U, CLOSE_RANGE_CLOEXEC)) fail("cannot close descriptors");
    for (int i = 0; i < want.keep_count; i++)
        if (fcntl(want.keep[i], F_SETFD, 0)) fail("cannot keep descriptor %d", want.keep[i]);
}

static void drop_privileges(void) {
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    unsigned low = want.capabilities, high = want.capabilities >> 32;
    struct __user_cap_data_struct kept[2] = {{low, low, low}, {high, high, high}};
    for (int capability = 0; capability < 64; capability++)
        if (!(want.capabilities >> capability & 1) && prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) && errno != EINVAL) fail("cannot drop capability %d", capability);
    /* Execution clears it. */
    if (want.capabilities && prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0)) fail("cannot keep capabilities");
    if (setgroups(want.group_count, want.groups)) fail("cannot set groups");
    if (setresgid(want.user, want.user, want.user)) fail("cannot become group %u", want.user);
    if (setresuid(want.user, want.user, want.user)) fail("cannot become user %u", want.user);
    if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)) fail("cannot clear ambient capabilities");
    if (syscall(SYS_capset, &header, kept)) fail("cannot set capabilities");
    for (int capability = 0; capability < 64; capability++)
        if (want.capabilities >> capability & 1 && prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, capability, 0, 0))
            fail("cannot keep capability %d", capability);
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)) fail("cannot give up new privileges");
    umask(077);
}

/* Changing the user clears this, so it comes after. */
static void die_with_parent(void) {
    if (prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)) fail("cannot be bound to the parent");
}

/* Our parent holds the reading end of what we report to, unless it ended before we were bound to it. */
static void check_parent(void) {
    struct pollfd end = {.fd = report};
    if (poll(&end, 1, 0) > 0 && end.revents & POLLERR) _exit(1);
}

/* Waits for `child`, no longer than asked: the alarm ends us, and our end the child. Its output is not ours to hold open. */
static int ending(pid_t child) {
    int status;
    signal(SIGALRM, SIG_DFL);
    alarm(want.wait);
    while (waitpid(child, &status, 0) < 0)
        if (errno != EINTR) fail("cannot wait");
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

int main(int argc, char **argv) {
    (void)argc;
    char **program = parse(argv);
    int told[2];
    if (want.wait) die_with_parent();
    for (int i = 0; i < want.cgroup_count; i++) join(want.cgroups[i]);
    int network = want.network ? 0 : CLONE_NEWNET;
    if (unshare(CLONE_NEWNS | network | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP | CLONE_NEWPID))
        fail("cannot make namespaces");
    if (pipe2(told, O_CLOEXEC)) fail("cannot make a pipe");
    pid_t child = fork();
    if (child < 0) fail("cannot fork");
    if (!child) {
        report = told[1];
        close(told[0]);
        if (setsid() < 0) fail("cannot start a session");
        if (sethostname("room", 4)) fail("cannot name the room");
        enter_room();
        lower_limits();
        keep_descriptors();
        drop_privileges();
        if (want.wait) {
            die_with_parent();
            check_parent();
        }
        execv(program[0], program);
        fail("cannot execute %s", program[0]);
    }
    close(told[1]);
    char text[PIPE_BUF];
    ssize_t length = read(told[0], text, sizeof text);
    if (length != 0) { /* nothing to read and the end of file: the pipe was closed by a successful execv */
        if (length > 0) length = write(2, text, length);
        waitpid(child, NULL, 0);
        return 1;
    }
    if (want.wait) return ending(child);
    printf("%d\n", child);
    return fflush(stdout) ? 1 : 0;
}
