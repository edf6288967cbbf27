/* What a renewal says that the machine shall be: read and checked as a whole, before anything is changed. */
#pragma once
#include "bytes.h"
#include "network.h"

#define LARGEST_HOSTNAME 64 /* utsname(2) */

struct identity {
    struct view entropy;
    uint64_t time_ns;      /* 0: the clock stays */
    char *hostname;        /* NULL: it stays the machine that it is */
    char *former_mac;      /* of the interface until now; NULL: it is found by its name */
    struct network network;
    bool has_network, drop_network, has_pids;
    char **nameservers;
    uint64_t pids; /* 0: no bound */
};

/* NULL, or a sentence that says what is wrong. identity_free after either. */
char *identity_read(struct view body, struct identity *identity);
void identity_free(struct identity *identity);
