/* The virtual machine around the instance: modules, disks, the root, name, clock, randomness, and its end. */
#pragma once
#include "bytes.h"

void machine_begin(void);                            /* first mounts; drivers for the channel */
int machine_port(const char *name);                  /* the virtio-serial port of that name; waits for it */
char *machine_configure(struct view body);           /* once; NULL or a sentence */
char *machine_set(struct view body);                 /* host name, clock, network: whatever is named */
char *machine_reseed(const void *data, size_t size); /* NULL or a sentence */
char *machine_freeze(uint32_t deadline_ms);
char *machine_thaw(void);
bool machine_frozen(void);
void machine_tick(void);      /* thaws when the deadline has passed */
int machine_next_tick(void);  /* ms until then; -1 for never */
__attribute__((noreturn)) void machine_off(void);
