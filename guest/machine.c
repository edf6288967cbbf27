#define _GNU_SOURCE
#include "machine.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/random.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

#include "freeze.h"
#include "network.h"
#include "process.h"
#include "protocol.h"
#include "volumes.h"

#define WAIT_MS 10000
#define GROUP "/sys/fs/cgroup/instance"

static bool configured, guest_has_init;
static int data_filesystem = -1; /* the writable disk's, hidden from the instance */
static FILE *modules;

static void pause_ms(long ms) { nanosleep(&(struct timespec){ms / 1000, ms % 1000 * 1000000}, NULL); }

static bool has_entries(const char *path) {
    DIR *directory = opendir(path);
    struct dirent *entry;
    bool found = false;
    while (directory && !found && (entry = readdir(directory))) found = entry->d_name[0] != '.';
    if (directory) closedir(directory);
    return found;
}

/* Load the modules that /etc/modules names up to the next line "-". A line is a path and, maybe, a directory of sysfs that must not be empty. */
static void load_modules(void) {
    char line[512];
    while (modules && fgets(line, sizeof line, modules)) {
        char *condition = NULL, *path = strtok_r(line, " \n", &condition);
        if (!path) continue;
        if (strcmp(path, "-") == 0) return;
        condition = strtok_r(NULL, " \n", &condition);
        if (condition && !has_entries(condition)) continue;
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) < 0 && errno != EEXIST)) dprintf(2, "lamella-agent: module %s: %s\n", path, strerror(errno));
        if (fd >= 0) close(fd);
        unlink(path);
    }
    if (modules) fclose(modules);
    modules = NULL;
}

void machine_begin(void) {
    mkdir("/proc", 0755), mkdir("/sys", 0755), mkdir("/dev", 0755);
    mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
    mount("sysfs", "/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
    mount("devtmpfs", "/dev", "devtmpfs", MS_NOSUID, "mode=0755");
    int console = open("/dev/console", O_RDWR | O_NOCTTY);
    for (int i = 0; console >= 0 && i < 3; i++) dup2(console, i);
    if (console > 2) close(console);
    modules = fopen("/etc/modules", "re");
    load_modules();
}

int machine_find_port(const char *name) {
    DIR *directory = opendir("/sys/class/virtio-ports");
    struct dirent *entry;
    int port = -1;
    while (directory && port < 0 && (entry = readdir(directory))) {
        char path[300], found[128] = "";
        snprintf(path, sizeof path, "/sys/class/virtio-ports/%.200s/name", entry->d_name);
        FILE *file = fopen(path, "re");
        if (!file) continue;
        if (fgets(found, sizeof found, file)) found[strcspn(found, "\n")] = 0;
        fclose(file);
        snprintf(path, sizeof path, "/dev/%.200s", entry->d_name);
        if (strcmp(found, name) == 0) port = open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK);
    }
    if (directory) closedir(directory);
    return port;
}

int machine_port(const char *name) {
    for (int waited = 0; waited < WAIT_MS; waited += 2, pause_ms(2)) {
        int port = machine_find_port(name);
        if (port >= 0) return port;
    }
    return -1;
}

/* virtio-blk tells its serial beside the disk, NVMe beside the controller and padded with spaces. */
static bool has_serial(const char *disk, const char *serial) {
    static const char *const places[] = {"/sys/block/%.200s/serial", "/sys/block/%.200s/device/serial"};
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        char path[300], found[64] = "";
        snprintf(path, sizeof path, places[i], disk);
        FILE *file = fopen(path, "re");
        if (!file) continue;
        if (fgets(found, sizeof found, file)) found[strcspn(found, " \n")] = 0;
        fclose(file);
        if (strcmp(found, serial) == 0) return true;
    }
    return false;
}

