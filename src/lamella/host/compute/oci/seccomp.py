"""The default seccomp profile: which system calls a container may make, as data (the sources of the lists: seccomp(2),
syscalls(2) and what the well-known container engines agree on).

Everything that is not named is answered ENOSYS, so that a C library tries the older call; what is known and dangerous or
useless without privileges over the host is answered EPERM.
"""

from lamella.host.compute.oci.spec import Seccomp, SyscallArgument, SyscallRule
from lamella.model.errors import Unsupported

EPERM, ENOSYS = 1, 38

# Namespace flags of clone(2): user, pid, net, ipc, uts, cgroup, mount.
CLONE_NAMESPACES = 0x7E020000

ARCHITECTURES = {
    "x86_64": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
    "aarch64": ["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"],
    "riscv64": ["SCMP_ARCH_RISCV64"],
    "ppc64le": ["SCMP_ARCH_PPC64LE"],
    "s390x": ["SCMP_ARCH_S390X"],
}


def _words(text: str) -> list[str]:
    return text.split()


FILES = _words("""
    access chdir chmod chown chown32 close close_range copy_file_range creat dup dup2 dup3 faccessat faccessat2 fadvise64
    fadvise64_64 fallocate fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat fcntl fcntl64 fdatasync fgetxattr
    flistxattr flock fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate ftruncate64
    futimesat getcwd getdents getdents64 getxattr getxattrat inotify_add_watch inotify_init inotify_init1
    inotify_rm_watch ioctl lchown lchown32 lgetxattr link linkat listxattr listxattrat llistxattr _llseek lremovexattr
    lseek lsetxattr lstat lstat64 mkdir mkdirat mknod mknodat name_to_handle_at newfstatat oldfstat oldlstat oldstat open
    openat openat2 pread64 preadv preadv2 pwrite64 pwritev pwritev2 read readahead readdir readlink readlinkat readv
    removexattr removexattrat rename renameat renameat2 rmdir sendfile sendfile64 setxattr setxattrat splice stat stat64
    statfs statfs64 statx symlink symlinkat sync sync_file_range sync_file_range2 arm_sync_file_range syncfs tee truncate
    truncate64 umask unlink unlinkat utime utimensat utimensat_time64 utimes vmsplice write writev fanotify_mark
    cachestat landlock_add_rule landlock_create_ruleset landlock_restrict_self
""")

PROCESSES = _words("""
    _exit alarm arch_prctl brk capget capset execve execveat exit exit_group fork futex futex_requeue futex_time64
    futex_wait futex_waitv futex_wake get_robust_list get_thread_area getcpu getegid getegid32 geteuid geteuid32 getgid
    getgid32 getgroups getgroups32 getitimer getpgid getpgrp getpid getppid getpriority getrandom getresgid getresgid32
    getresuid getresuid32 getrlimit getrusage getsid gettid getuid getuid32 ioprio_get ioprio_set kill madvise
    map_shadow_stack membarrier memfd_create memfd_secret mincore mlock mlock2 mlockall mmap mmap2 modify_ldt mprotect
    mremap mseal msync munlock munlockall munmap nanosleep pause pidfd_getfd pidfd_open pidfd_send_signal pipe pipe2
    pkey_alloc pkey_free pkey_mprotect prctl prlimit64 process_madvise process_mrelease process_vm_readv
    process_vm_writev ptrace remap_file_pages restart_syscall rseq rt_sigaction rt_sigpending rt_sigprocmask
    rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo
    sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr sched_getparam sched_getscheduler
    sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam
    sched_setscheduler sched_yield seccomp set_robust_list set_thread_area set_tid_address setfsgid setfsgid32 setfsuid
    setfsuid32 setgid setgid32 setgroups setgroups32 setitimer setpgid setpriority setregid setregid32 setresgid
    setresgid32 setresuid setresuid32 setreuid setreuid32 setrlimit setsid setuid setuid32 sigaction sigaltstack signal
    signalfd signalfd4 sigpending sigprocmask sigreturn sigsuspend swapcontext tgkill time times tkill ugetrlimit uname
    vfork wait4 waitid waitpid chroot getpmsg breakpoint cacheflush set_tls riscv_flush_icache s390_pci_mmio_read
    s390_pci_mmio_write s390_runtime_instr sysinfo
""")

