// Links: fuse3 pthread
/*
 * lamella-pieces: one file as a directory of pieces, and such a directory as one file.
 *
 *   lamella-pieces split TABLE SOURCE MOUNT               SOURCE, read-only, as MOUNT/DDDDDD/PP
 *   lamella-pieces fill PIECE SIZE TARGET MOUNT           whatever is written to MOUNT/DDDDDD/PP goes to its place in TARGET
 *   lamella-pieces join PIECE SIZE DIRECTORY SCRATCH MOUNT  DIRECTORY/DDDDDD/PP as the file MOUNT of SIZE bytes
 *
 * Piece N has the name N / 256 (six hexadecimal digits), "/", N % 256 (two). PIECE is its size in bytes, the last one may be
 * shorter. A piece that is not there is zeros, and is neither read nor stored.
 *
 * A backup engine goes by size and time of change, and opens no file that has the ones that it had before. TABLE says them: 64-bit
 * numbers of this machine's order: PIECE, SIZE, and for every piece the second of its last change, 0 for a piece that is zeros.
 *
 * With join what is written goes to the sparse file SCRATCH, so that a filesystem's journal can be replayed and nothing behind it changes.
 *
 * Says "ready" on standard output when the mount is there, ends on SIGTERM, and takes the mount with it. fuse_lowlevel.h of libfuse 3.14.
 */
#define _GNU_SOURCE
#define FUSE_USE_VERSION 314
#include <errno.h>
#include <fcntl.h>
#include <fuse3/fuse_lowlevel.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { A_DIRECTORY = 256, KEPT = 64, BLOCK = 4096 };
#define FOREVER 1e9
/* Inodes: the root, directories from here on, and pieces above all. */
#define DIRECTORY_INO 16
#define PIECE_INO (1ull << 40)

static uint64_t piece_size, size, pieces;
static int64_t *stamps;             /* split */
static time_t began;
static int content = -1;            /* the source, the target, or the directory of pieces */
static int scratch = -1;            /* join */
static uint8_t *written;            /* join: a bit for every block that is in scratch */
static pthread_rwlock_t blocks = PTHREAD_RWLOCK_INITIALIZER;
static int filling;

static void fail(const char *what) {
    fprintf(stderr, "lamella-pieces: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void usage(void) {
    fprintf(stderr, "lamella-pieces: see the head of pieces.c\n");
    exit(2);
}

static uint64_t number(const char *text) {
    char *end;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    if (errno || end == text || *end || value > INT64_MAX) usage();
    return value;
}

static uint64_t directories(void) { return (pieces + A_DIRECTORY - 1) / A_DIRECTORY; }

static uint64_t length_of(uint64_t piece) {
    uint64_t left = size - piece * piece_size;
    return left < piece_size ? left : piece_size;
}

static int absent(uint64_t piece) { return piece >= pieces || (stamps && stamps[piece] == 0); }

/* A name of exactly `digits` lower-case hexadecimal digits, or -1. */
static int64_t parsed(const char *name, size_t digits) {
    int64_t value = 0;
    if (strlen(name) != digits) return -1;
    for (; *name; name++) {
        const char *digit = strchr("0123456789abcdef", *name);
        if (!digit) return -1;
        value = value * 16 + (digit - "0123456789abcdef");
    }
    return value;
}

static int describe(fuse_ino_t ino, struct stat *st) {
    memset(st, 0, sizeof *st);
    st->st_ino = ino;
    st->st_blksize = 1 << 20;
    if (ino == FUSE_ROOT_ID || (ino >= DIRECTORY_INO && ino < PIECE_INO)) {
        if (ino != FUSE_ROOT_ID && ino - DIRECTORY_INO >= directories()) return ENOENT;
        st->st_mode = S_IFDIR | 0700;
        st->st_nlink = 2;
        st->st_mtime = st->st_ctime = 1;
        return 0;
    }
    st->st_nlink = 1;
    st->st_mode = S_IFREG | 0600;
    st->st_mtime = st->st_ctime = began;
    if (ino < PIECE_INO || absent(ino - PIECE_INO)) return ENOENT;
    st->st_size = length_of(ino - PIECE_INO);
    st->st_blocks = (st->st_size + 511) / 512;
    if (stamps) st->st_mtime = st->st_ctime = stamps[ino - PIECE_INO];
    return 0;
}

static void reply_entry(fuse_req_t req, fuse_ino_t ino) {
    struct fuse_entry_param entry = {.ino = ino, .attr_timeout = FOREVER, .entry_timeout = FOREVER};
    int error = describe(ino, &entry.attr);
    if (error)
        fuse_reply_err(req, error);
    else
        fuse_reply_entry(req, &entry);
}

/* The inode that a name means, whether it is there or not; 0 when it cannot be one. */
static fuse_ino_t named(fuse_ino_t parent, const char *name) {
    if (parent == FUSE_ROOT_ID) {
        int64_t directory = parsed(name, 6);
        return directory < 0 || (uint64_t)directory >= directories() ? 0 : DIRECTORY_INO + (uint64_t)directory;
    }
    if (parent < DIRECTORY_INO || parent >= PIECE_INO) return 0;
    int64_t within = parsed(name, 2);
    if (within < 0) return 0;
    uint64_t piece = (parent - DIRECTORY_INO) * A_DIRECTORY + (uint64_t)within;
    return piece < pieces ? PIECE_INO + piece : 0;
}

static void view_lookup(fuse_req_t req, fuse_ino_t parent, const char *name) {
    fuse_ino_t ino = named(parent, name);
    if (ino)
        reply_entry(req, ino);
    else
        fuse_reply_err(req, ENOENT);
}

static void view_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *info) {
    (void)info;
    struct stat st;
    int error = describe(ino, &st);
    if (error)
        fuse_reply_err(req, error);
    else
        fuse_reply_attr(req, &st, FOREVER);
}

