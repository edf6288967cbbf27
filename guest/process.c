#define _GNU_SOURCE
#include "process.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <dirent.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#include "accounts.h"

#define DEFAULT_PATH "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#define TERMINAL_GRACE_MS 100 /* a terminal's last output comes a little after the process ended */

const char *process_group_file = "";
bool process_spared;
static struct process *processes;

int64_t monotonic_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static const char *variable(char **environment, const char *name) {
    size_t size = strlen(name);
    for (; *environment; environment++)
        if (strncmp(*environment, name, size) == 0 && (*environment)[size] == '=') return *environment + size + 1;
    return NULL;
}

/* The environment with what every process may expect: PATH, HOME, and TERM on a terminal. */
static char **complete(char **given, const struct account *account, bool terminal) {
    size_t count = 0;
    while (given[count]) count++;
    char **all = allocate((count + 4) * sizeof *all);
    memcpy(all, given, count * sizeof *all);
    if (!variable(given, "PATH")) all[count++] = format_text("PATH=%s", DEFAULT_PATH);
    if (!variable(given, "HOME")) all[count++] = format_text("HOME=%s", account->home);
    if (terminal && !variable(given, "TERM")) all[count++] = format_text("TERM=xterm");
    return all;
}

static void make_directories(const char *path) {
    char *copy = copy_text(path, strlen(path));
    for (char *p = copy + 1; *copy && *p; p++)
        if (*p == '/') *p = 0, mkdir(copy, 0755), *p = '/';
    mkdir(copy, 0755);
    free(copy);
}

/* In the child: what went wrong, as errno and the step. */
static void fail(int report, char step) {
    uint8_t message[5];
    store32(message, (uint32_t)errno);
    message[4] = (uint8_t)step;
    (void)!write(report, message, sizeof message);
    _exit(127);
}

static void execute(const struct command *c, char **environment) {
    const char *name = c->arguments[0], *path = variable(environment, "PATH");
    if (strchr(name, '/') || !*name) {
        execve(name, c->arguments, environment);
        return;
    }
    int kept = ENOENT;
    for (const char *at = path; at; at = strchr(at, ':') ? strchr(at, ':') + 1 : NULL) {
        int size = (int)strcspn(at, ":");
        char *candidate = size ? format_text("%.*s/%s", size, at, name) : format_text("./%s", name);
        execve(candidate, c->arguments, environment);
        if (errno != ENOENT && errno != ENOTDIR) kept = errno;
        free(candidate);
    }
    errno = kept;
}

static void write_file(const char *path, const char *text) {
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0) return;
    (void)!write(fd, text, strlen(text));
    close(fd);
}

__attribute__((noreturn)) static void child(const struct command *c, const struct account *account, char **environment, const int streams[3], int report) {
    sigset_t none;
    sigemptyset(&none);
    for (int number = 1; number < NSIG; number++) signal(number, SIG_DFL);
    sigprocmask(SIG_SETMASK, &none, NULL);
    setsid();
    if (*process_group_file) write_file(process_group_file, "0");
    if (process_spared) write_file("/proc/self/oom_score_adj", "0");
    for (int i = 0; i < 3; i++)
        if (dup2(streams[i], i) < 0) fail(report, 's');
    if (c->terminal) ioctl(0, TIOCSCTTY, 0);
    if (c->terminal && account->uid) (void)!fchown(0, account->uid, (gid_t)-1);
    if (geteuid() == 0) {
        if (setgroups((size_t)account->group_count, account->groups) < 0 && errno != EPERM) fail(report, 'u');
        if (setresgid(account->gid, account->gid, account->gid) < 0 || setresuid(account->uid, account->uid, account->uid) < 0) fail(report, 'u');
    }
    if (chdir(c->directory) < 0) fail(report, 'd');
    execute(c, environment);
    fail(report, 'x');
    __builtin_unreachable();
}

/* Our ends in p, the child's in streams. */
static bool open_streams(struct process *p, const struct command *c, int streams[3]) {
    int pair[2];
    if (c->terminal) {
        struct winsize size = {.ws_row = c->rows, .ws_col = c->columns};
        int zero = 0;
        p->output = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);
        if (p->output < 0 || ioctl(p->output, TIOCSPTLCK, &zero) < 0) return false;
        int other = ioctl(p->output, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
        if (other < 0) return false;
        ioctl(p->output, TIOCSWINSZ, &size);
        streams[0] = other;
        streams[1] = fcntl(other, F_DUPFD_CLOEXEC, 3);
        streams[2] = fcntl(other, F_DUPFD_CLOEXEC, 3);
        return streams[1] >= 0 && streams[2] >= 0;
    }
    if (c->input) {
        if (pipe2(pair, O_CLOEXEC) < 0) return false;
        streams[0] = pair[0];
        p->input = pair[1];
        fcntl(p->input, F_SETFL, O_NONBLOCK);
    } else if ((streams[0] = open("/dev/null", O_RDONLY | O_CLOEXEC)) < 0) {
        return false;
    }
    int *ours[2] = {&p->output, &p->errors};
    for (int i = 0; i < 2; i++) {
        if (pipe2(pair, O_CLOEXEC) < 0) return false;
        *ours[i] = pair[0];
        streams[i + 1] = pair[1];
        fcntl(pair[0], F_SETFL, O_NONBLOCK);
        fcntl(pair[0], F_SETPIPE_SZ, 256 << 10);
    }
    return true;
}

