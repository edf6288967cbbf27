/* The process that a module runs in, or is compiled in: process 1 of its own pid namespace. */
#define _GNU_SOURCE
#include "lamella-wasm.h"
#include "library.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* How long a module that is interrupted may take to notice: a call of the host's that blocks does not look at the epoch. */
enum { NOTICE_MS = 200, TIMED_OUT = 124, TRAPPED = 134, NOT_RUN = 126, NOT_FOUND = 127 };

static int told = TOLD;
static atomic_int wanted_code; /* set when the module is interrupted: the code that it then ends with */
static void *running_engine;
static uint64_t deadline_ms;

void tell(char what, int code, const char *format, ...) {
    char text[5 + LARGEST_TEXT];
    int32_t number = code;
    text[0] = what;
    memcpy(text + 1, &number, 4);
    va_list list;
    va_start(list, format);
    int length = vsnprintf(text + 5, LARGEST_TEXT, format, list);
    va_end(list);
    if (length >= LARGEST_TEXT) length = LARGEST_TEXT - 1;
    if (write(told, text, 5 + length) < 0) _exit(125);
}

/* On standard error, once; not at all when that would have to wait. */
static void say(const char *reason) {
    static atomic_int said;
    struct pollfd errors = {2, POLLOUT, 0};
    if (!*reason || atomic_exchange(&said, 1) || poll(&errors, 1, 0) != 1) return;
    dprintf(2, "lamella: %s\n", reason);
}

static void end(int code, const char *reason) {
    say(reason);
    tell(ENDED, code, "%s", reason);
    _exit(code);
}

/* A module's codes are a process's: 0 to 255. */
static void exited(int code) {
    char text[64] = "";
    if (code < 0 || code > 255) {
        snprintf(text, sizeof text, "the module exited with %d, which is told as 255", code);
        code = 255;
    }
    end(code, text);
}

void *proc_exit(void *data, void *caller, const wasm_val *arguments, size_t count, wasm_val *results, size_t result_count) {
    (void)data, (void)caller, (void)count, (void)results, (void)result_count;
    exited(arguments[0].of.i32);
    return NULL;
}

static void reason_for(int code, char *text, size_t size) {
    if (code == TIMED_OUT) snprintf(text, size, "the deadline of %g s has passed", deadline_ms / 1e3);
    else snprintf(text, size, "interrupted by signal %d", code - 128);
}

static void error_text(void *error, char *text, size_t size) {
    wasm_byte_vec said;
    wasmtime_error_message(error, &said);
    snprintf(text, size, "%.*s", (int)said.size, said.data);
}

/* How a run ended, from what wasmtime returned. Does not return. */
static void conclude(void *error, void *trap) {
    char text[LARGEST_TEXT] = "";
    int code = 0;
    if (error && wasmtime_error_exit_status(error, &code)) exited(code);
    if (!error && !trap) end(0, "");
    code = atomic_load(&wanted_code);
    if (code) reason_for(code, text, sizeof text);
    else {
        code = TRAPPED;
        if (error) error_text(error, text, sizeof text);
        else {
            wasm_byte_vec said;
            wasm_trap_message(trap, &said);
            snprintf(text, sizeof text, "%.*s", (int)said.size, said.data);
        }
    }
    end(code, text);
}

static void interrupt(int code) {
    char text[128];
    int none = 0;
    if (!atomic_compare_exchange_strong(&wanted_code, &none, code)) return;
    wasmtime_engine_increment_epoch(running_engine);
    usleep(NOTICE_MS * 1000);
    reason_for(code, text, sizeof text);
    end(code, text);
}

