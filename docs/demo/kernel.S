/* A unikernel of a few lines: entered by PVH in 32-bit protected mode, it says what it is on the serial line and ends with code 0.
 *   gcc -c kernel.S -o kernel.o && ld -nostdlib -Ttext=0x100000 -e start kernel.o -o kernel.elf
 */
.section .note.pvh, "a", @note
.align 4
.long 4, 4, 18              /* XEN_ELFNOTE_PHYS32_ENTRY: where to begin */
.asciz "Xen"
.long start

.section .text
.code32
.globl start
start:
    mov $greeting, %esi
1:  lodsb
    test %al, %al
    jz 3f
    mov %al, %ah
    mov $0x3fd, %dx         /* wait until the line takes another character */
2:  in %dx, %al
    test $0x20, %al
    jz 2b
    mov %ah, %al
    mov $0x3f8, %dx
    out %al, %dx
    jmp 1b
3:  xor %eax, %eax          /* the exit code */
    mov $0xf4, %dx
    out %eax, %dx
4:  hlt
    jmp 4b
greeting:
    .asciz "I am a kernel, and nothing else.\n"
.section .note.GNU-stack, "", @progbits