static void close_stream(int *fd) {
    if (*fd >= 0) close(*fd);
    *fd = -1;
}

static char *explain(const struct command *c, uint32_t number, char step, int *code) {
    *code = step == 'x' && (number == ENOENT || number == ENOTDIR) ? 127 : 126;
    const char *why = strerror((int)number);
    if (step == 'd') return format_text("the working directory %s cannot be entered: %s", c->directory, why);
    if (step == 'x' && *code == 127) return format_text("there is no command %s in the instance", c->arguments[0]);
    if (step == 'x') return format_text("%s cannot be run: %s", c->arguments[0], why);
    return format_text("%s could not be started: %s", c->arguments[0], why);
}

struct process *process_start(const struct command *c, char **problem, int *code) {
    struct account account;
    struct process *p = allocate(sizeof *p);
    int streams[3] = {-1, -1, -1}, report[2] = {-1, -1};
    uint8_t message[5];
    *p = (struct process){.input = -1, .output = -1, .errors = -1, .terminal = c->terminal};
    *code = 126;
    *problem = c->arguments[0] ? find_account(c->user, &account) : format_text("the command is empty");
    if (*problem) {
        free(p);
        return NULL;
    }
    if (c->make_directory) make_directories(c->directory);
    char **environment = complete(c->environment, &account, c->terminal);
    if (open_streams(p, c, streams) && pipe2(report, O_CLOEXEC) == 0) p->pid = fork();
    if (p->pid == 0 && report[1] >= 0) child(c, &account, environment, streams, report[1]);
    uint32_t number = p->pid < 0 || report[1] < 0 ? (uint32_t)errno : 0;
    char step = 'f';
    close_stream(&report[1]);
    for (int i = 0; i < 3; i++) close_stream(&streams[i]);
    if (!number && read(report[0], message, sizeof message) == sizeof message) {
        number = load32(message);
        step = (char)message[4];
        waitpid(p->pid, NULL, 0);
    }
    close_stream(&report[0]);
    if (number) {
        *problem = explain(c, number, step, code);
        close_stream(&p->input);
        close_stream(&p->output);
        close_stream(&p->errors);
        free(p);
    } else {
        p->next = processes;
        processes = p;
    }
    size_t given = 0;
    while (c->environment[given]) given++;
    for (char **extra = environment + given; *extra; extra++) free(*extra);
    free(environment);
    return number ? NULL : p;
}

void process_reap(void) {
    int status;
    pid_t pid;
    while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
        for (struct process *p = processes; p; p = p->next) {
            if (p->pid != pid || p->reaped) continue;
            p->reaped = true;
            p->exited_at = monotonic_ms();
            p->exit_code = p->timed_out ? 124 : WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
        }
    }
}

/* Read one of the two; the same answers as process_read. */
static int read_one(struct process *p, int *fd, uint8_t *data, size_t size, size_t *got) {
    if (*fd < 0) return -1;
    ssize_t count = read(*fd, data, size);
    p->hung_up = false;
    if (count > 0) {
        *got = (size_t)count;
        return 1;
    }
    if (count < 0 && (errno == EAGAIN || errno == EINTR)) {
        /* A pipe holds all that the process wrote before it ended; who inherited the pipe does not keep us. */
        if (!p->reaped || (p->terminal && monotonic_ms() - p->exited_at < TERMINAL_GRACE_MS)) return 0;
    } else if (p->terminal && !p->reaped) {
        p->hung_up = true; /* EIO */
        return 0;
    }
    close_stream(fd);
    return -1;
}

int process_read(struct process *p, uint8_t *data, size_t size, uint8_t *stream, size_t *got) {
    int results[2];
    for (int i = 0; i < 2; i++) {
        bool errors = p->errors_first != (i == 1);
        *stream = errors ? 2 : 1;
        results[i] = read_one(p, errors ? &p->errors : &p->output, data, size, got);
        if (results[i] != 1) continue;
        p->errors_first = !errors;
        return 1;
    }
    return results[0] < 0 && results[1] < 0 ? -1 : 0;
}

