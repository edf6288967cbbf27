/* The instance's interfaces, through the old ioctls: one address of each family is all that is asked. */
#pragma once
#include <stdint.h>

struct network {
    const char *interface, *mac, *address, *gateway; /* address with its prefix length; gateway may be empty */
    const char *address6, *gateway6;                 /* likewise; both may be empty */
    uint32_t mtu;
};

/* NULL, or a sentence that says what failed (to be freed). */
char *network_loopback(void);
char *network_configure(const struct network *n);
