#define _GNU_SOURCE
#include "streams.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "files.h"
#include "freeze.h"
#include "hold.h"
#include "identity.h"
#include "instance.h"
#include "machine.h"
#include "power.h"
#include "renew.h"
#include "usage.h"
#include "volumes.h"

#define CHUNK 32768
#define LEAST_ROOM 4096
#define LEAST_CREDIT 1024 /* the host grants in large steps: waiting for one avoids crumbs */
#define CREDIT_STEP (WINDOW / 4)
#define LARGEST_CREDIT (1ull << 40)
#define DATA_COST (FRAME_COST + 1) /* a data frame's, besides its data */
#define ITEM_ROOM 9216 /* a directory entry with two longest names */

enum kind { GATHERING, EXECUTING, ATTACHED, LOGGING, WAITING, LISTING, READING, WRITING, POWERING, DONE };

struct stream {
    uint32_t id;
    enum kind kind;
    uint64_t credit;       /* bytes that the host still takes */
    uint32_t window, owed; /* bytes that the host may still send; consumed ones not yet granted again */
    struct bytes input;    /* of the request while it gathers, then for the process */
    bool input_ended, input_passed;
    struct process *process;
    int64_t deadline;
    struct cursor cursor;
    DIR *directory;
    char *path;
    int file;
    struct upload upload;
    unsigned attempt; /* POWERING: which program is being asked */
    bool reboot;
    struct stream *next;
};

static struct channel *channel;
static struct stream *streams;
static uint32_t last_id, count;
static enum agent_mode mode;
static bool off_wanted;
static uint8_t chunk[CHUNK]; /* on its way */

void streams_open(struct channel *c, enum agent_mode own_mode) {
    channel = c;
    mode = own_mode;
    instance_owns_machine = mode == MODE_INIT;
    if (mode != MODE_INIT) instance_phase = mode == MODE_STDIO ? PHASE_READY : PHASE_MACHINE;
}

void streams_hello(void) {
    static const char *const modes[] = {"init", "stdio", "service"};
    struct utsname names;
    struct bytes fields = {0};
    streams_reset();
    uname(&names);
    add_number(&fields, TAG_VERSION, PROTOCOL_VERSION);
    add_text(&fields, TAG_AGENT_MODE, modes[mode]);
    add_text(&fields, TAG_KERNEL, names.release);
    channel_send(channel, 0, FRAME_HELLO, fields.data, bytes_held(&fields));
    bytes_free(&fields);
}

static void release(struct stream *s) {
    if (s->process) {
        process_kill_session(s->process);
        process_free(s->process);
    }
    if (s->directory) closedir(s->directory);
    if (s->file >= 0) close(s->file);
    if (s->kind == WRITING) upload_abandon(&s->upload);
    free(s->path);
    bytes_free(&s->input);
    s->process = NULL;
    s->directory = NULL;
    s->path = NULL;
    s->file = -1;
    s->kind = DONE;
}

/* The last frame of a stream: its result. */
static void finish(struct stream *s, const struct bytes *fields) {
    channel_send(channel, s->id, FRAME_END, fields ? fields->data : NULL, fields ? bytes_held(fields) : 0);
    release(s);
}

static void finish_error(struct stream *s, const char *code, const char *message) {
    struct bytes fields = {0};
    add_text(&fields, TAG_ERROR, code);
    add_text(&fields, TAG_MESSAGE, message);
    finish(s, &fields);
    bytes_free(&fields);
}

/* For verbs that answer with nothing, or with a sentence that says why not. */
static void finish_sentence(struct stream *s, const char *code, char *problem) {
    if (problem)
        finish_error(s, code, problem);
    else
        finish(s, NULL);
    free(problem);
}

static const char *code_of(int number) {
    switch (number) {
    case ENOENT: case ENOTDIR: return "not-found";
    case EEXIST: case EISDIR: case ENOTEMPTY: case EBUSY: case EROFS: return "conflict";
    case EACCES: case EPERM: return "forbidden";
    case ENOSPC: case EDQUOT: case EMFILE: return "no-room";
    case EINVAL: case ELOOP: case ENAMETOOLONG: case ENXIO: case ENODEV: case ESPIPE: return "invalid";
    default: return "internal";
    }
}

