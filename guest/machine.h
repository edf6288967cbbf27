/* The virtual machine around the instance: modules, disks, the root, name, clock, randomness, and its end. */
#pragma once
#include "bytes.h"

void machine_begin(void);                            /* first mounts; drivers for the channel */
int machine_port(const char *name);                  /* the virtio-serial port of that name; waits for it, at most 10 s */
int machine_find_port(const char *name);             /* the same, without waiting; -1 when there is none that is free */
void machine_serve(void);                            /* somebody else is the init: what is here stays as it is */
void machine_prepare(void);                          /* whatever can be done before it is known which machine this is */
char *machine_configure(struct view body);           /* once; NULL or a sentence */
char *machine_set(struct view body);                 /* host name, clock, network: whatever is named */
char *machine_reseed(const void *data, size_t size); /* NULL or a sentence */
/* The device node of the disk with this serial number, or behind this device of the first PCI bus; waits at most 10 s. */
char *machine_disk(const char *serial, const char *place, bool wait);
bool machine_has_init(void);
char *machine_freeze(uint32_t deadline_ms);
char *machine_bound(uint64_t pids); /* how many processes the instance may have; 0 is no bound */
__attribute__((noreturn)) void machine_off(void);
