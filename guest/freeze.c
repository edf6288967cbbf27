#define _GNU_SOURCE
#include "freeze.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <mntent.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>

#include "process.h"

static int frozen[MOST_FROZEN]; /* in the order in which they were frozen */
static size_t count;
static int64_t thaw_at; /* monotonic ms; 0: not frozen */
static bool held;
static pid_t keeper;

static void end_keeper(void) {
    if (keeper > 0) kill(keeper, SIGKILL);
    keeper = 0;
}

/* A process of its own thaws at the deadline if the agent is gone then, or waits for a write that cannot begin. It writes nothing itself. */
static void begin_keeper(uint32_t deadline_ms) {
    end_keeper();
    pid_t child = fork();
    if (child) {
        keeper = child;
        return;
    }
    struct timespec left = {deadline_ms / 1000, deadline_ms % 1000 * 1000000};
    while (clock_nanosleep(CLOCK_MONOTONIC, 0, &left, &left) == EINTR) continue;
    for (size_t i = count; i > 0; i--) ioctl(frozen[i - 1], FITHAW, 0);
    _exit(0);
}

static void set_deadline(uint32_t deadline_ms) {
    if (!deadline_ms) deadline_ms = 1;
    thaw_at = monotonic_ms() + deadline_ms;
    begin_keeper(deadline_ms);
}

/* EBUSY: it is frozen already, by whomever; then it is not ours to thaw. EOPNOTSUPP: a kind that cannot be. */
static char *freeze(int filesystem) {
    int own = fcntl(filesystem, F_DUPFD_CLOEXEC, 3);
    if (own < 0 || count == MOST_FROZEN) {
        if (own >= 0) close(own);
        return format_text("there are too many file systems to freeze");
    }
    if (ioctl(own, FIFREEZE, 0) == 0) {
        frozen[count++] = own;
        return NULL;
    }
    char *problem = errno == EBUSY || errno == EOPNOTSUPP ? NULL : format_text("the disk cannot be frozen: %s", strerror(errno));
    close(own);
    return problem;
}

char *freeze_these(const int *filesystems, size_t number, uint32_t deadline_ms) {
    char *problem = NULL;
    if (thaw_at) return set_deadline(deadline_ms), NULL;
    for (size_t i = 0; i < number && !problem; i++) problem = freeze(filesystems[i]);
    if (!problem && !count) problem = format_text("the disk cannot be frozen: it is already, or of a kind that cannot be");
    if (problem) free(freeze_thaw());
    else set_deadline(deadline_ms);
    return problem;
}

static bool on_block_device(const struct mntent *mount, const dev_t *seen, size_t seen_count, dev_t *device) {
    struct stat s, node;
    if (mount->mnt_fsname[0] != '/' || hasmntopt(mount, "ro") || stat(mount->mnt_dir, &s) < 0) return false;
    *device = s.st_dev;
    for (size_t i = 0; i < seen_count; i++)
        if (seen[i] == s.st_dev) return false;
    return major(s.st_dev) || (stat(mount->mnt_fsname, &node) == 0 && S_ISBLK(node.st_mode)); /* btrfs has devices of its own making */
}

/* The last mounted first: a file system may lie in a file of one that was mounted before it. */
char *freeze_machine(uint32_t deadline_ms) {
    if (thaw_at) return set_deadline(deadline_ms), NULL;
    FILE *table = setmntent("/proc/self/mounts", "re");
    if (!table) return format_text("the mounts cannot be read: %s", strerror(errno));
    int directories[MOST_FROZEN];
    dev_t seen[MOST_FROZEN];
    size_t found = 0;
    struct mntent *mount;
    char *problem = NULL;
    while (found < MOST_FROZEN && (mount = getmntent(table))) {
        if (!on_block_device(mount, seen, found, &seen[found])) continue;
        directories[found] = open(mount->mnt_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (directories[found] >= 0) found++;
    }
    endmntent(table);
    for (size_t i = found; i > 0; i--) {
        if (!problem) problem = freeze(directories[i - 1]);
        close(directories[i - 1]);
    }
    if (!problem && !count) problem = format_text("there is no writable disk to freeze");
    if (problem) free(freeze_thaw());
    else set_deadline(deadline_ms);
    return problem;
}

char *freeze_thaw(void) {
    char *problem = NULL;
    held = thaw_at && monotonic_ms() < thaw_at;
    end_keeper();
    for (; count; count--) {
        int filesystem = frozen[count - 1];
        if (ioctl(filesystem, FITHAW, 0) < 0) {
            held = false; /* EINVAL: somebody has thawed it before */
            if (errno != EINVAL && !problem) problem = format_text("the disk cannot be thawed: %s", strerror(errno));
        }
        close(filesystem);
    }
    thaw_at = 0;
    return problem;
}

bool freeze_held(void) { return held; }

size_t freeze_count(void) { return count; }

pid_t freeze_keeper(void) { return keeper; }

bool freeze_holds(void) { return thaw_at; }

void freeze_tick(void) {
    if (thaw_at && monotonic_ms() >= thaw_at) free(freeze_thaw());
}

int freeze_next_tick(void) {
    if (!thaw_at) return -1;
    int64_t left = thaw_at - monotonic_ms();
    return left < 0 ? 0 : left > 60000 ? 60000 : (int)left;
}