/* For verbs on a path, with its errno; 0 is success. */
static void finish_path(struct stream *s, const char *path, int number) {
    if (!number) return finish(s, NULL);
    const char *why = number == EINVAL ? "it is not a file" : strerror(number);
    char *message = format_text("%s: %s", path, why);
    finish_error(s, code_of(number), message);
    free(message);
}

static void finish_exit(struct stream *s, int code, const char *reason) {
    struct bytes fields = {0};
    add_number(&fields, TAG_EXIT_CODE, (uint64_t)code);
    if (reason) add_text(&fields, TAG_REASON, reason);
    finish(s, &fields);
    bytes_free(&fields);
}

static void finish_state(struct stream *s) {
    struct bytes fields = {0};
    instance_state(&fields);
    add_number(&fields, TAG_HELD, hold_holds());
    finish(s, &fields);
    bytes_free(&fields);
}

/* A grant of nothing says that the request was accepted and runs. */
static void accept_stream(struct stream *s, enum kind kind) {
    static const uint8_t nothing[4];
    s->kind = kind;
    channel_send(channel, s->id, FRAME_CREDIT, nothing, sizeof nothing);
}

static void execute(struct stream *s, struct view body) {
    struct command command = {
        .arguments = find_texts(body, TAG_ARGUMENT),
        .environment = instance_environment(body),
        .directory = find_text(body, TAG_WORKING_DIRECTORY),
        .user = find_text(body, TAG_USER),
        .terminal = find_number(body, TAG_TERMINAL, 0),
        .input = find_number(body, TAG_STDIN, 0),
        .rows = (unsigned short)find_number(body, TAG_ROWS, 24),
        .columns = (unsigned short)find_number(body, TAG_COLUMNS, 80),
    };
    uint64_t timeout = find_number(body, TAG_TIMEOUT_MS, 0);
    char *problem, *directory = command.directory, *user = command.user;
    int code;
    if (!directory) command.directory = (char *)instance_directory();
    if (!user) command.user = (char *)instance_user();
    s->process = process_start(&command, &problem, &code);
    if (timeout) s->deadline = monotonic_ms() + (int64_t)timeout;
    if (s->process) {
        accept_stream(s, EXECUTING);
    } else {
        finish_exit(s, code, problem);
        free(problem);
    }
    free_texts(command.arguments);
    free_texts(command.environment);
    free(directory);
    free(user);
}

static void on_path(struct stream *s, enum verb verb, struct view body) {
    unsigned mode = (unsigned)find_number(body, TAG_MODE, verb == VERB_WRITE ? 0644 : 0755) & 07777;
    unsigned uid = (unsigned)find_number(body, TAG_UID, 0), gid = (unsigned)find_number(body, TAG_GID, 0);
    struct bytes fields = {0};
    int problem = 0;
    s->path = find_text(body, TAG_PATH);
    if (!s->path || *s->path != '/') return finish_error(s, "invalid", "the path does not begin with /");
    char *path = s->path;
    if ((verb == VERB_WRITE || verb == VERB_MAKE_DIRECTORY) && freeze_holds())
        return finish_error(s, "conflict", "the instance's disk is frozen for a snapshot");
    switch (verb) {
    case VERB_STAT:
        if ((problem = file_describe(path, path, &fields))) finish_path(s, path, problem);
        else finish(s, &fields);
        break;
    case VERB_LIST:
        if ((s->directory = opendir(path))) s->kind = LISTING;
        else finish_path(s, path, errno);
        break;
    case VERB_READ:
        if ((problem = file_open(path, &s->file))) s->file = -1, finish_path(s, path, problem);
        else s->kind = READING;
        break;
    case VERB_WRITE:
        s->kind = WRITING;
        s->upload = (struct upload){.mode = mode, .uid = uid, .gid = gid, .file = -1};
        if ((problem = upload_begin(&s->upload, path))) finish_path(s, path, problem);
        break;
    default:
        finish_path(s, path, make_directory(path, mode, uid, gid));
    }
    bytes_free(&fields);
}

