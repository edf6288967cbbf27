#define _GNU_SOURCE
#include "instance.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "protocol.h"

#define CHUNK 16384

enum phase instance_phase = PHASE_WAITING;
bool instance_owns_machine;

static struct process *process;
static bool drained, rest_killed;
static int exit_code;
static char *reason;
static char **environment;
static char *directory, *user;
static uint64_t started_ns, finished_ns, acknowledged;
static pid_t pid;
static uint8_t chunk[CHUNK];
static int64_t kill_at; /* monotonic ms; 0: no stop is under way */

static uint64_t realtime_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

bool instance_started(void) { return instance_phase >= PHASE_RUNNING; }
bool instance_finished(void) { return instance_phase == PHASE_EXITED && drained; }
int instance_exit_code(void) { return exit_code; }
struct process *instance_process(void) { return process; }
const char *instance_directory(void) { return directory ? directory : "/"; }
const char *instance_user(void) { return user ? user : ""; }
void instance_acknowledge_logs(uint64_t offset) {
    if (offset > acknowledged && offset <= log_end()) acknowledged = offset;
}

char **instance_environment(struct view body) {
    char **over = find_texts(body, TAG_ENVIRONMENT);
    size_t own = 0, added = 0;
    while (environment && environment[own]) own++;
    while (over[added]) added++;
    char **all = allocate((own + added + 1) * sizeof *all);
    size_t count = 0;
    for (size_t i = 0; i < own; i++) {
        size_t name = strcspn(environment[i], "=");
        bool replaced = false;
        for (size_t j = 0; j < added && !replaced; j++) replaced = strncmp(over[j], environment[i], name + 1) == 0;
        if (!replaced) all[count++] = copy_text(environment[i], strlen(environment[i]));
    }
    memcpy(all + count, over, added * sizeof *over);
    free(over);
    return all;
}

char *instance_start(struct view body) {
    struct command command = {
        .arguments = find_texts(body, TAG_ARGUMENT),
        .terminal = find_number(body, TAG_TERMINAL, 0),
        .input = find_number(body, TAG_STDIN, 0),
        .make_directory = true,
        .rows = (unsigned short)find_number(body, TAG_ROWS, 24),
        .columns = (unsigned short)find_number(body, TAG_COLUMNS, 80),
    };
    directory = find_text(body, TAG_WORKING_DIRECTORY);
    user = find_text(body, TAG_USER);
    command.directory = (char *)instance_directory();
    command.user = (char *)instance_user();
    command.environment = environment = instance_environment(body);
    started_ns = realtime_ns();
    process = process_start(&command, &reason, &exit_code);
    free_texts(command.arguments);
    if (process) {
        pid = process->pid;
        instance_phase = PHASE_RUNNING;
        return NULL;
    }
    instance_phase = PHASE_EXITED;
    drained = true;
    finished_ns = realtime_ns();
    return copy_text(reason, strlen(reason));
}

void instance_state(struct bytes *fields) {
    add_number(fields, TAG_PHASE, instance_phase);
    if (pid) add_number(fields, TAG_PID, (uint64_t)pid);
    if (started_ns) add_number(fields, TAG_STARTED_NS, started_ns);
    if (instance_phase == PHASE_EXITED) {
        add_number(fields, TAG_EXIT_CODE, (uint64_t)exit_code);
        add_number(fields, TAG_FINISHED_NS, finished_ns);
        if (reason) add_text(fields, TAG_REASON, reason);
    }
    add_number(fields, TAG_LOG_START, log_start());
    add_number(fields, TAG_LOG_END, log_end());
    add_number(fields, TAG_LOG_ACKNOWLEDGED, acknowledged);
}

void instance_forget(void) {
    explicit_bzero(chunk, sizeof chunk);
    log_forget();
}

bool instance_read(size_t room) {
    uint8_t stream;
    size_t got;
    if (!process || drained) return false;
    int result = process_read(process, chunk, room < CHUNK ? room : CHUNK, &stream, &got);
    if (result > 0) log_add(stream, chunk, got);
    if (result < 0 && process->reaped) drained = true;
    return result > 0;
}

void instance_kill_rest(void) {
    if (!process || !process->reaped || rest_killed) return;
    rest_killed = true;
    kill_at = 0;
    exit_code = process->exit_code;
    finished_ns = realtime_ns();
    instance_phase = PHASE_EXITED;
    if (instance_owns_machine) kill(-1, SIGKILL);
}

char *instance_stop(int number, uint32_t timeout_ms) {
    if (!process) {
        if (instance_phase == PHASE_EXITED) return NULL;
        instance_phase = PHASE_EXITED; /* stopped before it was started */
        drained = true;
        exit_code = 128 + number;
        finished_ns = realtime_ns();
        reason = format_text("it was stopped before its command ran");
        return NULL;
    }
    if (number) process_signal(process, number);
    int64_t at = monotonic_ms() + timeout_ms;
    if (!process->reaped && (!kill_at || at < kill_at)) kill_at = at;
    return NULL;
}

void instance_tick(void) {
    if (!kill_at || monotonic_ms() < kill_at) return;
    kill_at = 0;
    if (process) process_signal(process, SIGKILL);
}

int instance_next_tick(void) {
    if (process && !drained && (process->reaped || process->hung_up)) return 20;
    if (!kill_at) return -1;
    int64_t left = kill_at - monotonic_ms();
    return left < 0 ? 0 : left > 60000 ? 60000 : (int)left;
}
