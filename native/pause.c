/* lamella-pause: makes namespaces, or joins some, says so, and holds them.
 *
 *   lamella-pause [--unshare mnt,net,user] [--join FD]... [--slave] [--loopback] [--sysctl PATH=VALUE]... [--ready FD] [--hold FD]
 *                 [--mark MARK]
 *
 * --join      be in the namespace that FD is a descriptor of
 * --slave     mounts of the host still come in, ours never go out
 * --loopback  bring `lo` up in the network namespace
 * --sysctl    write VALUE to /proc/sys/PATH once the namespaces are made
 * --ready FD  write one byte there when all is made, then close it
 * --hold FD   live until FD reads end of file (the one who asked is gone); without it, until a signal
 * --mark      does nothing: it is there to be seen in the list of processes
 *
 * Ends with 1 and one line on stderr when anything fails. Static, so that it costs a page or two of memory.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <unistd.h>

static const struct { const char *name; int flag; } KINDS[] = {
    {"mnt", CLONE_NEWNS}, {"net", CLONE_NEWNET}, {"user", CLONE_NEWUSER}, {"ipc", CLONE_NEWIPC}, {"uts", CLONE_NEWUTS},
};

static void fail(const char *what) {
    fprintf(stderr, "lamella-pause: %s: %s\n", what, strerror(errno));
    exit(1);
}

static int flags_of(char *names) {
    int flags = 0;
    for (char *name = strtok(names, ","); name; name = strtok(NULL, ",")) {
        size_t kind = 0, kinds = sizeof KINDS / sizeof *KINDS;
        while (kind < kinds && strcmp(name, KINDS[kind].name)) kind++;
        if (kind == kinds) { errno = EINVAL; fail(name); }
        flags |= KINDS[kind].flag;
    }
    return flags;
}

static void join(int fd) {
    if (setns(fd, 0) < 0 || close(fd) < 0) fail("setns");
}

static void loopback_up(void) {
    struct ifreq request = {.ifr_name = "lo", .ifr_flags = IFF_UP};
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || ioctl(fd, SIOCSIFFLAGS, &request) < 0) fail("loopback");
    close(fd);
}

static void set_sysctl(char *setting) {
    char path[256], *value = strchr(setting, '=');
    if (!value) { errno = EINVAL; fail(setting); }
    *value++ = 0;
    if (snprintf(path, sizeof path, "/proc/sys/%s", setting) >= (int)sizeof path) { errno = ENAMETOOLONG; fail(setting); }
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0) {
        if (errno == ENOENT) return; /* a kernel without it needs no loosening of it */
        fail(path);
    }
    if (write(fd, value, strlen(value)) < 0) fail(path);
    close(fd);
}

int main(int argc, char **argv) {
    int flags = 0, slave = 0, loopback = 0, ready = -1, hold = -1, sysctls = 0;
    char *sysctl[16];
    for (int i = 1; i < argc; i++) {
        char *value = i + 1 < argc ? argv[i + 1] : NULL;
        if (!strcmp(argv[i], "--slave")) { slave = 1; continue; }
        if (!strcmp(argv[i], "--loopback")) { loopback = 1; continue; }
        if (!value) { errno = EINVAL; fail(argv[i]); }
        if (!strcmp(argv[i], "--unshare")) flags = flags_of(value);
        else if (!strcmp(argv[i], "--join")) join(atoi(value));
        else if (!strcmp(argv[i], "--ready")) ready = atoi(value);
        else if (!strcmp(argv[i], "--hold")) hold = atoi(value);
        else if (!strcmp(argv[i], "--sysctl") && sysctls < 16) sysctl[sysctls++] = value;
        else if (strcmp(argv[i], "--mark")) { errno = EINVAL; fail(argv[i]); }
        i++;
    }
    if (setsid() < 0 && errno != EPERM) fail("setsid");
    if (chdir("/") < 0) fail("/");
    if (flags && unshare(flags) < 0) fail("unshare");
    if (slave && mount("none", "/", NULL, MS_REC | MS_SLAVE, NULL) < 0) fail("propagation");
    if (loopback) loopback_up();
    for (int i = 0; i < sysctls; i++) set_sysctl(sysctl[i]);
    signal(SIGHUP, SIG_IGN);
    if (ready >= 0 && (write(ready, "1", 1) != 1 || close(ready) < 0)) fail("ready");
    if (hold < 0)
        for (;;) pause();
    for (char byte; read(hold, &byte, 1) > 0 || errno == EINTR;) errno = 0;
    return 0;
}
