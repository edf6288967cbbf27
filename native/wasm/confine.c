/* The walls of a worker, each as one step. They are all that stands between a defect of wasmtime's and the host. */
#define _GNU_SOURCE
#include "lamella-wasm.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/mount.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define MUST(condition, what) \
    do { if (!(condition)) { tell(FAILED, 125, "cannot %s: %s", what, strerror(errno)); _exit(125); } } while (0)

/* First of all: whatever is allocated from here on counts. */
void enter_groups(const struct job *job) {
    for (int i = 0; i < job->group_count; i++) MUST(write(job->groups[i], "0", 1) == 1, "join the control group");
}

/* Puts the module's file and its directories, which come as detached mounts, into a view of the room of our own. */
void show_mounts(const struct job *job) {
    char place[16];
    MUST(!unshare(CLONE_NEWNS), "make a mount namespace");
    /* Not noexec: the module's code is mapped from it. */
    struct mount_attr plain = {.attr_set = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV, .propagation = MS_PRIVATE};
    MUST(!syscall(SYS_mount_setattr, job->module, "", AT_EMPTY_PATH, &plain, sizeof plain), "show the module read-only");
    MUST(!syscall(SYS_move_mount, job->module, "", AT_FDCWD, "/module", 4 /* MOVE_MOUNT_F_EMPTY_PATH */), "show the module");
    for (int i = 0; i < job->directory_count; i++) {
        snprintf(place, sizeof place, "/d%d", i);
        MUST(!syscall(SYS_move_mount, job->directories[i], "", AT_FDCWD, place, 4), "show a directory");
    }
}

/*
 * A directory is used as its owner would use it and as nobody else: its owner's files are shown as the worker's own, by an id-mapped
 * mount. Where the filesystem has none (overlayfs), the worker has the rights of others. Runs in the monitor: it needs the host's pids.
 */
void map_owner(int mount, uint32_t user, int writable) {
    struct mount_attr plain = {.attr_set = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC | (writable ? 0 : MOUNT_ATTR_RDONLY),
                               .propagation = MS_PRIVATE};
    if (syscall(SYS_mount_setattr, mount, "", AT_EMPTY_PATH, &plain, sizeof plain)) _exit(2);
    struct stat owner;
    if (fstat(mount, &owner)) _exit(2);
    int made[2], over[2];
    if (pipe2(made, O_CLOEXEC) || pipe2(over, O_CLOEXEC)) _exit(2);
    pid_t child = fork();
    if (child < 0) _exit(2);
    if (!child) {
        char byte = !unshare(CLONE_NEWUSER);
        if (write(made[1], &byte, 1) != 1) _exit(1);
        close(over[1]);
        _exit(read(over[0], &byte, 1) != 0);
    }
    char byte = 0, path[64], map[64];
    close(made[1]);
    int mapped = read(made[0], &byte, 1) == 1 && byte;
    for (int group = 0; mapped && group < 2; group++) {
        snprintf(path, sizeof path, "%d/%s", child, group ? "gid_map" : "uid_map");
        int length = snprintf(map, sizeof map, "%u %u 1", group ? owner.st_gid : owner.st_uid, user);
        int file = openat(host_proc, path, O_WRONLY | O_CLOEXEC);
        mapped = file >= 0 && write(file, map, length) == length;
        if (file >= 0) close(file);
    }
    if (mapped) {
        snprintf(path, sizeof path, "%d/ns/user", child);
        int space = openat(host_proc, path, O_RDONLY | O_CLOEXEC);
        struct mount_attr ids = {.attr_set = MOUNT_ATTR_IDMAP, .userns_fd = space};
        if (space >= 0) {
            syscall(SYS_mount_setattr, mount, "", AT_EMPTY_PATH, &ids, sizeof ids);
            close(space);
        }
    }
    close(made[0]);
    close(over[0]);
    close(over[1]);
    waitpid(child, NULL, 0);
}

void lower_limits(const struct job *job) {
    static const struct { int resource; rlim_t most; } limits[] = {
        {RLIMIT_CORE, 0}, {RLIMIT_NOFILE, 512}, {RLIMIT_MEMLOCK, 65536}, {RLIMIT_STACK, 8 << 20}, {RLIMIT_MSGQUEUE, 0},
    };
    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++) {
        struct rlimit now;
        MUST(!getrlimit(limits[i].resource, &now), "read a limit");
        if (now.rlim_max > limits[i].most) now.rlim_max = limits[i].most;
        if (now.rlim_cur > now.rlim_max) now.rlim_cur = now.rlim_max;
        MUST(!setrlimit(limits[i].resource, &now), "lower a limit");
    }
    if (job->mode == COMPILE) {
        struct rlimit size = {1 << 30, 1 << 30};
        MUST(!setrlimit(RLIMIT_FSIZE, &size), "limit the compiler's output");
    }
}

static void drop_bounding_set(void) {
    int capability = 0;
    while (!prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)) capability++;
    MUST(errno == EINVAL && capability > 37, "drop a capability"); /* the first that this kernel does not know */
}

static void clear_capabilities(void) {
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct none[2] = {{0}};
    MUST(!prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0), "clear ambient capabilities");
    MUST(!syscall(SYS_capset, &header, none), "clear capabilities");
    MUST(!prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "give up new privileges");
}

void drop_capabilities(void) {
    drop_bounding_set();
    clear_capabilities();
}

void drop_privileges(uint32_t user) {
    drop_bounding_set();
    MUST(user != 0, "run as root");
    MUST(!setgroups(0, NULL), "leave groups");
    MUST(!setresgid(user, user, user), "change the group");
    MUST(!setresuid(user, user, user), "change the user");
    clear_capabilities();
}