static void serve_start(struct stream *s, struct view body) {
    if (instance_phase == PHASE_WAITING) return finish_error(s, "conflict", "the guest is not configured");
    if (instance_started()) return finish_error(s, "conflict", "the command was started before");
    char *problem = instance_start(body);
    if (problem)
        finish_error(s, "invalid", problem);
    else
        finish_state(s);
    free(problem);
}

static void serve_configure(struct stream *s, struct view body) {
    if (instance_phase != PHASE_WAITING) return finish_error(s, "conflict", "the guest has been configured before");
    char *problem = machine_configure(body);
    if (!problem) instance_phase = PHASE_READY;
    finish_sentence(s, "invalid", problem);
}

/* Ask the machine's init, by one program after another and then by a signal, to end. */
static void power(struct stream *s) {
    char **arguments, *none[] = {NULL}, *problem = NULL;
    int code;
    s->kind = POWERING;
    while ((arguments = power_command(s->attempt++, s->reboot))) {
        struct command command = {.arguments = arguments, .environment = none, .directory = "/", .user = ""};
        free(problem);
        if ((s->process = process_start(&command, &problem, &code))) return;
    }
    free(problem);
    if (power_signal(s->reboot)) finish_state(s);
    else finish_error(s, "unsupported", "no way was found to ask this machine's init to end; there is no systemctl and no poweroff that works");
}

static const char *refusal(uint64_t verb) {
    switch (verb) {
    case VERB_CONFIGURE: case VERB_PREPARE: case VERB_ACKNOWLEDGE_EXIT:
        if (mode == MODE_STDIO) return "this agent is not the init of a machine";
        /* fall through */
    case VERB_START: case VERB_ATTACH: case VERB_LOGS: case VERB_ACKNOWLEDGE_LOGS: case VERB_SIGNAL: case VERB_WAIT_EXIT:
        return mode == MODE_SERVICE ? "this machine has an init of its own and runs no command of ours" : NULL;
    case VERB_SET: case VERB_RESEED: case VERB_FREEZE: case VERB_THAW: case VERB_SHUTDOWN: case VERB_MOUNT: case VERB_UNMOUNT:
    case VERB_HOLD: case VERB_RELEASE: case VERB_RENEW:
        return mode == MODE_STDIO ? "this agent is not the init of a machine" : NULL;
    default: return NULL;
    }
}

/* How many file systems are frozen, or whether they all were until now. */
static void finish_number(struct stream *s, char *problem, enum tag tag) {
    if (problem) return finish_sentence(s, "conflict", problem);
    struct bytes fields = {0};
    add_number(&fields, tag, tag == TAG_COUNT ? freeze_count() : freeze_held());
    finish(s, &fields);
    bytes_free(&fields);
}

static void on_volume(struct stream *s, bool wanted, struct view body) {
    const char *code = "invalid";
    if (instance_phase == PHASE_WAITING) return finish_error(s, "conflict", "the guest is not configured");
    if (freeze_holds()) return finish_error(s, "conflict", "the instance's disks are frozen for a snapshot");
    char *problem = wanted ? volumes_mount(body, &code) : volumes_unmount(body, &code);
    finish_sentence(s, code, problem);
}

static void serve_hold(struct stream *s, struct view body) {
    struct view value;
    const char *code;
    if (!find_field(body, TAG_TIMEOUT_MS, &value) || value.size != 8 || load64(value.data) > INT32_MAX)
        return finish_error(s, "invalid", "a hold says in how many milliseconds it ends, 0 for not by itself");
    if (instance_phase == PHASE_WAITING) return finish(s, NULL); /* nothing runs */
    char *problem = hold_begin((uint32_t)load64(value.data), &code);
    finish_sentence(s, code, problem);
}

