/* One process with its standard streams: pipes, or a terminal. */
#pragma once
#include <sys/types.h>

#include "bytes.h"

struct command {
    char **arguments;
    char **environment; /* NAME=value, ends in NULL */
    char *directory, *user;
    bool terminal, input, make_directory;
    unsigned short rows, columns;
};

struct process {
    pid_t pid;
    int input, output, errors; /* ours; -1 when closed or absent. With a terminal, output is its master and also takes input */
    bool terminal, reaped, timed_out;
    bool hung_up; /* nobody has the terminal open, though the process lives */
    bool errors_first; /* whose turn it is to be read */
    int exit_code;
    int64_t exited_at; /* monotonic ms */
    struct process *next;
};

/* Start it. Returns NULL on failure with *problem (to be freed) and *code 126 or 127. */
struct process *process_start(const struct command *command, char **problem, int *code);
void process_reap(void); /* collect whatever ended, ours or orphans */
/* Read output when there is some: 1 with *stream and *got, 0 nothing now, -1 no more will come. */
int process_read(struct process *p, uint8_t *data, size_t size, uint8_t *stream, size_t *got);
/* Write input; returns bytes taken, or -1 when nobody will ever read. */
ssize_t process_write(struct process *p, const uint8_t *data, size_t size);
void process_end_input(struct process *p);
void process_resize(struct process *p, unsigned short rows, unsigned short columns);
void process_signal(struct process *p, int number);
void process_kill_session(struct process *p); /* it and all that it started in its session */
void process_free(struct process *p);         /* closes the streams; an unreaped one is reaped later */
int64_t monotonic_ms(void);
void process_signal_named(const char *name, int number); /* every process that the kernel knows by this name (15 bytes at most) */
/* Run it as root to its end, beside the instance's own and what bounds them; but not beyond monotonic_ms() == until. Its exit code, 127 also
   when there is no such program, -1 when it was ended. *said (to be freed): the last of what it wrote. */
int process_run(char **arguments, int64_t until, char **said);

/* The cgroup.procs that every process joins; empty for none. */
extern const char *process_group_file;
/* Whether the agent itself is spared by the OOM killer, and its processes are not to be. */
extern bool process_spared;
