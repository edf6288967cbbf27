/* What the parts of lamella-wasm share: zygote.c says what the program is, monitor.c speaks of the sockets. */
#ifndef LAMELLA_WASM_H
#define LAMELLA_WASM_H

#include <stdint.h>
#include <stddef.h>

enum { MOST_DIRECTORIES = 32, MOST_GROUPS = 32, MOST_FDS = 253, LARGEST_DATA = 64 << 10, LARGEST_TEXT = 2048 };

/* The datagram that the zygote is sent; its descriptors are order, connection, listener, state, module, groups, directories
   (to run), or order, connection, module, output, groups (to compile). */
enum mode { RUN = 1, COMPILE = 2 };
struct request { uint32_t mode, groups, directories; };

/* What the first descriptor holds: this, then strings that end with a zero byte: the boot's id, arguments, names and values of the
   environment in turn, and for each directory `r` or `w` and its target. */
enum { COMPONENT = 1, STDIN = 2, FUEL = 4 };
struct order {
    uint32_t user, flags, argc, envc;
    uint64_t fuel, memory, deadline_ms;
};

struct job {
    enum mode mode;
    struct order order;
    char *boot, **arguments, **names, **values, **targets; /* a target's first byte is r or w */
    int group_count, directory_count;
    int connection, listener, state, module, output, groups[MOST_GROUPS], directories[MOST_DIRECTORIES];
};

extern int host_proc; /* the host's /proc, opened before the room was entered; no worker keeps it */

/* monitor.c: watches over one worker until it has ended. */
void monitor(struct job *job) __attribute__((noreturn));

/* worker.c: process 1 of its own namespace; reads CONTROL, writes TOLD. */
enum { CONTROL = 3, TOLD = 4 };
extern int ends[5]; /* what becomes its descriptors 0 to 4 */
void worker(struct job *job) __attribute__((noreturn));

/* The first byte of what a worker tells; a 32-bit exit code and text follow `failed` and `ended`. */
enum { READY = 'R', FAILED = 'F', STALE = 'D', ENDED = 'T' };
void tell(char what, int code, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* confine.c: each ends the worker with `failed` when it cannot. */
void enter_groups(const struct job *job);
void show_mounts(const struct job *job);
void map_owner(int mount, uint32_t user, int writable);
void lower_limits(const struct job *job);
void drop_privileges(uint32_t user);
void restrict_files(const struct job *job);
void restrict_calls(void);
void drop_capabilities(void);

/* journal.c: the log of an instance, in the format of qemu/log.py. */
void journal_open(int directory);
void journal_write(int kind, const char *data, size_t size);

#endif