static int empty_directory(uint64_t directory) {
    for (uint64_t piece = directory * A_DIRECTORY; piece < pieces && piece < (directory + 1) * A_DIRECTORY; piece++)
        if (!absent(piece)) return 0;
    return 1;
}

static size_t add(fuse_req_t req, char *buffer, size_t room, const char *name, fuse_ino_t ino, off_t next, int plus) {
    struct fuse_entry_param entry = {.ino = ino, .attr_timeout = FOREVER, .entry_timeout = FOREVER};
    describe(ino, &entry.attr);
    return plus ? fuse_add_direntry_plus(req, buffer, room, name, &entry, next)
                : fuse_add_direntry(req, buffer, room, name, &entry.attr, next);
}

static void list(fuse_req_t req, fuse_ino_t ino, size_t room, off_t from, int plus) {
    char *buffer = malloc(room), name[16];
    size_t used = 0;
    if (!buffer) {
        fuse_reply_err(req, ENOMEM);
        return;
    }
    if (ino == FUSE_ROOT_ID) {
        for (uint64_t at = (uint64_t)from; !filling && at < directories(); at++) {
            if (empty_directory(at)) continue;
            snprintf(name, sizeof name, "%06x", (unsigned)at);
            size_t more = add(req, buffer + used, room - used, name, DIRECTORY_INO + at, (off_t)at + 1, plus);
            if (more > room - used) break;
            used += more;
        }
    } else {
        uint64_t first = (ino - DIRECTORY_INO) * A_DIRECTORY;
        for (uint64_t at = (uint64_t)from; !filling && at < A_DIRECTORY && first + at < pieces; at++) {
            if (absent(first + at)) continue;
            snprintf(name, sizeof name, "%02x", (unsigned)at);
            size_t more = add(req, buffer + used, room - used, name, PIECE_INO + first + at, (off_t)at + 1, plus);
            if (more > room - used) break;
            used += more;
        }
    }
    fuse_reply_buf(req, buffer, used);
    free(buffer);
}

static void view_readdir(fuse_req_t req, fuse_ino_t ino, size_t room, off_t from, struct fuse_file_info *info) {
    (void)info;
    list(req, ino, room, from, 0);
}

static void view_readdirplus(fuse_req_t req, fuse_ino_t ino, size_t room, off_t from, struct fuse_file_info *info) {
    (void)info;
    list(req, ino, room, from, 1);
}

static void view_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *info) {
    if (ino < PIECE_INO || absent(ino - PIECE_INO)) {
        fuse_reply_err(req, ENOENT);
        return;
    }
    info->direct_io = 1;
    fuse_reply_open(req, info);
}