EVENTS_AND_TIME = _words("""
    adjtimex clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64
    clock_nanosleep clock_nanosleep_time64 epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2
    epoll_wait epoll_wait_old eventfd eventfd2 gettimeofday io_cancel io_destroy io_getevents io_pgetevents
    io_pgetevents_time64 io_setup io_submit _newselect poll ppoll ppoll_time64 pselect6 pselect6_time64 select
    timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64
    timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64
""")

COMMUNICATION = _words("""
    accept accept4 bind connect getpeername getsockname getsockopt ipc listen mq_getsetattr mq_notify mq_open
    mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink msgctl msgget msgrcv msgsnd recv
    recvfrom recvmmsg recvmmsg_time64 recvmsg semctl semget semop semtimedop semtimedop_time64 send sendmmsg sendmsg
    sendto setsockopt shmat shmctl shmdt shmget shutdown socketcall socketpair
""")

# Known calls that reach for the host: modules, mounts, other namespaces, keys, tracing, clocks, swap, quotas, …
REFUSED = _words("""
    acct add_key bdflush bpf clock_settime clock_settime64 create_module delete_module fanotify_init finit_module
    fsconfig fsmount fsopen fspick get_kernel_syms get_mempolicy init_module io_uring_enter io_uring_register
    io_uring_setup ioperm iopl kcmp kexec_file_load kexec_load keyctl lookup_dcookie mbind migrate_pages mount
    mount_setattr move_mount move_pages nfsservctl open_by_handle_at open_tree perf_event_open pivot_root query_module
    quotactl quotactl_fd reboot request_key set_mempolicy set_mempolicy_home_node setdomainname sethostname setns
    settimeofday stime swapoff swapon _sysctl sysfs syslog umount umount2 unshare uselib userfaultfd ustat vhangup vm86
    vm86old
""")

ALLOWED = sorted({*FILES, *PROCESSES, *EVENTS_AND_TIME, *COMMUNICATION})

# Execution domains of personality(2) that change nothing but the answer of uname and the layout of memory.
PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)

# Sockets of these families reach the kernel's crypto (38) and the hypervisor (40) past every other wall.
AF_ALG, AF_VSOCK = 38, 40


def profile(machine: str) -> Seccomp:
    """The profile for hosts whose ``uname -m`` is *machine*.

    :raise Unsupported: when we have none for it.
    """
    if machine not in ARCHITECTURES:
        raise Unsupported(
            f"there is no seccomp profile for {machine} hosts", hint=f"known: {', '.join(sorted(ARCHITECTURES))}"
        )
    flags_index = 1 if machine == "s390x" else 0
    rules = [
        SyscallRule(names=ALLOWED, action="SCMP_ACT_ALLOW"),
        SyscallRule(
            names=["clone"],
            action="SCMP_ACT_ALLOW",
            args=[SyscallArgument(index=flags_index, value=CLONE_NAMESPACES, op="SCMP_CMP_MASKED_EQ", value_two=0)],
        ),
        # Its flags lie in memory, where a filter cannot look: a C library that hears ENOSYS uses clone.
        SyscallRule(names=["clone3"], action="SCMP_ACT_ERRNO", errno_ret=ENOSYS),
        *(
            SyscallRule(
                names=["personality"],
                action="SCMP_ACT_ALLOW",
                args=[SyscallArgument(index=0, value=value, op="SCMP_CMP_EQ")],
            )
            for value in PERSONALITIES
        ),
        *(
            SyscallRule(
                names=["socket"],
                action="SCMP_ACT_ALLOW",
                args=[SyscallArgument(index=0, value=value, op=f"SCMP_CMP_{op}")],
            )
            for op, value in (("LT", AF_ALG), ("EQ", AF_ALG + 1), ("GT", AF_VSOCK))
        ),
        SyscallRule(names=REFUSED, action="SCMP_ACT_ERRNO", errno_ret=EPERM),
    ]
    return Seccomp(
        default_action="SCMP_ACT_ERRNO",
        default_errno_ret=ENOSYS,
        architectures=ARCHITECTURES[machine],
        syscalls=rules,
    )
