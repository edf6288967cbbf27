# lamella-probe: the smallest guest that proves an accelerator. It enters 64-bit mode with paging on, as every kernel
# does, and then says so by one write to the isa-debug-exit device at port 0xf4: QEMU ends with (0x15 << 1) | 1 = 43.
# The note makes it bootable by QEMU's -kernel (PVH: 32-bit protected mode, paging off).
.section .note.pvh, "a", @note
.align 4
.long 4, 4, 18                      # lengths of name and value; XEN_ELFNOTE_PHYS32_ENTRY
.asciz "Xen"
.long start

.text
.code32
.globl start
start:
    cli
    movl $directory + 3, table      # present, writable
    movl $0x83, directory           # the first GiB in one page
    mov %cr4, %eax
    or $0x20, %eax                  # physical address extension
    mov %eax, %cr4
    mov $table, %eax
    mov %eax, %cr3
    mov $0xc0000080, %ecx           # EFER
    rdmsr
    or $0x100, %eax                 # long mode enable
    wrmsr
    mov %cr0, %eax
    or $0x80000001, %eax            # paging, protection
    mov %eax, %cr0
    lgdt descriptors
    ljmp $8, $long_mode

.code64
long_mode:
    mov $0xf4, %dx
    mov $0x15, %al
    out %al, %dx
rest:
    hlt
    jmp rest

.data
.align 8
segments: .quad 0, 0x00af9a000000ffff
descriptors: .word 15
    .long segments

.bss
.align 4096
table: .skip 4096
directory: .skip 4096