ssize_t process_write(struct process *p, const uint8_t *data, size_t size) {
    int fd = p->terminal ? p->output : p->input;
    if (fd < 0 || p->reaped) return -1;
    ssize_t put = write(fd, data, size);
    if (put >= 0) return put;
    if (errno == EAGAIN || errno == EINTR) return 0;
    close_stream(&p->input);
    return -1;
}

void process_end_input(struct process *p) {
    struct termios settings;
    if (!p->terminal)
        close_stream(&p->input);
    else if (p->output >= 0 && tcgetattr(p->output, &settings) == 0)
        (void)!write(p->output, &settings.c_cc[VEOF], 1);
}

void process_resize(struct process *p, unsigned short rows, unsigned short columns) {
    struct winsize size = {.ws_row = rows, .ws_col = columns};
    if (p->terminal && p->output >= 0) ioctl(p->output, TIOCSWINSZ, &size);
}

void process_signal(struct process *p, int number) {
    if (!p->reaped) kill(p->pid, number);
}

/* The session of a process, from its stat; the name in it may hold anything but ends at the last parenthesis. */
static pid_t session_of(const char *pid) {
    char path[64], line[512];
    int session = -1;
    snprintf(path, sizeof path, "/proc/%.20s/stat", pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t got = fd < 0 ? -1 : read(fd, line, sizeof line - 1);
    if (fd >= 0) close(fd);
    if (got <= 0) return -1;
    line[got] = 0;
    char *after = strrchr(line, ')');
    if (after) sscanf(after + 1, " %*c %*d %*d %d", &session);
    return session;
}

void process_kill_session(struct process *p) {
    if (p->reaped) return;
    kill(p->pid, SIGSTOP);
    DIR *directory = opendir("/proc");
    struct dirent *entry;
    while (directory && (entry = readdir(directory)))
        if (entry->d_name[0] >= '1' && entry->d_name[0] <= '9' && session_of(entry->d_name) == p->pid) kill(atoi(entry->d_name), SIGKILL);
    if (directory) closedir(directory);
    kill(p->pid, SIGKILL);
}

void process_signal_named(const char *name, int number) {
    DIR *directory = opendir("/proc");
    struct dirent *entry;
    while (directory && (entry = readdir(directory))) {
        char path[64], found[32] = "";
        if (entry->d_name[0] < '1' || entry->d_name[0] > '9') continue;
        snprintf(path, sizeof path, "/proc/%.20s/comm", entry->d_name);
        FILE *file = fopen(path, "re");
        if (file && fgets(found, sizeof found, file)) found[strcspn(found, "\n")] = 0;
        if (file) fclose(file);
        if (strcmp(found, name) == 0) kill(atoi(entry->d_name), number);
    }
    if (directory) closedir(directory);
}

void process_free(struct process *p) {
    for (struct process **at = &processes; *at; at = &(*at)->next) {
        if (*at != p) continue;
        *at = p->next;
        break;
    }
    close_stream(&p->input);
    close_stream(&p->output);
    close_stream(&p->errors);
    free(p);
}

static void keep_last(char *said, size_t room, const uint8_t *data, size_t size) {
    size_t held = strlen(said);
    if (size > room - 1) data += size - (room - 1), size = room - 1;
    size_t lost = held + size > room - 1 ? held + size - (room - 1) : 0;
    memmove(said, said + lost, held - lost);
    for (size_t i = 0; i < size; i++) said[held - lost + i] = data[i] ? (char)data[i] : ' ';
    said[held - lost + size] = 0;
}

int process_run(char **arguments, int64_t until, char **said) {
    char *none[] = {NULL}, *problem = NULL;
    const char *group = process_group_file;
    struct command command = {.arguments = arguments, .environment = none, .directory = "/", .user = ""};
    uint8_t data[1024], stream;
    size_t got;
    int code, result;
    process_group_file = "";
    struct process *p = process_start(&command, &problem, &code);
    process_group_file = group;
    *said = p ? allocate(sizeof data) : problem;
    if (!p) return code;
    for (;;) {
        process_reap();
        while ((result = process_read(p, data, sizeof data, &stream, &got)) > 0) keep_last(*said, sizeof data, data, got);
        if (p->reaped || monotonic_ms() >= until) break;
        struct pollfd list[2] = {{.fd = p->output, .events = POLLIN}, {.fd = p->errors, .events = POLLIN}};
        poll(list, 2, result < 0 ? 1 : 10); /* also what has closed its output may take a moment to end */
    }
    code = p->reaped ? p->exit_code : -1;
    process_kill_session(p);
    process_free(p);
    return code;
}
