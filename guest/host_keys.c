#define _GNU_SOURCE
#include "host_keys.h"

#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "process.h"

#define PLACE "/etc/ssh/"
#define PREFIX "ssh_host_"
#define SUFFIX "_key"
#define NEW PLACE ".lamella-new-key"
#define LONGEST_MS 60000 /* a large RSA key on a slow machine */
#define NO_PROGRAM 127

static int rename_pair(const char *key) {
    char *public = format_text("%s.pub", key), *certificate = format_text("%s-cert.pub", key);
    unlink(certificate); /* of the old key */
    int problem = rename(NEW ".pub", public) < 0 || rename(NEW, key) < 0 ? errno : 0;
    free(public), free(certificate);
    return problem;
}

static void remove_pair(const char *key) {
    char *public = format_text("%s.pub", key);
    unlink(public);
    unlink(key);
    free(public);
}

static char *make_key(const char *key, const char *hostname, int64_t until) {
    struct stat s;
    size_t size = strlen(key) - strlen(PLACE PREFIX SUFFIX);
    char *kind = copy_text(key + strlen(PLACE PREFIX), size), *comment = format_text("root@%s", hostname), *said = NULL, *problem = NULL;
    char *arguments[] = {"ssh-keygen", "-q", "-t", kind, "-N", "", "-C", comment, "-f", NEW, NULL};
    bool known = stat(key, &s) == 0;
    remove_pair(NEW);
    int code = process_run(arguments, until, &said);
    if (code == NO_PROGRAM) remove_pair(key);
    else if (code) problem = format_text("%s cannot be made anew: %s", key, code < 0 ? "it took too long" : said);
    else if (known && (chown(NEW, s.st_uid, s.st_gid) < 0 || chmod(NEW, s.st_mode & 07777) < 0)) problem = format_text("%s cannot be made anew: %s", key, strerror(errno));
    else if ((code = rename_pair(key))) problem = format_text("%s cannot be written: %s", key, strerror(code));
    remove_pair(NEW);
    free(kind), free(comment), free(said);
    return problem;
}

static int is_key(const struct dirent *entry) {
    size_t size = strlen(entry->d_name);
    return strncmp(entry->d_name, PREFIX, strlen(PREFIX)) == 0 && size > strlen(PREFIX SUFFIX) && strcmp(entry->d_name + size - strlen(SUFFIX), SUFFIX) == 0;
}

char *host_keys_renew(const char *hostname) {
    int64_t until = monotonic_ms() + LONGEST_MS;
    struct dirent **found;
    char *problem = NULL;
    int count = scandir(PLACE, &found, is_key, NULL);
    for (int i = 0; i < count; i++) {
        char *key = format_text(PLACE "%s", found[i]->d_name);
        if (!problem) problem = make_key(key, hostname, until);
        free(key), free(found[i]);
    }
    if (count >= 0) free(found);
    if (problem || count <= 0) return problem;
    /* A server that gets SIGHUP executes itself anew (sshd(8)); of one for a single connection, which was the former machine's, it is the end. */
    process_signal_named("sshd", SIGHUP);
    process_signal_named("sshd-session", SIGHUP);
    return NULL;
}
