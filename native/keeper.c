/*
 * lamella-keeper: starts a program that lets go of another one, and writes down how that other one ends.
 *
 *   lamella-keeper [--cgroup FILE]... --status FD --user N -- STARTER [ARGUMENT]...
 *
 *   --cgroup FILE   be in this group: our pid is written to FILE (a cgroup.procs) before STARTER begins
 *   --status FD     an open file that the end is written to
 *   --user N        uid and gid to watch as, without capabilities; 0 is refused
 *
 * STARTER (lamella-jailer) leaves one child behind, which becomes ours. We end as STARTER did; when that was with 0, a process
 * of ours stays until the child has ended too, and then writes one line to FD, "exit N SECONDS" or "signal N SECONDS"
 * (SECONDS since 1970), and after it the last of what is in standard error, if that is memory or a file. It holds FD and standard
 * error open and nothing else, and it outlives whoever called.
 *
 * An exit code is told to a parent only (wait(2)), and the parent must not be the daemon, which may be replaced meanwhile.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/close_range.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { MOST_GROUPS = 64, MOST_WORDS = 4096 };

static void fail(const char *what) {
    fprintf(stderr, "lamella-keeper: %s: %s\n", what, strerror(errno));
    _exit(1);
}

static void usage(const char *what) {
    fprintf(stderr, "lamella-keeper: %s; see the head of keeper.c\n", what);
    _exit(2);
}

static long number(const char *text) {
    char *end;
    errno = 0;
    long value = strtol(text, &end, 10);
    if (errno || end == text || *end || value <= 0) usage("not a number above 0");
    return value;
}

static void join(const char *procs) {
    int file = open(procs, O_WRONLY | O_CLOEXEC);
    if (file < 0 || write(file, "0", 1) != 1) fail(procs);
    close(file);
}

/* From here on we can wait for our child, and write into what is open, and nothing else. */
static void give_up_privileges(uid_t user) {
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct none[2] = {{0}};
    if (chdir("/") || setgroups(0, NULL) || setresgid(user, user, user) || setresuid(user, user, user)) fail("cannot change user");
    if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) || syscall(SYS_capset, &header, none)) fail("cannot drop capabilities");
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)) fail("cannot give up new privileges");
}

/* Leaves only standard error (2) and the status open. */
static void close_others(int status) {
    if (dup2(status, 3) < 0 || close(0) || close(1)) fail("cannot arrange descriptors");
    if (syscall(SYS_close_range, 4, ~0U, 0)) fail("cannot close descriptors");
}

/* The last words: memory that is written to has our own offset in it, since the child inherited it. */
static size_t read_errors(char *words) {
    off_t end = lseek(2, 0, SEEK_CUR);
    if (end <= 0) return 0;
    off_t from = end > MOST_WORDS ? end - MOST_WORDS : 0;
    ssize_t length = pread(2, words, end - from, from);
    return length > 0 ? length : 0;
}

static void keep(int told, int status, uid_t user, char **starter) {
    int how;
    if (prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)) fail("cannot take over children");
    pid_t child = fork();
    if (child < 0) fail("cannot fork");
    if (!child) {
        close(status);
        execv(starter[0], starter);
        fail(starter[0]);
    }
    while (waitpid(child, &how, 0) < 0)
        if (errno != EINTR) fail("cannot wait");
    unsigned char code = WIFEXITED(how) ? WEXITSTATUS(how) : 128 + WTERMSIG(how);
    if (code) {
        if (write(told, &code, 1) != 1) _exit(1);
        _exit(0);
    }
    if (setsid() < 0) fail("cannot start a session");
    if (dup2(told, 4) < 0) fail("cannot arrange descriptors");
    give_up_privileges(user);
    if (write(4, &code, 1) != 1) _exit(1);
    close_others(status);
    while (waitpid(-1, &how, 0) < 0)
        if (errno != EINTR) _exit(1);
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    /* In one piece: whoever reads it finds all or nothing. */
    char text[80 + MOST_WORDS];
    size_t length = snprintf(text, 80, "%s %d %lld.%06ld\n", WIFEXITED(how) ? "exit" : "signal",
                             WIFEXITED(how) ? WEXITSTATUS(how) : WTERMSIG(how), (long long)now.tv_sec, now.tv_nsec / 1000);
    length += read_errors(text + length);
    _exit(write(3, text, length) == (ssize_t)length ? 0 : 1);
}

int main(int argc, char **argv) {
    (void)argc;
    const char *groups[MOST_GROUPS];
    int group_count = 0, status = -1, told[2];
    uid_t user = 0;
    char **arg;
    for (arg = argv + 1; *arg && strcmp(*arg, "--"); arg += 2) {
        if (!arg[1]) usage("an option wants a value");
        if (!strcmp(*arg, "--cgroup")) {
            if (group_count == MOST_GROUPS) usage("too many groups");
            groups[group_count++] = arg[1];
        } else if (!strcmp(*arg, "--status")) status = number(arg[1]);
        else if (!strcmp(*arg, "--user")) user = number(arg[1]);
        else usage("unknown option");
    }
    if (!*arg || !arg[1]) usage("no program");
    if (status < 5 || !user) usage("--status (above 4) and --user are needed");
    for (int i = 0; i < group_count; i++) join(groups[i]);
    if (pipe2(told, O_CLOEXEC)) fail("cannot make a pipe");
    pid_t keeper = fork();
    if (keeper < 0) fail("cannot fork");
    if (!keeper) {
        close(told[0]);
        keep(told[1], status, user, arg + 1);
    }
    close(told[1]);
    unsigned char code;
    if (read(told[0], &code, 1) != 1) {
        waitpid(keeper, NULL, 0);
        return 1;
    }
    return code;
}
