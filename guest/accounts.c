#define _GNU_SOURCE
#include "accounts.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bytes.h"

#define LARGEST_LINE (1 << 20)

static bool number_of(const char *text, unsigned *number) {
    if (!*text || strspn(text, "0123456789") != strlen(text) || strlen(text) > 10) return false;
    unsigned long long value = strtoull(text, NULL, 10);
    *number = (unsigned)value;
    return value < 0xffffffffULL;
}

/* Split a line at its colons, in place. Returns how many parts there are. */
static int split(char *line, char **parts, int most) {
    int count = 0;
    line[strcspn(line, "\n")] = 0;
    while (line && count < most) parts[count++] = strsep(&line, ":");
    return count;
}

static bool among(const char *members, const char *name) {
    size_t size = strlen(name);
    for (const char *at = members; *at; at += strcspn(at, ","), at += *at == ',')
        if (strncmp(at, name, size) == 0 && (at[size] == ',' || !at[size])) return true;
    return false;
}

static bool find_user(const char *want, char *name, size_t name_size, struct account *account) {
    FILE *file = fopen("/etc/passwd", "re");
    unsigned number = 0, uid, gid;
    bool numeric = number_of(want, &number), found = false;
    char *line = NULL, *parts[7];
    size_t room = 0;
    while (file && !found && getline(&line, &room, file) > 0 && room < LARGEST_LINE) {
        if (split(line, parts, 7) < 6 || !number_of(parts[2], &uid) || !number_of(parts[3], &gid)) continue;
        found = numeric ? uid == number : strcmp(parts[0], want) == 0;
        if (!found) continue;
        account->uid = uid;
        account->gid = gid;
        snprintf(name, name_size, "%s", parts[0]);
        snprintf(account->home, sizeof account->home, "%s", parts[5]);
    }
    if (!found && numeric) account->uid = number;
    free(line);
    if (file) fclose(file);
    return found || numeric;
}

/* With want: that group's id. Without: every group that name is a member of. */
static bool find_groups(const char *want, const char *name, struct account *account) {
    FILE *file = fopen("/etc/group", "re");
    unsigned number = 0, gid;
    bool numeric = want && number_of(want, &number), found = false;
    char *line = NULL, *parts[4];
    size_t room = 0;
    while (file && !found && getline(&line, &room, file) > 0 && room < LARGEST_LINE) {
        int count = split(line, parts, 4);
        if (count < 3 || !number_of(parts[2], &gid)) continue;
        if (want) {
            found = numeric ? gid == number : strcmp(parts[0], want) == 0;
            if (found) account->gid = gid;
        } else if (count == 4 && *name && among(parts[3], name) && account->group_count < MOST_GROUPS) {
            account->groups[account->group_count++] = gid;
        }
    }
    if (numeric) account->gid = number;
    free(line);
    if (file) fclose(file);
    return found || numeric;
}

char *find_account(const char *user, struct account *account) {
    char *copy = copy_text(user, strlen(user)), *group = copy, name[128] = "", *problem = NULL;
    const char *who = strsep(&group, ":");
    memset(account, 0, sizeof *account);
    snprintf(account->home, sizeof account->home, "/");
    if (!*who) who = "0";
    if (!find_user(who, name, sizeof name, account))
        problem = format_text("there is no user %s in the instance's /etc/passwd", who);
    else if (group && *group && !find_groups(group, "", account))
        problem = format_text("there is no group %s in the instance's /etc/group", group);
    else if (!group)
        find_groups(NULL, name, account);
    free(copy);
    return problem;
}
