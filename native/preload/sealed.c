/*
 * lamella-sealed.so: what lets QEMU 7.2 give memory back whose pages it shares with a sealed file.
 *
 * The pages of a guest that began as a copy are a private mapping of a file that nobody may write (F_SEAL_WRITE). When the guest gives
 * pages back (balloon, free page reporting), QEMU first punches a hole into the file (softmmu/physmem.c, ram_block_discard_range), as
 * if the file were this guest's alone, and gives up when that is refused. Here it succeeds and changes nothing; the madvise(2) that QEMU
 * does next frees what the guest had written. Every other call goes to the kernel as it is.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

int fallocate64(int fd, int mode, off64_t offset, off64_t length) {
    if (mode & FALLOC_FL_PUNCH_HOLE) {
        int seals = fcntl(fd, F_GET_SEALS);
        if (seals > 0 && seals & F_SEAL_WRITE) return 0;
    }
    return syscall(SYS_fallocate, fd, mode, offset, length);
}

int fallocate(int fd, int mode, off_t offset, off_t length) { return fallocate64(fd, mode, offset, length); }