/* A machine that waits for its set-up is made another one by that. */
static void serve_renew(struct stream *s, struct view body) {
    struct identity identity;
    char *problem = identity_read(body, &identity);
    const char *code = "invalid", *refused = NULL;
    bool waiting = instance_phase == PHASE_WAITING;
    if (waiting && (identity.hostname || identity.has_network || identity.drop_network || identity.has_pids || *identity.nameservers)) refused = "the guest is not configured, and becomes what it shall be by that";
    if (!waiting && !hold_holds()) refused = "the machine is not held still";
    if (freeze_holds()) refused = "the instance's disks are frozen for a snapshot: thaw them first";
    if (identity.has_pids && machine_has_init()) refused = "the processes of a machine that has an init of its own are bounded by that";
    if (!problem && refused) code = "conflict", problem = copy_text(refused, strlen(refused));
    if (!problem) {
        code = "conflict";
        hold_keep();
        problem = renew(&identity, machine_has_init());
        if (!problem && identity.hostname) instance_forget(), explicit_bzero(chunk, sizeof chunk), channel_forget(channel);
        if (!problem) hold_release();
    }
    identity_free(&identity);
    finish_sentence(s, code, problem);
}

static void serve(struct stream *s, struct view body) {
    struct bytes fields = {0};
    struct view value;
    uint64_t verb = find_number(body, TAG_VERB, 0), number = find_number(body, TAG_SIGNAL, SIGTERM);
    const char *refused = refusal(verb);
    s->kind = DONE;
    if (!fields_sound(body)) return finish_error(s, "invalid", "the request cannot be read");
    if (refused) return finish_error(s, "unsupported", refused);
    if (number < 1 || number > 64) return finish_error(s, "invalid", "there is no such signal");
    if ((verb == VERB_START || verb == VERB_EXEC || (verb == VERB_SHUTDOWN && mode == MODE_SERVICE)) && hold_holds())
        return finish_error(s, "conflict", "the machine is held still: nothing can be run in it until it is let go");
    switch (verb) {
    case VERB_CONFIGURE: serve_configure(s, body); break;
    case VERB_PREPARE:
        machine_prepare();
        finish_state(s);
        break;
    case VERB_START: serve_start(s, body); break;
    case VERB_EXEC:
        if (instance_phase == PHASE_WAITING || instance_phase == PHASE_EXITED) finish_error(s, "conflict", "the instance does not run");
        else execute(s, body);
        break;
    case VERB_ATTACH:
        accept_stream(s, ATTACHED);
        s->cursor = log_at_end();
        break;
    case VERB_LOGS:
        s->kind = LOGGING;
        s->cursor = log_after(find_number(body, TAG_OFFSET, 0));
        break;
    case VERB_ACKNOWLEDGE_LOGS:
        instance_acknowledge_logs(find_number(body, TAG_OFFSET, 0));
        finish(s, NULL);
        break;
    case VERB_SIGNAL:
        if (instance_phase != PHASE_RUNNING) finish_error(s, "conflict", "the command does not run");
        else process_signal(instance_process(), (int)number), finish(s, NULL);
        break;
    case VERB_STATE: finish_state(s); break;
    case VERB_WAIT_EXIT: s->kind = WAITING; break;
    case VERB_SHUTDOWN:
        if (mode == MODE_SERVICE) {
            s->reboot = find_number(body, TAG_REBOOT, 0);
            power(s);
            break;
        }
        instance_stop((int)number, (uint32_t)find_number(body, TAG_TIMEOUT_MS, 0));
        s->kind = WAITING;
        break;
    case VERB_ACKNOWLEDGE_EXIT:
        if (!instance_finished()) finish_error(s, "conflict", "the command has not ended");
        else off_wanted = true, finish(s, NULL);
        break;
    case VERB_STAT: case VERB_LIST: case VERB_READ: case VERB_WRITE: case VERB_MAKE_DIRECTORY: on_path(s, (enum verb)verb, body); break;
    case VERB_USAGE:
        usage_fields(&fields);
        finish(s, &fields);
        break;
    case VERB_FREEZE: finish_number(s, machine_freeze((uint32_t)find_number(body, TAG_TIMEOUT_MS, 10000)), TAG_COUNT); break;
    case VERB_THAW: finish_number(s, freeze_thaw(), TAG_HELD); break;
    case VERB_MOUNT: case VERB_UNMOUNT: on_volume(s, verb == VERB_MOUNT, body); break;
    case VERB_HOLD: serve_hold(s, body); break;
    case VERB_RELEASE: hold_release(), finish(s, NULL); break;
    case VERB_RENEW: serve_renew(s, body); break;
    case VERB_RESEED:
        if (find_field(body, TAG_ENTROPY, &value)) finish_sentence(s, "internal", machine_reseed(value.data, value.size));
        else finish_error(s, "invalid", "there is no entropy in the request");
        break;
    case VERB_SET:
        if (mode == MODE_SERVICE && (find_field(body, TAG_HOSTNAME, &value) || find_field(body, TAG_ADDRESS, &value)))
            finish_error(s, "unsupported", "name and network of this machine are its own system's affair");
        else
            finish_sentence(s, "invalid", machine_set(body));
        break;
    default: finish_error(s, "unsupported", "this agent does not know that verb");
    }
    bytes_free(&fields);
}