/* The link of a disk in sysfs says where it is: ../devices/pci0000:00/0000:00:10.0/0000:01:00.0/virtio5/block/vda. */
static bool has_place(const char *disk, const char *place) {
    char path[300], link[1024], part[64];
    snprintf(path, sizeof path, "/sys/block/%.200s", disk);
    snprintf(part, sizeof part, "/%.60s/", place);
    ssize_t size = readlink(path, link, sizeof link - 1);
    if (size < 0) return false;
    link[size] = 0;
    return strstr(link, part) != NULL;
}

char *machine_disk(const char *serial, const char *place, bool wait) {
    for (int waited = 0; waited < WAIT_MS; waited += 2, pause_ms(2)) {
        DIR *directory = opendir("/sys/block");
        struct dirent *entry;
        char *node = NULL;
        while (directory && !node && (entry = readdir(directory)))
            if (entry->d_name[0] != '.' && (place ? has_place(entry->d_name, place) : has_serial(entry->d_name, serial))) node = format_text("/dev/%s", entry->d_name);
        if (directory) closedir(directory);
        if (node && access(node, F_OK) == 0) return node;
        free(node);
        if (!wait) return NULL;
    }
    return NULL;
}

static char *mount_root(const char *node) {
    static const char *const kinds[] = {"erofs", "squashfs", "ext4"};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (mount(node, "/lower", kinds[i], MS_RDONLY, NULL) == 0) return NULL;
    return format_text("the root disk holds no erofs, squashfs or ext4: %s", strerror(errno));
}

static char *mount_disks(const char *root, const char *data) {
    struct stat s;
    char *root_node = machine_disk(root, NULL, true), *data_node = machine_disk(data, NULL, true), *problem = NULL;
    mkdir("/lower", 0755), mkdir("/data", 0700), mkdir("/root", 0755);
    if (!root_node || !data_node)
        problem = format_text("there is no disk with the serial %s", root_node ? data : root);
    else if ((problem = mount_root(root_node)))
        ;
    else if (mount(data_node, "/data", "ext4", MS_NODEV | MS_NOATIME, NULL) < 0)
        problem = format_text("the data disk holds no ext4: %s", strerror(errno));
    else if ((data_filesystem = open("/data", O_RDONLY | O_DIRECTORY | O_CLOEXEC)) < 0 || stat("/lower", &s) < 0)
        problem = format_text("the disks cannot be read: %s", strerror(errno));
    else if (mkdir("/data/upper", 0755) == 0 && (chown("/data/upper", s.st_uid, s.st_gid) < 0 || chmod("/data/upper", s.st_mode & 07777) < 0))
        problem = format_text("the data disk cannot be written: %s", strerror(errno));
    else if (mkdir("/data/work", 0700) < 0 && errno != EEXIST)
        problem = format_text("the data disk cannot be written: %s", strerror(errno));
    else if (mount("overlay", "/root", "overlay", 0, "lowerdir=/lower,upperdir=/data/upper,workdir=/data/work") < 0)
        problem = format_text("the disks cannot be laid over each other: %s", strerror(errno));
    free(root_node);
    free(data_node);
    return problem;
}

