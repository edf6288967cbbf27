"""Kernels made in the test, from a few lines of assembly and C: each is nothing but its application."""

import subprocess
from pathlib import Path

# Entered as PVH: 32-bit protected mode, ebx points to hvm_start_info. The first four GiB are mapped with pages of one GiB.
ENTRY_PVH = """
.section .note.pvh, "a", @note
.align 4
.long 4, 4, 18
.asciz "Xen"
.long start
.section .text
.code32
.globl start
start:
    cli
    mov $stack_top, %esp
    mov $pml4, %edi
    mov $pdpt + 3, %eax
    mov %eax, (%edi)
    mov $pdpt, %edi
    movl $0x83, (%edi)
    movl $0x40000083, 8(%edi)
    movl $0x80000083, 16(%edi)
    movl $0xC0000083, 24(%edi)
    mov %cr4, %eax
    or $0x20, %eax
    mov %eax, %cr4
    mov $pml4, %eax
    mov %eax, %cr3
    mov $0xC0000080, %ecx
    rdmsr
    or $0x100, %eax
    wrmsr
    mov %cr0, %eax
    or $0x80000001, %eax
    mov %eax, %cr0
    lgdt gdtr
    ljmp $8, $start64
.code64
start64:
    mov $16, %ax
    mov %ax, %ds
    mov %ax, %ss
    mov $stack_top, %rsp
    mov %ebx, %edi
    call entered
1:  hlt
    jmp 1b
.section .data
.align 8
gdt: .quad 0, 0x00af9a000000ffff, 0x00cf92000000ffff
gdtr: .word 23
    .long gdt
.section .bss
.align 4096
pml4: .skip 4096
pdpt: .skip 4096
.skip 16384
stack_top:
.section .note.GNU-stack, "", @progbits
"""

# Entered by the Multiboot Specification 1: eax holds the magic, ebx points to the information. FLAGS and ADDRESSES make it raw.
ENTRY_MULTIBOOT = """
.section .note.pvh, "a", @note
.section .text
.align 4
header:
.long 0x1BADB002, FLAGS, -(0x1BADB002 + FLAGS)
.if FLAGS & 0x10000
.long header, load_start, load_end, bss_end, start
.endif
.code32
.globl start
start:
    cli
    mov $stack_top, %esp
    push %ebx
    push %eax
    call entered
1:  hlt
    jmp 1b
.section .bss
.align 16
.skip 16384
stack_top:
.section .note.GNU-stack, "", @progbits
"""

MACHINE_H = """
typedef unsigned char u8; typedef unsigned short u16; typedef unsigned int u32; typedef unsigned long word;
static inline void outb(u16 port, u8 value) { __asm__ volatile("outb %0, %1" :: "a"(value), "Nd"(port)); }
static inline void outw(u16 port, u16 value) { __asm__ volatile("outw %0, %1" :: "a"(value), "Nd"(port)); }
static inline void outl(u16 port, u32 value) { __asm__ volatile("outl %0, %1" :: "a"(value), "Nd"(port)); }
static inline u8 inb(u16 port) { u8 value; __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port)); return value; }
static inline u32 inl(u16 port) { u32 value; __asm__ volatile("inl %1, %0" : "=a"(value) : "Nd"(port)); return value; }
static void put(char c) { while (!(inb(0x3fd) & 0x20)); outb(0x3f8, c); }
static void say(const char *s) { while (*s) put(*s++); }
static void say_number(word n) { char b[24]; int i = 23; b[i] = 0; do { b[--i] = '0' + n % 10; n /= 10; } while (n); say(b + i); }
static void say_hex(word n) { for (int i = 28; i >= 0; i -= 4) put("0123456789abcdef"[(n >> i) & 15]); }
static char get(void) { while (!(inb(0x3fd) & 1)); return inb(0x3f8); }
static int has(const char *line, const char *what, word *value) {
    for (; *line; line++) {
        const char *a = line, *b = what;
        while (*b && *a == *b) a++, b++;
        if (!*b) { word n = 0; while (*a >= '0' && *a <= '9') n = n * 10 + *a++ - '0'; if (value) *value = n; return 1; }
    }
    return 0;
}
"""