static void view_read(fuse_req_t req, fuse_ino_t ino, size_t count, off_t from, struct fuse_file_info *info) {
    (void)info;
    uint64_t piece = ino - PIECE_INO, length = length_of(piece);
    if ((uint64_t)from >= length) {
        fuse_reply_buf(req, NULL, 0);
        return;
    }
    if (count > length - (uint64_t)from) count = length - (uint64_t)from;
    char *buffer = malloc(count);
    size_t done = 0;
    int error = buffer ? 0 : ENOMEM;
    while (!error && done < count) {
        ssize_t got = pread(content, buffer + done, count - done, (off_t)(piece * piece_size + (uint64_t)from + done));
        if (got < 0 && errno == EINTR) continue;
        /* A source that ends too early must not be taken for a short piece. */
        if (got <= 0)
            error = got < 0 ? errno : EIO;
        else
            done += (size_t)got;
    }
    if (error)
        fuse_reply_err(req, error);
    else
        fuse_reply_buf(req, buffer, count);
    free(buffer);
}

/* --- fill: an engine restores files; each is a place in the target, which is zeros before */

static void fill_mkdir(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode) {
    (void)mode;
    view_lookup(req, parent, name);
}

static void fill_create(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, struct fuse_file_info *info) {
    (void)mode;
    fuse_ino_t ino = named(parent, name);
    struct fuse_entry_param entry = {.ino = ino, .attr_timeout = FOREVER, .entry_timeout = FOREVER};
    int error = ino ? describe(ino, &entry.attr) : EINVAL;
    if (error)
        fuse_reply_err(req, error);
    else {
        info->direct_io = 1;
        fuse_reply_create(req, &entry, info);
    }
}

static void fill_setattr(fuse_req_t req, fuse_ino_t ino, struct stat *asked, int which, struct fuse_file_info *info) {
    (void)asked;
    (void)which;
    view_getattr(req, ino, info);
}

static void fill_write(fuse_req_t req, fuse_ino_t ino, const char *data, size_t count, off_t from, struct fuse_file_info *info) {
    (void)info;
    uint64_t piece = ino - PIECE_INO, length = length_of(piece);
    if (from < 0 || (uint64_t)from > length || count > length - (uint64_t)from) {
        fuse_reply_err(req, EFBIG);
        return;
    }
    for (size_t done = 0; done < count;) {
        ssize_t put = pwrite(content, data + done, count - done, (off_t)(piece * piece_size) + from + (off_t)done);
        if (put < 0 && errno == EINTR) continue;
        if (put <= 0) {
            fuse_reply_err(req, put < 0 ? errno : ENOSPC);
            return;
        }
        done += (size_t)put;
    }
    fuse_reply_write(req, count);
}

static void fill_fallocate(fuse_req_t req, fuse_ino_t ino, int mode, off_t from, off_t length, struct fuse_file_info *info) {
    (void)ino, (void)mode, (void)from, (void)length, (void)info;
    fuse_reply_err(req, EOPNOTSUPP);
}

static void fill_fsync(fuse_req_t req, fuse_ino_t ino, int data, struct fuse_file_info *info) {
    (void)ino, (void)data, (void)info;
    fuse_reply_err(req, fsync(content) ? errno : 0);
}

static void fill_flush(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *info) {
    (void)ino, (void)info;
    fuse_reply_err(req, 0);
}

/* --- join: the root is the file */

static struct {
    uint64_t piece;
    int file; /* -1: no such piece */
    int users;
    uint64_t used;
} kept[KEPT];
static pthread_mutex_t keeping = PTHREAD_MUTEX_INITIALIZER;
static uint64_t clock_of_kept;

static int open_piece(uint64_t piece) {
    char path[32];
    snprintf(path, sizeof path, "%06llx/%02x", (unsigned long long)(piece / A_DIRECTORY), (unsigned)(piece % A_DIRECTORY));
    return openat(content, path, O_RDONLY | O_CLOEXEC);
}

/* Bytes of one piece; a piece that is not there is zeros. Returns an errno. */
static int read_piece(uint64_t piece, char *into, size_t count, uint64_t from) {
    int slot = -1, file;
    pthread_mutex_lock(&keeping);
    for (int i = 0; i < KEPT && slot < 0; i++)
        if (kept[i].used && kept[i].piece == piece) slot = i;
    if (slot < 0) {
        file = open_piece(piece);
        if (file < 0 && errno != ENOENT) {
            int error = errno;
            pthread_mutex_unlock(&keeping);
            return error;
        }
        for (int i = 0; i < KEPT; i++)
            if (!kept[i].users && (slot < 0 || kept[i].used < kept[slot].used)) slot = i;
        if (slot < 0) {
            pthread_mutex_unlock(&keeping);
            if (file >= 0) close(file);
            return EAGAIN;
        }
        if (kept[slot].used && kept[slot].file >= 0) close(kept[slot].file);
        kept[slot].piece = piece;
        kept[slot].file = file;
    }
    kept[slot].users++;
    kept[slot].used = ++clock_of_kept;
    file = kept[slot].file;
    pthread_mutex_unlock(&keeping);
    int error = 0;
    if (file < 0) memset(into, 0, count);
    for (size_t done = 0; file >= 0 && done < count && !error;) {
        ssize_t got = pread(file, into + done, count - done, (off_t)(from + done));
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) error = got < 0 ? errno : EIO;
        else done += (size_t)got;
    }
    pthread_mutex_lock(&keeping);
    kept[slot].users--;
    pthread_mutex_unlock(&keeping);
    return error;
}

