/* The keys by which an SSH server proves which machine it is. */
#pragma once

/* Every host key in /etc/ssh is made anew, or removed where there is no ssh-keygen, and servers that run are told to read them (they do so
   before anything else when they are let go). NULL or a sentence: then some may be the old ones. */
char *host_keys_renew(const char *hostname);