/* The second thread: waits for the deadline, for an order to stop, for the monitor's end. */
static void *listen_to_control(void *nothing) {
    struct timespec began;
    clock_gettime(CLOCK_MONOTONIC, &began);
    for (;;) {
        struct pollfd wait = {CONTROL, POLLIN, 0};
        int64_t left = -1;
        if (deadline_ms) {
            struct timespec now;
            clock_gettime(CLOCK_MONOTONIC, &now);
            left = (int64_t)deadline_ms - ((now.tv_sec - began.tv_sec) * 1000 + (now.tv_nsec - began.tv_nsec) / 1000000);
            if (left <= 0) interrupt(TIMED_OUT);
            if (left > 1 << 30) left = 1 << 30;
        }
        if (poll(&wait, 1, left) <= 0) continue;
        unsigned char signal;
        if (read(CONTROL, &signal, 1) != 1) _exit(125);
        interrupt(128 + signal);
    }
    return nothing;
}

static void refuse(int code, void *error, const char *before) {
    char text[LARGEST_TEXT];
    error_text(error, text, sizeof text);
    tell(FAILED, code, "%s%s", before, text);
    _exit(125);
}

static void *wasi_of(const struct job *job) {
    const struct order *order = &job->order;
    void *wasi = wasi_config_new();
    char place[16];
    int fits = wasi_config_set_argv(wasi, order->argc, (const char **)job->arguments) &&
               wasi_config_set_env(wasi, order->envc, (const char **)job->names, (const char **)job->values);
    if (!fits) {
        tell(FAILED, NOT_RUN, "arguments and environment of a module must be UTF-8");
        _exit(125);
    }
    wasi_config_inherit_stdin(wasi);
    wasi_config_inherit_stdout(wasi);
    wasi_config_inherit_stderr(wasi);
    for (int i = 0; i < job->directory_count; i++) {
        snprintf(place, sizeof place, "/d%d", i);
        if (!wasi_config_preopen_dir(wasi, place, job->targets[i] + 1, job->targets[i][0] == 'w')) {
            tell(FAILED, NOT_RUN, "the directory for %s cannot be opened by the instance's user", job->targets[i] + 1);
            _exit(125);
        }
    }
    return wasi;
}

static void begin_listening(void) {
    pthread_attr_t small;
    pthread_t thread;
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 128 << 10);
    if (pthread_create(&thread, &small, listen_to_control, NULL)) end(125, "no thread could be made");
}

static void wait_for_start(void) {
    unsigned char what;
    tell(READY, 0, "%s", "");
    if (read(CONTROL, &what, 1) != 1) _exit(125);
    if (what) { /* a signal before the start */
        tell(ENDED, 128 + what, "interrupted by signal %d", what);
        _exit(128 + what);
    }
    begin_listening();
}

static void run(const struct job *job) {
    const struct order *order = &job->order;
    struct engine *engine = &engines[!!(order->flags & FUEL)];
    void *code = NULL, *pre = NULL, *trap = NULL, *error;
    int component = order->flags & COMPONENT;
    running_engine = engine->engine;
    deadline_ms = order->deadline_ms;
    error = component ? wasmtime_component_deserialize_file(engine->engine, "/module", &code)
                      : wasmtime_module_deserialize_file(engine->engine, "/module", &code);
    if (error) {
        char text[LARGEST_TEXT];
        error_text(error, text, sizeof text);
        tell(STALE, NOT_RUN, "%s", text);
        _exit(125);
    }
    if (!component && (error = wasmtime_linker_instantiate_pre(engine->linker, code, &pre))) refuse(NOT_RUN, error, "");
    void *wasi = wasi_of(job);
    void *store = wasmtime_store_new(engine->engine, NULL, NULL), *context = wasmtime_store_context(store);
    if (order->memory) wasmtime_store_limiter(store, order->memory, -1, -1, -1, -1);
    if ((error = wasmtime_context_set_wasi(context, wasi))) refuse(125, error, "");
    if (order->flags & FUEL && (error = wasmtime_context_set_fuel(context, order->fuel))) refuse(125, error, "");
    wasmtime_context_set_epoch_deadline(context, 1);
    wait_for_start();
    if (component) {
        component_instance instance;
        component_func function;
        component_val result = {0};
        void *interface = NULL, *index = NULL;
        char name[32];
        if ((error = wasmtime_component_linker_instantiate(engine->component_linker, context, code, &instance))) conclude(error, NULL);
        for (int minor = 0; minor < 16 && !interface; minor++) {
            int length = snprintf(name, sizeof name, "wasi:cli/run@0.2.%d", minor);
            interface = wasmtime_component_instance_get_export_index(&instance, context, NULL, name, length);
        }
        if (interface) index = wasmtime_component_instance_get_export_index(&instance, context, interface, "run", 3);
        if (!index || !wasmtime_component_instance_get_func(&instance, context, index, &function))
            end(NOT_FOUND, "the component exports no wasi:cli/run: it is a library, not a command");
        if ((error = wasmtime_component_func_call(&function, context, NULL, 0, &result, 1))) conclude(error, NULL);
        end(result.of.is_ok ? 0 : 1, "");
    }
    wasm_instance instance;
    wasm_extern start;
    error = wasmtime_instance_pre_instantiate(pre, context, &instance, &trap);
    if (error || trap) conclude(error, trap);
    if (!wasmtime_instance_export_get(context, &instance, "_start", 6, &start) || start.kind != EXTERN_FUNC)
        end(NOT_FOUND, "the module exports no function _start: it is a library, not a command");
    error = wasmtime_func_call(context, &start.of.func, NULL, 0, NULL, 0, &trap);
    conclude(error, trap);
}