static int read_behind(char *into, size_t count, uint64_t from) {
    while (count) {
        uint64_t piece = from / piece_size, within = from % piece_size;
        size_t some = count < piece_size - within ? count : piece_size - within;
        int error = read_piece(piece, into, some, within);
        if (error) return error;
        into += some, from += some, count -= some;
    }
    return 0;
}

static int in_scratch(uint64_t block) { return written[block / 8] >> (block % 8) & 1; }

static int read_joined(char *into, size_t count, uint64_t from) {
    while (count) {
        uint64_t block = from / BLOCK, end = from / BLOCK + 1;
        int ours = in_scratch(block);
        while (end * BLOCK < from + count && in_scratch(end) == ours) end++;
        size_t some = end * BLOCK - from < count ? end * BLOCK - from : count;
        if (ours) {
            if (pread(scratch, into, some, (off_t)from) != (ssize_t)some) return EIO;
        } else {
            int error = read_behind(into, some, from);
            if (error) return error;
        }
        into += some, from += some, count -= some;
    }
    return 0;
}

static void join_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *info) {
    (void)info;
    struct stat st = {.st_ino = ino, .st_mode = S_IFREG | 0600, .st_nlink = 1, .st_size = (off_t)size, .st_blksize = BLOCK};
    st.st_blocks = (blkcnt_t)(size / 512);
    st.st_mtime = st.st_ctime = began;
    fuse_reply_attr(req, &st, FOREVER);
}

static void join_setattr(fuse_req_t req, fuse_ino_t ino, struct stat *asked, int which, struct fuse_file_info *info) {
    if ((which & FUSE_SET_ATTR_SIZE) && (uint64_t)asked->st_size != size)
        fuse_reply_err(req, EPERM);
    else
        join_getattr(req, ino, info);
}

static void join_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *info) {
    (void)ino;
    fuse_reply_open(req, info);
}

static void join_read(fuse_req_t req, fuse_ino_t ino, size_t count, off_t from, struct fuse_file_info *info) {
    (void)ino, (void)info;
    if ((uint64_t)from >= size) {
        fuse_reply_buf(req, NULL, 0);
        return;
    }
    if (count > size - (uint64_t)from) count = size - (uint64_t)from;
    char *buffer = malloc(count);
    if (!buffer) {
        fuse_reply_err(req, ENOMEM);
        return;
    }
    pthread_rwlock_rdlock(&blocks);
    int error = read_joined(buffer, count, (uint64_t)from);
    pthread_rwlock_unlock(&blocks);
    if (error)
        fuse_reply_err(req, error);
    else
        fuse_reply_buf(req, buffer, count);
    free(buffer);
}

/* One block, or a part of it: what is around the part comes along from behind. */
static int write_block(const char *data, size_t count, uint64_t from) {
    uint64_t block = from / BLOCK, start = block * BLOCK;
    size_t whole = size - start < BLOCK ? size - start : BLOCK;
    char buffer[BLOCK];
    if (count < whole) {
        int error = read_joined(buffer, whole, start);
        if (error) return error;
    }
    memcpy(buffer + (from - start), data, count);
    if (pwrite(scratch, buffer, whole, (off_t)start) != (ssize_t)whole) return errno ? errno : EIO;
    written[block / 8] |= (uint8_t)(1u << (block % 8));
    return 0;
}

