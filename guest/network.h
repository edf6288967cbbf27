/* The instance's interfaces, through the old ioctls: one address of each family is all that is asked. */
#pragma once
#include <stdbool.h>
#include <stdint.h>

struct network {
    const char *interface, *mac, *address, *gateway; /* address with its prefix length; gateway may be empty */
    const char *address6, *gateway6;                 /* likewise; both may be empty */
    uint32_t mtu;
};

/* NULL, or a sentence that says what failed (to be freed). */
char *network_loopback(void);
char *network_configure(const struct network *n);
/* The interface that had this hardware address (NULL: of n's name, or the only one) gets n's and, for all it had, n's address and routes.
   It keeps its name and stays up. */
char *network_renew(const struct network *n, const char *former_mac);
/* It is left without an address, with a random hardware address, and down. */
char *network_drop(const char *interface, const char *former_mac);
/* Whether text is the hardware address of one machine; mac may be NULL. */
bool network_mac(const char *text, uint8_t mac[6]);