enum { CODE_IN = 5, CODE_OUT = 6 };

static void compile(const struct job *job) {
    struct engine *engine = &engines[!!(job->order.flags & FUEL)];
    struct stat status;
    void *code = NULL, *error;
    wasm_byte_vec made;
    begin_listening();
    if (fstat(CODE_IN, &status) || status.st_size == 0) { tell(FAILED, NOT_RUN, "the module is empty"); _exit(125); }
    void *bytes = mmap(NULL, status.st_size, PROT_READ, MAP_PRIVATE, CODE_IN, 0);
    if (bytes == MAP_FAILED) { tell(FAILED, 125, "cannot read the module: %s", strerror(errno)); _exit(125); }
    if (job->order.flags & COMPONENT) {
        if ((error = wasmtime_component_new(engine->engine, bytes, status.st_size, &code))) refuse(NOT_RUN, error, "not a component: ");
        error = wasmtime_component_serialize(code, &made);
    } else {
        if ((error = wasmtime_module_new(engine->engine, bytes, status.st_size, &code))) refuse(NOT_RUN, error, "not a module: ");
        error = wasmtime_module_serialize(code, &made);
    }
    if (error) refuse(NOT_RUN, error, "");
    for (size_t wrote = 0; wrote < made.size;) {
        ssize_t part = write(CODE_OUT, made.data + wrote, made.size - wrote);
        if (part < 0) { tell(FAILED, 125, "cannot write the compiled module: %s", strerror(errno)); _exit(125); }
        wrote += part;
    }
    tell(ENDED, 0, "%s", "");
    _exit(0);
}

/* The ends of the pipes lie at 0 to 4 of `ends`; they are moved there last, since a descriptor of the job may have such a number. */
void worker(struct job *job) {
    int count = job->mode == COMPILE ? 7 : 5, high[7];
    for (int i = 0; i < count; i++) {
        int from = i < 5 ? ends[i] : i == CODE_IN ? job->module : job->output;
        high[i] = fcntl(from, F_DUPFD, 400);
        if (high[i] < 0) _exit(125);
    }
    told = high[TOLD];
    enter_groups(job);
    if (job->mode == RUN) show_mounts(job);
    for (int i = 0; i < count; i++)
        if (dup2(high[i], i) < 0) _exit(125);
    told = TOLD;
    if (close_range(count, ~0U, 0)) _exit(125);
    lower_limits(job);
    restrict_files(job);
    drop_privileges(job->order.user);
    restrict_calls();
    if (job->mode == COMPILE) compile(job);
    run(job);
    _exit(125);
}