static void join_write(fuse_req_t req, fuse_ino_t ino, const char *data, size_t count, off_t from, struct fuse_file_info *info) {
    (void)ino, (void)info;
    if ((uint64_t)from > size || count > size - (uint64_t)from) {
        fuse_reply_err(req, EFBIG);
        return;
    }
    int error = 0;
    pthread_rwlock_wrlock(&blocks);
    for (size_t done = 0; done < count && !error;) {
        uint64_t at = (uint64_t)from + done;
        size_t some = BLOCK - at % BLOCK < count - done ? BLOCK - at % BLOCK : count - done;
        errno = 0;
        error = write_block(data + done, some, at);
        done += some;
    }
    pthread_rwlock_unlock(&blocks);
    if (error)
        fuse_reply_err(req, error);
    else
        fuse_reply_write(req, count);
}

static void join_fsync(fuse_req_t req, fuse_ino_t ino, int data, struct fuse_file_info *info) {
    (void)ino, (void)data, (void)info;
    fuse_reply_err(req, 0);
}

/* --- putting it up */

static const struct fuse_lowlevel_ops split_view = {
    .lookup = view_lookup, .getattr = view_getattr, .readdir = view_readdir, .readdirplus = view_readdirplus,
    .open = view_open,     .read = view_read,
};
static const struct fuse_lowlevel_ops fill_view = {
    .lookup = view_lookup, .getattr = view_getattr, .readdir = view_readdir, .open = view_open,     .mkdir = fill_mkdir,
    .create = fill_create, .setattr = fill_setattr, .write = fill_write,     .fallocate = fill_fallocate, .fsync = fill_fsync,
    .flush = fill_flush,
};
static const struct fuse_lowlevel_ops join_view = {
    .getattr = join_getattr, .setattr = join_setattr, .open = join_open, .read = join_read, .write = join_write, .fsync = join_fsync,
    .flush = fill_flush,
};

static void geometry(uint64_t piece, uint64_t bytes) {
    piece_size = piece;
    size = bytes;
    if (piece_size == 0 || piece_size % BLOCK) usage();
    pieces = (size + piece_size - 1) / piece_size;
}

static int opened(const char *path, int flags) {
    int file = open(path, flags | O_CLOEXEC);
    if (file < 0) fail(path);
    return file;
}

static void read_table(const char *path) {
    int file = opened(path, O_RDONLY);
    struct stat st;
    if (fstat(file, &st)) fail(path);
    if (st.st_size < 16) usage();
    int64_t *table = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, file, 0);
    if (table == MAP_FAILED) fail(path);
    geometry((uint64_t)table[0], (uint64_t)table[1]);
    if ((uint64_t)st.st_size != 16 + pieces * 8) usage();
    stamps = table + 2;
    close(file);
}

static int serve(const struct fuse_lowlevel_ops *operations, size_t how_many, const char *point) {
    char *words[] = {"lamella-pieces", "-o", "fsname=lamella-pieces,subtype=pieces", NULL};
    struct fuse_args arguments = FUSE_ARGS_INIT(3, words);
    struct fuse_session *session = fuse_session_new(&arguments, operations, how_many, NULL);
    if (!session) return 1;
    if (fuse_set_signal_handlers(session)) return 1;
    if (fuse_session_mount(session, point)) return 1;
    if (write(1, "ready\n", 6) != 6) fail("standard output");
    struct fuse_loop_config *config = fuse_loop_cfg_create();
    fuse_loop_cfg_set_max_threads(config, 8);
    int ended = fuse_session_loop_mt(session, config);
    fuse_session_unmount(session);
    /* What could not be written out must not look as if it were. */
    if (filling && fsync(content)) fail("fsync");
    return ended < 0;
}

int main(int argc, char **argv) {
    began = time(NULL);
    if (argc == 5 && strcmp(argv[1], "split") == 0) {
        read_table(argv[2]);
        content = opened(argv[3], O_RDONLY);
        return serve(&split_view, sizeof split_view, argv[4]);
    }
    if (argc == 6 && strcmp(argv[1], "fill") == 0) {
        geometry(number(argv[2]), number(argv[3]));
        filling = 1;
        content = opened(argv[4], O_RDWR);
        return serve(&fill_view, sizeof fill_view, argv[5]);
    }
    if (argc == 7 && strcmp(argv[1], "join") == 0) {
        geometry(number(argv[2]), number(argv[3]));
        content = opened(argv[4], O_RDONLY | O_DIRECTORY);
        scratch = open(argv[5], O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
        written = calloc(size / BLOCK / 8 + 1, 1);
        if (scratch < 0 || ftruncate(scratch, (off_t)size)) fail(argv[5]);
        if (!written) fail("memory");
        return serve(&join_view, sizeof join_view, argv[6]);
    }
    usage();
}