static void grant(struct stream *s, uint32_t size) {
    uint8_t raw[4];
    s->owed += size;
    if (s->owed < CREDIT_STEP) return;
    store32(raw, s->owed);
    channel_send(channel, s->id, FRAME_CREDIT, raw, sizeof raw);
    s->window += s->owed;
    s->owed = 0;
}

static struct stream *find(uint32_t id) {
    for (struct stream *s = streams; s; s = s->next)
        if (s->id == id) return s;
    return NULL;
}

static bool on_request(const struct frame *frame) {
    struct stream *s = find(frame->stream);
    if (s ? s->kind != GATHERING : frame->stream <= last_id) return false;
    if (!s) {
        s = allocate(sizeof *s);
        *s = (struct stream){.id = frame->stream, .kind = GATHERING, .credit = WINDOW, .window = WINDOW, .file = -1, .next = streams};
        streams = s;
        last_id = s->id;
        if (++count > MOST_STREAMS) {
            finish_error(s, "no-room", "there are too many streams");
            return true;
        }
    }
    if (bytes_held(&s->input) + frame->payload.size > LARGEST_REQUEST) return false;
    bytes_add(&s->input, frame->payload.data, frame->payload.size);
    if (frame->flags & FLAG_MORE) return true;
    struct bytes request = s->input;
    s->input = (struct bytes){0};
    serve(s, (struct view){request.data + request.start, bytes_held(&request)});
    bytes_free(&request);
    return true;
}

static bool on_data(struct stream *s, struct view payload) {
    size_t cost = payload.size + FRAME_COST;
    if (!payload.size || cost > s->window) return false;
    s->window -= (uint32_t)cost;
    struct view data = {payload.data + 1, payload.size - 1};
    if (s->kind == WRITING) {
        int problem = freeze_holds() ? EBUSY : upload_write(&s->upload, data.data, data.size);
        if (problem) finish_path(s, s->path, problem);
        else grant(s, (uint32_t)cost);
    } else if (s->kind == EXECUTING || s->kind == ATTACHED) {
        bytes_add(&s->input, data.data, data.size);
        s->owed += FRAME_COST + 1;
    } else {
        return false;
    }
    return true;
}

static void on_control(struct stream *s, struct view body) {
    struct process *p = s->kind == EXECUTING ? s->process : s->kind == ATTACHED ? instance_process() : NULL;
    uint64_t number = find_number(body, TAG_SIGNAL, 0), rows = find_number(body, TAG_ROWS, 0), columns = find_number(body, TAG_COLUMNS, 0);
    if (!p) return;
    if (number >= 1 && number <= 64) process_signal(p, (int)number);
    if (rows && columns) process_resize(p, (unsigned short)rows, (unsigned short)columns);
}

bool streams_frame(const struct frame *frame) {
    if (!frame->stream) return false;
    if (frame->type == FRAME_REQUEST) return on_request(frame);
    if (frame->stream > last_id) return false;
    struct stream *s = find(frame->stream);
    if (!s || s->kind == DONE) return true; /* it ended while this was on its way */
    switch (frame->type) {
    case FRAME_DATA: return on_data(s, frame->payload);
    case FRAME_END:
        s->input_ended = true;
        if (s->kind == WRITING) finish_path(s, s->path, freeze_holds() ? EBUSY : upload_finish(&s->upload));
        return true;
    case FRAME_CREDIT:
        if (frame->payload.size != 4) return false;
        s->credit += load32(frame->payload.data);
        return s->credit < LARGEST_CREDIT;
    case FRAME_CONTROL: on_control(s, frame->payload); return true;
    case FRAME_CLOSE: finish_error(s, "unavailable", "the stream was closed"); return true;
    default: return false;
    }
}

