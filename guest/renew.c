#define _GNU_SOURCE
#include "renew.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

#include "host_keys.h"
#include "machine.h"
#include "machine_id.h"
#include "names.h"
#include "process.h"

static char former[LARGEST_HOSTNAME + 1]; /* what files call the machine, until a renewal was done; empty: what the kernel calls it */

static char *set_clock(uint64_t now) {
    struct timespec time = {(time_t)(now / 1000000000u), (long)(now % 1000000000u)};
    return clock_settime(CLOCK_REALTIME, &time) == 0 ? NULL : format_text("the clock cannot be set: %s", strerror(errno));
}

/* The journal of a machine is found by its identity, which journald reads when it starts; its unit starts it again, with all that write to it. */
#define JOURNAL "systemd-journal"

static char *become_another(const char *hostname, bool own_system) {
    if (sethostname(hostname, strlen(hostname)) < 0) return format_text("the host name was refused: %s", strerror(errno));
    char *problem = machine_id_renew();
    if (!problem) problem = boot_id_renew();
    if (!problem && own_system) process_signal_named(JOURNAL, SIGTERM);
    return problem ? problem : host_keys_renew(hostname);
}

static char *renew_network(const struct identity *identity) {
    if (identity->has_network) return network_renew(&identity->network, identity->former_mac);
    return identity->drop_network ? network_drop(identity->network.interface, identity->former_mac) : NULL;
}

/* Randomness comes first: what follows is made of it. */
char *renew(const struct identity *identity, bool own_system) {
    struct utsname names;
    char *problem = machine_reseed(identity->entropy.data, identity->entropy.size);
    if (!problem && identity->time_ns) problem = set_clock(identity->time_ns);
    if (!*former && uname(&names) == 0) snprintf(former, sizeof former, "%.64s", names.nodename);
    const char *hostname = identity->hostname ? identity->hostname : former;
    if (!problem && identity->hostname) problem = become_another(hostname, own_system);
    if (!problem) problem = names_renew(identity, former, hostname, own_system);
    if (!problem) problem = renew_network(identity);
    if (!problem && identity->has_pids) problem = machine_bound(identity->pids);
    if (!problem) *former = 0;
    return problem;
}