static const struct {
    const char *source, *target, *type;
    unsigned long flags;
    const char *options;
} mounts[] = {
    {"proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL},
    {"sysfs", "/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL},
    {"devtmpfs", "/dev", "devtmpfs", MS_NOSUID, "mode=0755"},
    {"devpts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "gid=5,mode=0620,ptmxmode=0666"},
    {"shm", "/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=1777"},
    {"mqueue", "/dev/mqueue", "mqueue", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL},
    {"cgroup2", "/sys/fs/cgroup", "cgroup2", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL},
};

/* Make /root the root and mount what an OCI runtime would (runtime-spec, config-linux.md, "Default Filesystems"). */
static char *enter_root(void) {
    umount2("/dev", MNT_DETACH), umount2("/sys", MNT_DETACH), umount2("/proc", MNT_DETACH);
    if (chdir("/root") < 0 || mount(".", "/", NULL, MS_MOVE, NULL) < 0 || chroot(".") < 0 || chdir("/") < 0)
        return format_text("the new root cannot be entered: %s", strerror(errno));
    for (size_t i = 0; i < sizeof mounts / sizeof *mounts; i++) {
        mkdir(mounts[i].target, 0755);
        if (mount(mounts[i].source, mounts[i].target, mounts[i].type, mounts[i].flags, mounts[i].options) < 0 && i < 4)
            return format_text("%s cannot be mounted: %s", mounts[i].target, strerror(errno));
    }
    mkdir("/tmp", 01777), mkdir("/run", 0755), mkdir("/etc", 0755);
    (void)!symlink("/proc/self/fd", "/dev/fd");
    (void)!symlink("/proc/self/fd/0", "/dev/stdin");
    (void)!symlink("/proc/self/fd/1", "/dev/stdout");
    (void)!symlink("/proc/self/fd/2", "/dev/stderr");
    return NULL;
}

static void put_text(const char *path, const char *text) {
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0) return;
    (void)!write(fd, text, strlen(text));
    close(fd);
}

/* One cgroup for all that the instance runs, so that its bound on processes spares the agent. */
static void bound_processes(uint64_t pids) {
    char limit[32];
    put_text("/proc/self/oom_score_adj", "-1000");
    process_spared = true;
    if (mkdir(GROUP, 0755) < 0 && errno != EEXIST) return;
    process_group_file = GROUP "/cgroup.procs";
    put_text("/sys/fs/cgroup/cgroup.subtree_control", "+pids");
    snprintf(limit, sizeof limit, "%llu", (unsigned long long)pids);
    if (pids) put_text(GROUP "/pids.max", limit);
}

/* Whatever the image has there, a link perhaps, gives way to our file. */
static void replace_file(const char *path, const struct bytes *content) {
    unlink(path);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd < 0) return;
    (void)!write(fd, content->data, bytes_held(content));
    close(fd);
}

static void write_names(struct view body, const char *hostname, const char *address, const char *address6) {
    struct bytes text = {0};
    char *line = format_text("%s\n", hostname);
    bytes_add(&text, line, strlen(line));
    replace_file("/etc/hostname", &text);
    free(line);
    bytes_free(&text);
    int size = (int)strcspn(address, "/");
    line = format_text("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n%.*s\t%s\n", size ? size : 9, size ? address : "127.0.1.1", hostname);
    bytes_add(&text, line, strlen(line));
    free(line);
    if (*address6) {
        line = format_text("%.*s\t%s\n", (int)strcspn(address6, "/"), address6, hostname);
        bytes_add(&text, line, strlen(line));
        free(line);
    }
    replace_file("/etc/hosts", &text);
    bytes_free(&text);
    char **servers = find_texts(body, TAG_NAMESERVER);
    for (char **server = servers; *server; server++) {
        line = format_text("nameserver %s\n", *server);
        bytes_add(&text, line, strlen(line));
        free(line);
    }
    if (*servers) replace_file("/etc/resolv.conf", &text);
    bytes_free(&text);
    free_texts(servers);
}

char *machine_set(struct view body) {
    struct view entropy;
    struct utsname names;
    char *hostname = find_text(body, TAG_HOSTNAME), *address = find_text(body, TAG_ADDRESS), *address6 = find_text(body, TAG_ADDRESS6), *problem = NULL;
    uint64_t now = find_number(body, TAG_TIME_NS, 0);
    if (now) {
        struct timespec time = {(time_t)(now / 1000000000u), (long)(now % 1000000000u)};
        if (clock_settime(CLOCK_REALTIME, &time) < 0) problem = format_text("the clock cannot be set: %s", strerror(errno));
    }
    if (!problem && find_field(body, TAG_ENTROPY, &entropy)) problem = machine_reseed(entropy.data, entropy.size);
    if (!problem && hostname && sethostname(hostname, strlen(hostname)) < 0) problem = format_text("the host name was refused: %s", strerror(errno));
    if (!problem && address) {
        char *interface = find_text(body, TAG_INTERFACE), *mac = find_text(body, TAG_MAC), *gateway = find_text(body, TAG_GATEWAY);
        char *gateway6 = find_text(body, TAG_GATEWAY6);
        struct network network = {
            .interface = interface ? interface : "eth0",
            .mac = mac ? mac : "",
            .address = address,
            .gateway = gateway ? gateway : "",
            .address6 = address6 ? address6 : "",
            .gateway6 = gateway6 ? gateway6 : "",
            .mtu = (uint32_t)find_number(body, TAG_MTU, 0),
        };
        problem = network_configure(&network);
        free(interface), free(mac), free(gateway), free(gateway6);
    }
    if (!problem && (hostname || address) && uname(&names) == 0) write_names(body, hostname ? hostname : names.nodename, address ? address : "", address6 ? address6 : "");
    free(hostname);
    free(address);
    free(address6);
    return problem;
}

void machine_prepare(void) { load_modules(); }

char *machine_configure(struct view body) {
    if (configured) return format_text("the guest has been configured before");
    machine_prepare();
    char *root = find_text(body, TAG_ROOT_SERIAL), *data = find_text(body, TAG_DATA_SERIAL);
    char *problem = root && data ? mount_disks(root, data) : format_text("no disks were named");
    free(root);
    free(data);
    if (!problem) problem = enter_root();
    if (!problem) problem = network_loopback();
    if (!problem) problem = machine_set(body);
    if (problem) return problem;
    bound_processes(find_number(body, TAG_PIDS, 0));
    configured = true;
    return NULL;
}

char *machine_reseed(const void *data, size_t size) {
    int fd = open("/dev/urandom", O_RDWR | O_CLOEXEC);
    struct rand_pool_info *pool = allocate(sizeof *pool + size);
    pool->entropy_count = (int)size * 8;
    pool->buf_size = (int)size;
    memcpy(pool->buf, data, size);
    char *problem = NULL;
    if (fd < 0 || ioctl(fd, RNDADDENTROPY, pool) < 0 || ioctl(fd, RNDRESEEDCRNG) < 0) problem = format_text("the kernel did not take the entropy: %s", strerror(errno));
    free(pool);
    if (fd >= 0) close(fd);
    return problem;
}

void machine_serve(void) {
    guest_has_init = true;
    put_text("/proc/self/oom_score_adj", "-1000");
    process_spared = true;
    umask(022);
    (void)!chdir("/");
}

char *machine_freeze(uint32_t deadline_ms) {
    if (guest_has_init) return freeze_machine(deadline_ms);
    if (data_filesystem < 0) return format_text("there is no disk to freeze");
    int directories[MOST_FROZEN];
    size_t opened = volumes_open(directories, MOST_FROZEN - 1);
    /* Nothing lies on a volume that the instance's own disk needs. */
    directories[opened] = data_filesystem;
    char *problem = freeze_these(directories, opened + 1, deadline_ms);
    while (opened > 0) close(directories[--opened]);
    return problem;
}

char *machine_bound(uint64_t pids) {
    char limit[32] = "max";
    if (pids) snprintf(limit, sizeof limit, "%llu", (unsigned long long)pids);
    int fd = guest_has_init ? -1 : open(GROUP "/pids.max", O_WRONLY | O_CLOEXEC);
    bool done = fd >= 0 && write(fd, limit, strlen(limit)) > 0;
    int kept = errno;
    if (fd >= 0) close(fd);
    if (guest_has_init) return format_text("the processes of a machine that has an init of its own are bounded by that");
    return done ? NULL : format_text("the bound on processes cannot be set: %s", strerror(kept));
}

bool machine_has_init(void) { return guest_has_init; }

void machine_off(void) {
    free(freeze_thaw());
    kill(-1, SIGKILL);
    volumes_end();
    sync();
    if (data_filesystem >= 0) ioctl(data_filesystem, FIFREEZE, 0); /* leaves its journal empty */
    reboot(RB_POWER_OFF);
    reboot(RB_AUTOBOOT);
    for (;;) pause();
}