/* Input on its way to a process. */
static void pump_input(struct stream *s, struct process *p) {
    if (s->kind == ATTACHED && !p && !instance_started()) return;
    size_t held = bytes_held(&s->input);
    if (held) {
        ssize_t put = p ? process_write(p, s->input.data + s->input.start, held) : -1;
        if (put < 0) put = (ssize_t)held; /* nobody reads: it is swallowed */
        bytes_drop(&s->input, (size_t)put);
        if (put) grant(s, (uint32_t)put);
    }
    if (s->input_ended && !s->input_passed && !bytes_held(&s->input)) {
        s->input_passed = true;
        if (p) process_end_input(p);
    }
}

static bool can_send(const struct stream *s, size_t least) { return s->credit >= least && channel_has_room(channel); }

static void send_data(struct stream *s, uint8_t number, const uint8_t *data, size_t size) {
    s->credit -= size + DATA_COST;
    channel_send_two(channel, s->id, FRAME_DATA, &number, 1, data, size);
}

static size_t data_room(const struct stream *s) { return s->credit - DATA_COST < CHUNK ? (size_t)s->credit - DATA_COST : CHUNK; }

static bool pump_exec(struct stream *s) {
    struct process *p = s->process;
    uint8_t number;
    size_t got;
    pump_input(s, p);
    if (s->deadline && !p->reaped && monotonic_ms() >= s->deadline) {
        p->timed_out = true;
        process_kill_session(p);
        s->deadline = 0;
    }
    if (!can_send(s, LEAST_CREDIT)) return false;
    int result = process_read(p, chunk, data_room(s), &number, &got);
    if (result > 0) send_data(s, number, chunk, got);
    if (result < 0 && p->reaped) finish_exit(s, p->exit_code, NULL);
    return result > 0;
}

/* What the program says is not kept; how it ended counts. */
static void pump_power(struct stream *s) {
    uint8_t data[1024], number;
    size_t got;
    int result;
    while ((result = process_read(s->process, data, sizeof data, &number, &got)) > 0) continue;
    if (result == 0 || !s->process->reaped) return;
    int code = s->process->exit_code;
    process_free(s->process);
    s->process = NULL;
    if (code) power(s);
    else finish_state(s);
}

static bool pump_attached(struct stream *s) {
    struct piece piece;
    pump_input(s, instance_process());
    if (can_send(s, LEAST_CREDIT) && log_take(&s->cursor, chunk, data_room(s), &piece)) {
        send_data(s, piece.stream, chunk, piece.size);
        return true;
    }
    if (instance_finished() && log_drained(&s->cursor)) finish_state(s);
    return false;
}

#define ITEM_HEAD 17 /* u64 offset, u64 time, u8 stream */
#define LOG_COST (FRAME_COST + ITEM_HEAD)

static bool pump_log(struct stream *s) {
    uint8_t head[ITEM_HEAD];
    struct piece piece;
    if (can_send(s, LEAST_CREDIT) && log_take(&s->cursor, chunk, s->credit - LOG_COST < CHUNK ? (size_t)s->credit - LOG_COST : CHUNK, &piece)) {
        store64(head, piece.offset);
        store64(head + 8, piece.time_ns);
        head[16] = piece.stream;
        s->credit -= LOG_COST + piece.size;
        channel_send_two(channel, s->id, FRAME_ITEM, head, sizeof head, chunk, piece.size);
        return true;
    }
    if (instance_finished() && log_drained(&s->cursor)) finish_state(s);
    return false;
}

static bool pump_list(struct stream *s) {
    for (int i = 0; i < 64 && can_send(s, ITEM_ROOM); i++) {
        struct dirent *entry = readdir(s->directory);
        if (!entry) {
            finish(s, NULL);
            return false;
        }
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
        struct bytes fields = {0};
        const char *slash = s->path[strlen(s->path) - 1] == '/' ? "" : "/";
        char *path = format_text("%s%s%s", s->path, slash, entry->d_name);
        if (file_describe(path, path, &fields) == 0) {
            s->credit -= bytes_held(&fields) + FRAME_COST;
            channel_send(channel, s->id, FRAME_ITEM, fields.data, bytes_held(&fields));
        }
        free(path);
        bytes_free(&fields);
    }
    return can_send(s, ITEM_ROOM);
}