/* Landlock, as far as the kernel has it (uapi/linux/landlock.h, ABI 1 to 6): the module's file and directories, no other file, no port. */
void restrict_files(const struct job *job) {
    enum { CREATE = 444, ADD = 445, RESTRICT = 446, BENEATH = 1 };
    enum { EXECUTE = 1, READ_FILE = 4, READ_DIR = 8, MAKE_CHAR = 1 << 6, MAKE_SOCK = 1 << 9, MAKE_FIFO = 1 << 10, MAKE_BLOCK = 1 << 11, IOCTL = 1 << 15 };
    struct { uint64_t files, network, scoped; } wanted = {0};
    struct __attribute__((packed)) { uint64_t allowed; int32_t parent; } rule;
    int version = syscall(CREATE, NULL, 0, 1);
    if (version < 1) return;
    wanted.files = version < 2 ? 0x1fff : version < 3 ? 0x3fff : version < 5 ? 0x7fff : 0xffff;
    if (version >= 4) wanted.network = 3;
    if (version >= 6) wanted.scoped = 3;
    size_t size = version < 4 ? 8 : version < 6 ? 16 : 24;
    int rules = syscall(CREATE, &wanted, size, 0);
    MUST(rules >= 0, "make Landlock rules");
    uint64_t change = wanted.files & ~(uint64_t)(EXECUTE | MAKE_CHAR | MAKE_SOCK | MAKE_FIFO | MAKE_BLOCK | IOCTL);
    for (int i = -1; i < job->directory_count; i++) {
        char place[16] = "/module";
        if (i < 0 && job->mode == COMPILE) continue;
        if (i >= 0) snprintf(place, sizeof place, "/d%d", i);
        rule.parent = open(place, O_PATH | O_CLOEXEC);
        rule.allowed = i < 0 ? READ_FILE : job->targets[i][0] == 'w' ? change : READ_FILE | READ_DIR;
        MUST(rule.parent >= 0 && !syscall(ADD, rules, BENEATH, &rule, 0), "add a Landlock rule");
        close(rule.parent);
    }
    MUST(!syscall(RESTRICT, rules, 0), "restrict files with Landlock");
    close(rules);
}

/* What wasmtime needs on x86-64 and AArch64 with glibc, and nothing else: no socket, no new process, no program, no mount, no key. */
static const int allowed[] = {
    SYS_read, SYS_write, SYS_readv, SYS_writev, SYS_pread64, SYS_pwrite64, SYS_preadv, SYS_pwritev, SYS_preadv2, SYS_pwritev2,
    SYS_close, SYS_fstat, SYS_newfstatat, SYS_statx, SYS_lseek, SYS_mmap, SYS_mprotect, SYS_munmap, SYS_madvise, SYS_mremap, SYS_brk,
    SYS_rt_sigaction, SYS_rt_sigprocmask, SYS_rt_sigreturn, SYS_sigaltstack, SYS_tgkill, SYS_ppoll, SYS_epoll_create1, SYS_epoll_ctl,
    SYS_epoll_pwait, SYS_eventfd2, SYS_futex, SYS_sched_yield, SYS_sched_getaffinity, SYS_nanosleep, SYS_clock_nanosleep,
    SYS_clock_gettime, SYS_clock_getres, SYS_gettimeofday, SYS_getrandom, SYS_getpid, SYS_gettid, SYS_exit, SYS_exit_group,
    SYS_set_robust_list, SYS_rseq, SYS_fcntl, SYS_dup, SYS_openat, SYS_openat2, SYS_mkdirat, SYS_unlinkat, SYS_renameat, SYS_renameat2,
    SYS_linkat, SYS_symlinkat, SYS_readlinkat, SYS_getdents64, SYS_ftruncate, SYS_fallocate, SYS_fsync, SYS_fdatasync, SYS_utimensat,
    SYS_fadvise64, SYS_fstatfs, SYS_faccessat, SYS_uname, SYS_membarrier, SYS_restart_syscall, SYS_memfd_create, SYS_prlimit64, SYS_getcwd,
#ifdef __x86_64__
    SYS_poll, SYS_epoll_wait,
#endif
};

void restrict_calls(void) {
#ifdef __x86_64__
    const unsigned native = AUDIT_ARCH_X86_64;
#else
    const unsigned native = AUDIT_ARCH_AARCH64;
#endif
    enum { COUNT = sizeof allowed / sizeof *allowed, MOST = 32 + 2 * COUNT };
    static struct sock_filter code[MOST];
    int n = 0;
#define PUT(...) code[n++] = (struct sock_filter)__VA_ARGS__
    PUT(BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)));
    PUT(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, native, 1, 0));
    PUT(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS));
    PUT(BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)));
    for (int i = 0; i < COUNT; i++) {
        PUT(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, allowed[i], 0, 1));
        PUT(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW));
    }
    /* glibc tries clone3, whose flags lie in memory, and falls back to clone, whose flags can be seen here: threads alone. */
    PUT(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_clone3, 0, 1));
    PUT(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOSYS));
    PUT(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_clone, 0, 4));
    PUT(BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[0])));
    PUT(BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, CLONE_THREAD, 0, 1));
    PUT(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW));
    PUT(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM));
    PUT(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_prctl, 0, 3));
    PUT(BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[0])));
    PUT(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, PR_SET_NAME, 0, 1));
    PUT(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW));
    PUT(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM));
#undef PUT
    struct sock_fprog program = {n, code};
    MUST(!syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program), "restrict system calls");
}
