/* The instance's own process: its state, its log, and who reads along. */
#pragma once
#include "log.h"
#include "process.h"

extern enum phase instance_phase;

char *instance_start(struct view body); /* NULL or a sentence; sets state either way */
bool instance_started(void);
bool instance_finished(void); /* ended, and all its output is in the log */
int instance_exit_code(void);
void instance_state(struct bytes *fields);
char **instance_environment(struct view body); /* the instance's own with the request's over it */
const char *instance_directory(void);
const char *instance_user(void);
struct process *instance_process(void);     /* NULL before the start */
bool instance_read(size_t room);            /* move output to the log, at most room bytes; whether anything moved */
void instance_kill_rest(void);              /* once it has ended: everything else in the machine */
char *instance_stop(int signal, uint32_t timeout_ms);
void instance_tick(void);
int instance_next_tick(void);
void instance_acknowledge_logs(uint64_t offset);
extern bool instance_owns_machine; /* init mode */
void instance_forget(void); /* what its process wrote until now */