static bool pump_file(struct stream *s) {
    if (!can_send(s, LEAST_CREDIT)) return false;
    ssize_t got = read(s->file, chunk, data_room(s));
    if (got > 0) send_data(s, CHANNEL_STDOUT, chunk, (size_t)got);
    else if (got == 0) finish(s, NULL);
    else finish_path(s, s->path, errno);
    return got > 0;
}

/* What may be added to the log without a reader losing anything. */
static size_t log_allowance(void) {
    size_t room = SIZE_MAX;
    for (struct stream *s = streams; s; s = s->next) {
        if (s->kind != ATTACHED && s->kind != LOGGING) continue;
        size_t own = log_room(&s->cursor);
        if (own < room) room = own;
    }
    return room < LEAST_ROOM ? 0 : room;
}

bool streams_pump(void) {
    bool again = false;
    instance_tick();
    freeze_tick();
    hold_tick();
    process_reap();
    instance_kill_rest();
    size_t room = log_allowance();
    if (room) again |= instance_read(room);
    for (struct stream *s = streams; s; s = s->next) {
        switch (s->kind) {
        case EXECUTING: again |= pump_exec(s); break;
        case ATTACHED: again |= pump_attached(s); break;
        case LOGGING: again |= pump_log(s); break;
        case LISTING: again |= pump_list(s); break;
        case READING: again |= pump_file(s); break;
        case POWERING: pump_power(s); break;
        case WAITING:
            if (instance_finished()) finish_state(s);
            break;
        default: break;
        }
    }
    for (struct stream **at = &streams; *at;) {
        struct stream *s = *at;
        if (s->kind != DONE) {
            at = &s->next;
            continue;
        }
        *at = s->next;
        count--;
        free(s);
    }
    if (streams && streams->next) { /* another one is first the next time */
        struct stream *first = streams, *last = streams;
        while (last->next) last = last->next;
        streams = first->next;
        first->next = NULL;
        last->next = first;
    }
    return again;
}

void streams_reset(void) {
    while (streams) {
        struct stream *s = streams;
        streams = s->next;
        release(s);
        free(s);
    }
    last_id = count = 0;
}

static void add_poll(struct pollfd *list, size_t most, size_t *used, int fd, short events) {
    if (fd >= 0 && *used < most) list[(*used)++] = (struct pollfd){.fd = fd, .events = events};
}

static void sooner(int *timeout, int64_t ms) {
    if (ms < 0) return;
    if (*timeout < 0 || ms < *timeout) *timeout = (int)ms;
}

static void poll_output(struct pollfd *list, size_t most, size_t *used, const struct process *p) {
    if (!p->hung_up) add_poll(list, most, used, p->output, POLLIN);
    add_poll(list, most, used, p->errors, POLLIN);
}

size_t streams_poll(struct pollfd *list, size_t most, int *timeout) {
    size_t used = 0;
    struct process *own = instance_process();
    sooner(timeout, freeze_next_tick());
    sooner(timeout, hold_next_tick());
    sooner(timeout, instance_next_tick());
    if (own && !instance_finished() && log_allowance()) poll_output(list, most, &used, own);
    for (struct stream *s = streams; s; s = s->next) {
        struct process *p = s->kind == EXECUTING || s->kind == POWERING ? s->process : s->kind == ATTACHED ? own : NULL;
        if (p && bytes_held(&s->input)) add_poll(list, most, &used, p->terminal ? p->output : p->input, POLLOUT);
        if (s->kind == POWERING) poll_output(list, most, &used, p), sooner(timeout, p->reaped ? 20 : 1000);
        if (s->kind != EXECUTING) continue;
        if (can_send(s, LEAST_CREDIT)) poll_output(list, most, &used, p);
        if (p->reaped || p->hung_up) sooner(timeout, 20);
        if (s->deadline) sooner(timeout, s->deadline > monotonic_ms() ? s->deadline - monotonic_ms() : 0);
    }
    return used;
}

bool streams_off(void) { return off_wanted && !bytes_held(&channel->queued); }
