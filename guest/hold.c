/* Groups beside the agent's own, on every level from the root down to it, are frozen as they are. What runs in the agent's group or in one
   above it (what was exec'd through a service, all of a machine without a manager of groups) is moved into a group of ours for as long. */
#define _GNU_SOURCE
#include "hold.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "freeze.h"
#include "machine.h"
#include "process.h"

#define OURS "lamella-held"
#define CGROUP2_MAGIC 0x63677270 /* linux/magic.h */
#define KERNEL_THREAD 0x00200000 /* PF_KTHREAD, linux/sched.h */
#define LONGEST_MS 10000
#define KEEPER_LATER_MS 500 /* the agent itself comes first, so that a renewal that began in time is not overtaken */
#define MOST_ROUNDS 64

static int hierarchy = -1;
static char *own; /* "." or "./system.slice/lamella-agent.service" */
static char **groups; /* that we froze */
static size_t count;
static bool holding;
static int64_t release_at; /* monotonic ms; 0: no deadline */
static pid_t keeper;

static void pause_ms(long ms) { nanosleep(&(struct timespec){ms / 1000, ms % 1000 * 1000000}, NULL); }

/* Where somebody has mounted the whole hierarchy. To mount it once more would change the options of theirs (cgroup_get_tree in kernel/cgroup/cgroup.c). */
static int mounted_hierarchy(void) {
    FILE *table = fopen("/proc/self/mountinfo", "re");
    char *line = NULL, root[8], place[1024];
    size_t room = 0;
    int found = -1;
    while (table && found < 0 && getline(&line, &room, table) > 0) {
        struct statfs facts;
        if (!strstr(line, " - cgroup2 ") || sscanf(line, "%*s %*s %*s %7s %1023s", root, place) != 2 || strcmp(root, "/") != 0) continue;
        found = open(place, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (found < 0 || (fstatfs(found, &facts) == 0 && facts.f_type == CGROUP2_MAGIC)) continue;
        close(found);
        found = -1;
    }
    free(line);
    if (table) fclose(table);
    return found;
}

/* A mount that is nowhere but in this descriptor. */
static int own_hierarchy(void) {
    int context = fsopen("cgroup2", FSOPEN_CLOEXEC), found = -1;
    if (context >= 0 && fsconfig(context, FSCONFIG_CMD_CREATE, NULL, NULL, 0) == 0) found = fsmount(context, FSMOUNT_CLOEXEC, 0);
    if (context >= 0) close(context);
    return found;
}

static char *find_own(void) {
    FILE *file = fopen("/proc/self/cgroup", "re");
    char *line = NULL, *found = NULL;
    size_t room = 0;
    while (file && !found && getline(&line, &room, file) > 0) {
        if (strncmp(line, "0::/", 4) != 0) continue;
        line[strcspn(line, "\n")] = 0;
        found = line[4] ? format_text("./%s", line + 4) : copy_text(".", 1);
    }
    free(line);
    if (file) fclose(file);
    return found;
}

static int open_in(const char *group, const char *name, int flags) {
    char *path = format_text("%s/%s", group, name);
    int fd = openat(hierarchy, path, flags | O_CLOEXEC);
    int kept = errno;
    free(path);
    errno = kept;
    return fd;
}

/* The whole of a file of a group; empty when the group is gone. */
static struct bytes read_in(const char *group, const char *name) {
    struct bytes text = {0};
    ssize_t got;
    int fd = open_in(group, name, O_RDONLY);
    while (fd >= 0 && (got = read(fd, bytes_reserve(&text, 4096), 4095)) > 0) text.end += (size_t)got;
    if (fd >= 0) close(fd);
    bytes_add(&text, "", 1);
    return text;
}

static bool write_in(const char *group, const char *name, const char *value) {
    int fd = open_in(group, name, O_WRONLY);
    if (fd < 0) return false;
    bool done = write(fd, value, strlen(value)) >= 0;
    int kept = errno;
    close(fd);
    errno = kept;
    return done;
}

static bool says(const char *group, const char *name, const char *words) {
    struct bytes text = read_in(group, name);
    bool found = strstr((char *)text.data + text.start, words) != NULL;
    bytes_free(&text);
    return found;
}

static bool is_kernel_thread(pid_t pid) {
    char path[64], line[512];
    unsigned flags = 0;
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t got = fd < 0 ? -1 : read(fd, line, sizeof line - 1);
    if (fd >= 0) close(fd);
    if (got <= 0) return false;
    line[got] = 0;
    char *after = strrchr(line, ')');
    if (after) sscanf(after + 1, " %*c %*d %*d %*d %*d %*d %u", &flags);
    return flags & KERNEL_THREAD;
}

/* One that somebody else keeps frozen stays theirs. */
static char *freeze_group(const char *group, bool *changed) {
    bool frozen = says(group, "cgroup.freeze", "1"), ours = strcmp(strrchr(group, '/') + 1, OURS) == 0;
    if (!frozen && !write_in(group, "cgroup.freeze", "1")) return errno == ENOENT || errno == ENODEV ? NULL : format_text("the group %s cannot be frozen: %s", group + 1, strerror(errno));
    if (!frozen) *changed = true;
    else if (!ours) return NULL;
    for (size_t i = 0; i < count; i++)
        if (strcmp(groups[i], group) == 0) return NULL;
    groups = realloc(groups, (count + 1) * sizeof *groups);
    if (!groups) abort();
    groups[count++] = copy_text(group, strlen(group));
    return NULL;
}

/* Move the processes right in this group, but for the agent's own, below it. */
static char *gather(const char *group, bool *changed) {
    struct bytes list = read_in(group, "cgroup.procs");
    char *ours = format_text("%s/" OURS, group), *problem = NULL, *rest = NULL;
    for (char *word = strtok_r((char *)list.data + list.start, "\n", &rest); word && !problem; word = strtok_r(NULL, "\n", &rest)) {
        pid_t pid = atoi(word);
        if (pid <= 0 || pid == getpid() || pid == keeper || pid == freeze_keeper() || is_kernel_thread(pid)) continue;
        if (mkdirat(hierarchy, ours, 0755) < 0 && errno != EEXIST) problem = format_text("the group %s cannot be made: %s", ours, strerror(errno));
        if (!problem) problem = freeze_group(ours, changed);
        if (problem || write_in(ours, "cgroup.procs", word)) *changed = true;
        else if (errno != ESRCH) problem = format_text("process %s cannot be held: %s", word, strerror(errno));
    }
    free(ours);
    bytes_free(&list);
    return problem;
}

/* Freeze what is below this group, but for the one that leads to the agent's own. */
static char *freeze_below(const char *group, const char *spared, bool *changed) {
    int fd = openat(hierarchy, group, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *directory = fd < 0 ? NULL : fdopendir(fd);
    struct dirent *entry;
    size_t size = strcspn(spared, "/");
    char *problem = directory ? NULL : format_text("the group %s cannot be read: %s", group, strerror(errno));
    while (!problem && (entry = readdir(directory))) {
        if (entry->d_type != DT_DIR || strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
        if (strlen(entry->d_name) == size && strncmp(entry->d_name, spared, size) == 0) continue;
        char *child = format_text("%s/%s", group, entry->d_name);
        problem = freeze_group(child, changed);
        free(child);
    }
    if (directory) closedir(directory);
    return problem;
}

static char *round_of_all(bool *changed) {
    char *problem = NULL;
    for (size_t size = 1; !problem; size += 1 + strcspn(own + size + 1, "/")) {
        char *group = copy_text(own, size);
        problem = gather(group, changed);
        if (!problem) problem = freeze_below(group, own[size] ? own + size + 1 : "", changed);
        free(group);
        if (!own[size]) break;
    }
    return problem;
}

static char *await_all(int64_t until) {
    for (size_t i = 0; i < count; i++) {
        for (;; pause_ms(1)) {
            if (says(groups[i], "cgroup.events", "frozen 1")) break;
            if (faccessat(hierarchy, groups[i], F_OK, 0) < 0) break;
            if (monotonic_ms() >= until) return format_text("what runs in the group %s does not come to stand still", groups[i] + 1);
        }
    }
    return NULL;
}

static void end_keeper(void) {
    if (keeper > 0) kill(keeper, SIGKILL), waitpid(keeper, NULL, 0);
    keeper = 0;
}

/* Each process of our own group goes back to where it was, and runs from then on. */
static void thaw_group(const char *group) {
    const char *name = strrchr(group, '/') + 1;
    bool ours = strcmp(name, OURS) == 0, moved = ours;
    for (int i = 0; moved && i < MOST_ROUNDS; i++) {
        struct bytes list = read_in(group, "cgroup.procs");
        char *rest = NULL;
        moved = false;
        for (char *word = strtok_r((char *)list.data + list.start, "\n", &rest); word; word = strtok_r(NULL, "\n", &rest)) moved |= write_in(group, "../cgroup.procs", word);
        bytes_free(&list);
    }
    write_in(group, "cgroup.freeze", "0");
    if (ours) unlinkat(hierarchy, group, AT_REMOVEDIR);
}

static void thaw_all(void) {
    for (size_t i = 0; i < count; i++) thaw_group(groups[i]);
}

/* A process of its own lets go should the agent itself be gone or stand waiting by then. It keeps nothing open but the hierarchy. */
static void begin_keeper(int64_t at) {
    end_keeper();
    pid_t child = fork();
    if (child) {
        keeper = child;
        return;
    }
    for (int fd = 3; fd < 1024; fd++)
        if (fd != hierarchy) close(fd);
    at += KEEPER_LATER_MS;
    struct timespec when = {at / 1000, at % 1000 * 1000000};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &when, NULL) == EINTR) continue;
    thaw_all();
    _exit(0);
}

char *hold_begin(uint32_t deadline_ms, const char **code) {
    int64_t began = monotonic_ms(), until = began + (deadline_ms && deadline_ms < LONGEST_MS ? deadline_ms : LONGEST_MS);
    *code = "unsupported";
    if (getpid() != 1 && !machine_has_init()) return format_text("this agent serves no machine that it could hold");
    if (hierarchy < 0) hierarchy = mounted_hierarchy();
    if (hierarchy < 0) hierarchy = own_hierarchy();
    if (hierarchy < 0) return format_text("this kernel has no cgroup v2, or one without a freezer (Linux 5.2): %s", strerror(errno));
    free(own);
    own = find_own();
    if (!own) return format_text("the agent is in no group of cgroup v2");
    *code = "conflict";
    char *problem = NULL;
    bool changed = true;
    for (int i = 0; changed && !problem; i++) { /* until nothing new came while the last ones were frozen */
        changed = false;
        problem = round_of_all(&changed);
        if (!problem) problem = await_all(until);
        if (!problem && changed && i == MOST_ROUNDS) problem = format_text("new processes and groups come faster than they can be held");
    }
    if (problem) {
        if (!holding) hold_release();
        return problem;
    }
    holding = true;
    release_at = deadline_ms ? began + deadline_ms : 0;
    if (release_at) begin_keeper(release_at);
    else end_keeper();
    return NULL;
}

void hold_release(void) {
    end_keeper();
    thaw_all();
    while (count) free(groups[--count]);
    holding = false;
    release_at = 0;
}

void hold_keep(void) {
    end_keeper();
    release_at = 0;
}

bool hold_holds(void) {
    hold_tick();
    return holding;
}

void hold_tick(void) {
    if (release_at && monotonic_ms() >= release_at) hold_release();
}

int hold_next_tick(void) {
    if (!release_at) return -1;
    int64_t left = release_at - monotonic_ms();
    return left < 0 ? 0 : left > 60000 ? 60000 : (int)left;
}