# What every one of them does, as its command line says.
APPLICATION = """
static void application(const char *line, const u8 *initrd, word initrd_size) {
    word n;
    say("line="); say(line); say("\\n");
    if (initrd) {
        say("initrd="); say_number(initrd_size); put(' ');
        for (word i = 0; i < initrd_size && i < 16; i++) put(initrd[i]);
        put('\\n');
    }
    if (has(line, "count=", &n)) { volatile word sum = 0; for (word i = 0; i < n; i++) sum += i ^ (sum >> 3); say("counted\\n"); }
    if (has(line, "flood=", &n))
        for (word i = 0; i < n; i++) { say("flood "); say_number(i); say(" ........................................\\n"); }
    if (has(line, "mmio", 0))  /* the transports of the microvm board: magic, version, device id */
        for (u32 *at = (u32 *)0xfeb00000; at < (u32 *)0xfeb03000; at += 128)
            if (at[0] == 0x74726976 && at[2]) {
                say("virtio "); say_number(at[1]); put(' '); say_number(at[2]); put('\\n');
            }
    if (has(line, "pci", 0))
        for (u32 d = 0; d < 32; d++) {
            outl(0xcf8, 0x80000000 | d << 11);
            u32 id = inl(0xcfc);
            if (id != 0xffffffff) { say("pci "); say_hex(id); put('\\n'); }
        }
    if (has(line, "echo", 0)) for (;;) { char c = get(); if (c == 'q') break; say("<"); put(c); say(">\\n"); }
    if (has(line, "exit501=", &n)) outb(0x501, n);
    if (has(line, "exit=", &n)) outb(0xf4, n);
    if (has(line, "ged-off", 0)) *(volatile u8 *)0xfea00200 = 0x34;  /* ACPI sleep control register of the microvm board */
    if (has(line, "pc-off", 0)) outw(0x604, 0x2000);                 /* PM1a control of q35 */
    if (has(line, "panic", 0)) outb(0x505, 1);
    if (has(line, "reset", 0)) *(volatile u8 *)0xfea00202 = 0x42;    /* ACPI reset register of the microvm board */
    if (has(line, "triple", 0)) {
        struct { u16 size; word at; } __attribute__((packed)) none = {0, 0};
        __asm__ volatile("lidt %0; int $3" :: "m"(none));
    }
    if (has(line, "listen", 0)) {  /* the event selector of the board's generic event device; bit 1 is the power button */
        say("listening\\n");
        while (!(*(volatile u32 *)0xfea00000 & 2));
        say("button\\n");
        *(volatile u8 *)0xfea00200 = 0x34;
    }
    if (has(line, "tick", 0)) for (n = 0;; n++) { say("tick "); say_number(n); put('\\n'); for (volatile word i = 0; i < 3000000; i++); }
    say("spinning\\n");
    for (;;);
}
"""

ENTERED_PVH = """
struct start { u32 magic, version, flags, modules; word list, line, rsdp; };
struct module { word address, size, line, reserved; };
void entered(struct start *info) {
    if (info->magic != 0x336ec578) { say("not PVH\\n"); return; }
    say("pvh ");
    struct module *first = info->modules ? (struct module *)info->list : 0;
    application((const char *)info->line, first ? (const u8 *)first->address : 0, first ? first->size : 0);
}
"""

ENTERED_MULTIBOOT = """
void entered(u32 magic, u32 *info) {
    if (magic != 0x2BADB002) { say("not multiboot\\n"); return; }
    say("multiboot ");
    u32 *first = info[5] ? (u32 *)info[6] : 0;
    application((const char *)info[4], first ? (const u8 *)first[0] : 0, first ? first[1] - first[0] : 0);
}
"""

LAYOUT = """
ENTRY(start)
PHDRS { text PT_LOAD FLAGS(7); note PT_NOTE; }
SECTIONS {
  . = 0x100000; load_start = .;
  .text : { *(.text*) *(.rodata*) } :text
  .note : { *(.note.pvh) } :text :note
  .data : { *(.data*) } :text
  load_end = .;
  .bss : { *(.bss*) *(COMMON) } :text
  bss_end = .;
  /DISCARD/ : { *(.comment) *(.eh_frame) *(.note.gnu*) *(.note.GNU-stack) }
}
"""

_FREESTANDING = ["-O2", "-ffreestanding", "-fno-pic", "-fno-stack-protector", "-mno-sse", "-mno-red-zone"]


def build_pvh(folder: Path) -> Path:
    """A 64-bit ELF kernel with a PVH note."""
    return _build(folder, "pvh", ENTRY_PVH, ENTERED_PVH, bits=64, flags="")


def build_multiboot(folder: Path, *, bits: int = 32) -> Path:
    """An ELF kernel with a multiboot 1 header; with *bits* 64 one that QEMU does not load."""
    path = _build(folder, "multiboot", ENTRY_MULTIBOOT, ENTERED_MULTIBOOT, bits=32, flags="-DFLAGS=3")
    if bits == 32:
        return path
    wide = folder / "multiboot64.elf"
    _run("objcopy", "-I", "elf32-i386", "-O", "elf64-x86-64", str(path), str(wide))
    return wide


def build_raw(folder: Path) -> Path:
    """A kernel that is no ELF file: its multiboot header holds the addresses."""
    path = _build(folder, "raw", ENTRY_MULTIBOOT, ENTERED_MULTIBOOT, bits=32, flags="-DFLAGS=0x10003")
    raw = folder / "raw.bin"
    _run("objcopy", "-O", "binary", str(path), str(raw))
    return raw


def _build(folder: Path, name: str, entry: str, entered: str, *, bits: int, flags: str) -> Path:
    if flags:
        entry = entry.replace("FLAGS", flags.partition("=")[2])
    (folder / f"{name}.S").write_text(entry)
    (folder / f"{name}.c").write_text(MACHINE_H + APPLICATION + entered)
    (folder / "layout.ld").write_text(LAYOUT)
    wide = f"-m{bits}"
    _run("gcc", wide, "-c", str(folder / f"{name}.S"), "-o", str(folder / f"{name}-entry.o"))
    _run("gcc", wide, *_FREESTANDING, "-c", str(folder / f"{name}.c"), "-o", str(folder / f"{name}.o"))
    kernel = folder / f"{name}.elf"
    emulation = "elf_x86_64" if bits == 64 else "elf_i386"
    objects = [str(folder / f"{name}-entry.o"), str(folder / f"{name}.o")]
    _run(
        "ld",
        "-m",
        emulation,
        "-nostdlib",
        "-z",
        "noexecstack",
        "-T",
        str(folder / "layout.ld"),
        "-o",
        str(kernel),
        *objects,
    )
    return kernel


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
