/* The files that say what a machine is called, where it is and whom it asks for names. */
#pragma once
#include "identity.h"

/* Words of the texts as they shall be; the rest of them stays. An address that is empty is none. */
void names_hosts(struct bytes *out, const char *text, const char *former, const struct identity *identity, const char *hostname);
void names_resolver(struct bytes *out, const char *text, char **servers);

/* NULL, or a sentence. With own_system, what is not there is not made, and a resolv.conf that is a link is left to who made it. */
char *names_renew(const struct identity *identity, const char *former, const char *hostname, bool own_system);
