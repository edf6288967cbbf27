/* Users and groups as /etc/passwd and /etc/group of the root say; no NSS, which a static program cannot have. */
#pragma once
#include <stdbool.h>
#include <sys/types.h>

#define MOST_GROUPS 64

struct account {
    uid_t uid;
    gid_t gid;
    gid_t groups[MOST_GROUPS];
    int group_count;
    char home[256];
};

/* Resolve name|uid[:group|gid]; empty is root. Returns NULL, or a sentence that says what is wrong (to be freed). */
char *find_account(const char *user, struct account *account);
