# The boot sector of the small guest: loads the rest of itself from the disk that it came from, enters 32-bit mode and calls main.
# Facts: BIOS Enhanced Disk Drive Services (INT 13h, AH=42h); Intel SDM volume 3, section 9.9 (switching to protected mode).
.section .boot, "ax"
.code16
.global boot
boot:
    ljmp $0, $1f
1:  xor %ax, %ax
    mov %ax, %ds
    mov %ax, %es
    mov %ax, %ss
    mov $0x7c00, %sp
    mov $packet, %si
    mov $0x42, %ah
    int $0x13
    jc fail
    mov $0x2401, %ax            # the 21st address line, for firmware that leaves it off
    int $0x15
    cli
    lgdt table
    mov %cr0, %eax
    or $1, %al
    mov %eax, %cr0
    ljmpl $8, $flat
fail:
    hlt
    jmp fail

.code32
flat:
    mov $16, %ax
    mov %ax, %ds
    mov %ax, %es
    mov %ax, %ss
    mov $0x70000, %esp
    call main
1:  hlt
    jmp 1b

.balign 4
packet:                         # 15.5 KiB from the second sector on, right behind this one
    .byte 16, 0
    .word 31
    .word 0x7e00, 0
    .quad 1
gdt:
    .quad 0, 0x00cf9a000000ffff, 0x00cf92000000ffff
table:
    .word . - gdt - 1
    .long gdt

.org 510
.word 0xaa55
