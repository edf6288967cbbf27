/* One module for many tests: the first argument says what it does. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static volatile unsigned long counter;

static int dive(volatile char *above) {
    volatile char here[1024];
    here[0] = above[0] + 1;
    return dive(here) + here[0];
}

static int show(const char *path) {
    char data[4096];
    int file = open(path, O_RDONLY);
    if (file < 0) return printf("%s: %s\n", path, strerror(errno)), 1;
    ssize_t size = read(file, data, sizeof data);
    if (size < 0) return printf("%s: %s\n", path, strerror(errno)), 1;
    printf("%s: read %.*s\n", path, (int)size, data);
    return 0;
}

int main(int argc, char **argv) {
    const char *deed = argc > 1 ? argv[1] : "", *path = argc > 2 ? argv[2] : "";
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (!strcmp(deed, "exit")) return atoi(path);
    if (!strcmp(deed, "abort")) abort();
    if (!strcmp(deed, "trap")) __builtin_trap();
    if (!strcmp(deed, "dive")) return dive("");
    if (!strcmp(deed, "spin")) { puts("spinning"); for (;;) counter++; }
    if (!strcmp(deed, "sleep")) { puts("sleeping"); sleep(atoi(path)); return 0; }
    if (!strcmp(deed, "read")) {
        int failed = 0;
        for (int i = 2; i < argc; i++) failed |= show(argv[i]);
        return failed;
    }
    if (!strcmp(deed, "write")) {
        int file = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
        if (file < 0 || write(file, "written inside\n", 15) != 15) return printf("%s: %s\n", path, strerror(errno)), 1;
        return close(file);
    }
    if (!strcmp(deed, "link")) {
        if (symlink(path, argv[3])) printf("symlink %s: %s\n", path, strerror(errno));
        return show(argv[3]);
    }
    if (!strcmp(deed, "list")) {
        DIR *list = opendir(path);
        if (!list) return printf("%s: %s\n", path, strerror(errno)), 1;
        for (struct dirent *entry; (entry = readdir(list));) puts(entry->d_name);
        return 0;
    }
    if (!strcmp(deed, "bomb")) { /* takes memory until there is none, and uses all of it */
        size_t got = 0;
        for (char *volatile piece; (piece = malloc(1 << 20)); got++) memset(piece, (int)got + 1, 1 << 20);
        printf("%zu MiB\n", got);
        return 3;
    }
    if (!strcmp(deed, "flood")) {
        static char line[4096];
        memset(line, 'x', sizeof line - 1);
        for (long left = atol(path); left > 0; left--) puts(line);
        return 0;
    }
    if (!strcmp(deed, "cat")) {
        char data[4096];
        for (ssize_t size; (size = read(0, data, sizeof data)) > 0;)
            for (ssize_t at = 0; at < size;) at += write(1, data + at, size - at);
        return 5;
    }
    if (!strcmp(deed, "ticks")) { /* a line every tenth of a second */
        for (int i = 0; i < atoi(path); i++) { printf("tick %d\n", i); usleep(100000); }
        return 6;
    }
    return 99;
}
