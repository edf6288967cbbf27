#define _GNU_SOURCE
#include "names.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "files.h"

#define LARGEST_FILE (1 << 20)
#define LOCALHOST "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"

static void add(struct bytes *out, const char *text, size_t size) { bytes_add(out, text, size); }

static bool is_loopback(const char *address) { return strncmp(address, "127.", 4) == 0 || strcmp(address, "::1") == 0; }

/* How much of a name is this one: all of it, or what is before its domain; 0 when it is another. */
static size_t part_of(const char *name, const char *wanted) {
    size_t size = strlen(wanted);
    return strncasecmp(name, wanted, size) == 0 && (!name[size] || name[size] == '.') ? size : 0;
}

/* One line, kept as it is unless it names the machine (by its new name where a renewal came that far before). Then the name is the new one, or
   the line goes when it has the address that the machine had. */
static void add_line(struct bytes *out, const char *line, size_t size, const char *former, const struct identity *identity, const char *hostname) {
    char *copy = copy_text(line, strcspn(line, "#\n") < size ? strcspn(line, "#\n") : size), *rest = NULL;
    struct bytes made = {0};
    bool names = false;
    char *address = strtok_r(copy, " \t\r", &rest);
    if (address) add(&made, address, strlen(address));
    for (char *name = address ? strtok_r(NULL, " \t\r", &rest) : NULL; name; name = strtok_r(NULL, " \t\r", &rest)) {
        size_t own = part_of(name, former);
        if (!own) own = part_of(name, hostname);
        names |= own > 0;
        add(&made, made.end == strlen(address) ? "\t" : " ", 1);
        if (own) add(&made, hostname, strlen(hostname)), name += own;
        add(&made, name, strlen(name));
    }
    if (!names) {
        add(out, line, size);
    } else if (is_loopback(address) || (!identity->has_network && !identity->drop_network)) {
        add(out, (char *)made.data + made.start, bytes_held(&made));
        add(out, "\n", 1);
    }
    bytes_free(&made);
    free(copy);
}

static bool names_host(const struct bytes *text, const char *hostname) {
    struct bytes copy = {0};
    bool found = false;
    bytes_add(&copy, text->data + text->start, bytes_held(text));
    bytes_add(&copy, "", 1);
    char *lines = NULL, *words = NULL;
    for (char *line = strtok_r((char *)copy.data, "\n", &lines); line && !found; line = strtok_r(NULL, "\n", &lines)) {
        line[strcspn(line, "#")] = 0;
        strtok_r(line, " \t\r", &words);
        for (char *name; !found && (name = strtok_r(NULL, " \t\r", &words));) found = strcasecmp(name, hostname) == 0;
    }
    bytes_free(&copy);
    return found;
}

static void add_host(struct bytes *out, const char *address, const char *hostname) {
    char *line = format_text("%.*s\t%s\n", (int)strcspn(address, "/"), address, hostname);
    add(out, line, strlen(line));
    free(line);
}

void names_hosts(struct bytes *out, const char *text, const char *former, const struct identity *identity, const char *hostname) {
    for (const char *line = text; *line;) {
        size_t size = strcspn(line, "\n") + 1;
        if (!line[size - 1]) size--;
        add_line(out, line, size, former, identity, hostname);
        line += size;
    }
    if (bytes_held(out) && out->data[out->end - 1] != '\n') add(out, "\n", 1);
    if (identity->has_network) add_host(out, identity->network.address, hostname);
    if (identity->has_network && *identity->network.address6) add_host(out, identity->network.address6, hostname);
    if (!names_host(out, hostname)) add_host(out, "127.0.1.1", hostname);
}

void names_resolver(struct bytes *out, const char *text, char **servers) {
    for (const char *line = text; *line;) {
        size_t size = strcspn(line, "\n") + (line[strcspn(line, "\n")] != 0), blanks = strspn(line, " \t");
        if (strncmp(line + blanks, "nameserver", 10) != 0) add(out, line, size);
        line += size;
    }
    if (bytes_held(out) && out->data[out->end - 1] != '\n') add(out, "\n", 1);
    for (; *servers; servers++) {
        char *line = format_text("nameserver %s\n", *servers);
        add(out, line, strlen(line));
        free(line);
    }
}

/* NULL when it is not there (a link that leads nowhere among it) or is too large to be what it should. */
static char *read_text(const char *path) {
    struct bytes text = {0};
    ssize_t got;
    int fd;
    if (file_open(path, &fd)) return NULL;
    while ((got = read(fd, bytes_reserve(&text, 4096), 4096)) > 0 && bytes_held(&text) < LARGEST_FILE) text.end += (size_t)got;
    close(fd);
    bytes_add(&text, "", 1);
    char *copy = got < 0 || bytes_held(&text) > LARGEST_FILE ? NULL : copy_text(text.data, strlen((char *)text.data));
    bytes_free(&text);
    return copy;
}

static char *put_file(const char *path, const struct bytes *content) {
    struct upload upload = {.mode = 0644, .file = -1};
    int problem = upload_begin(&upload, path);
    if (!problem) problem = upload_write(&upload, content->data + content->start, bytes_held(content));
    if (!problem) problem = upload_finish(&upload);
    upload_abandon(&upload);
    return problem ? format_text("%s cannot be written: %s", path, strerror(problem)) : NULL;
}

static bool is_link(const char *path) {
    struct stat s;
    return lstat(path, &s) == 0 && S_ISLNK(s.st_mode);
}

static char *renew_hosts(const struct identity *identity, const char *former, const char *hostname, bool own_system) {
    char *text = read_text("/etc/hosts"), *problem = NULL;
    struct bytes out = {0};
    if (text || !own_system) {
        names_hosts(&out, text ? text : LOCALHOST, former, identity, hostname);
        problem = put_file("/etc/hosts", &out);
    }
    free(text);
    bytes_free(&out);
    return problem;
}

static char *renew_resolver(char **servers, bool own_system) {
    struct bytes out = {0};
    bool link = is_link("/etc/resolv.conf");
    if (link && own_system) return NULL;
    char *text = link ? NULL : read_text("/etc/resolv.conf");
    if (link && unlink("/etc/resolv.conf") < 0) return format_text("/etc/resolv.conf cannot be replaced: %s", strerror(errno));
    names_resolver(&out, text ? text : "", servers);
    char *problem = put_file("/etc/resolv.conf", &out);
    free(text);
    bytes_free(&out);
    return problem;
}

char *names_renew(const struct identity *identity, const char *former, const char *hostname, bool own_system) {
    char *problem = NULL;
    if (identity->hostname) {
        char *line = format_text("%s\n", hostname);
        struct bytes text = {0};
        bytes_add(&text, line, strlen(line));
        problem = put_file("/etc/hostname", &text);
        bytes_free(&text);
        free(line);
    }
    if (!problem && (identity->hostname || identity->has_network || identity->drop_network)) problem = renew_hosts(identity, former, hostname, own_system);
    if (!problem && *identity->nameservers) problem = renew_resolver(identity->nameservers, own_system);
    return problem;
}
