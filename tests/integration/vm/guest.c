/*
 * A guest that is no operating system: it does what a line on its serial port says, and tells of its power button.
 *
 *   echo WORDS   said back
 *   off          power off by ACPI    later        the same, in the second after the next
 *   fill         "MARK" in memory at 32 MiB, for whoever looks at a dump
 *   deaf         the power button is heard and nothing done
 *   panic        as a kernel that panicked (pvpanic)
 *   watchdog     begin to feed the i6300ESB, and stop
 *   clock        the TPM's count of its resets, which it keeps (TPM2_ReadClock)
 *   pci          every PCI device: slot, vendor and device number
 *
 * Facts: 16550 (serial); ACPI 6.4 section 4.8 (PM1), Intel ICH9 datasheet (PMBASE); QEMU docs/specs/pvpanic.txt;
 * Intel 6300ESB datasheet, section 16 (watchdog); TCG PC Client Platform TPM Profile 1.05, section 6.5 (CRB); TPM 2.0 Part 3, 29.1.
 */
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;

static inline void outb(u16 port, u8 value) { asm volatile("outb %0, %1" : : "a"(value), "Nd"(port)); }
static inline void outw(u16 port, u16 value) { asm volatile("outw %0, %1" : : "a"(value), "Nd"(port)); }
static inline void outl(u16 port, u32 value) { asm volatile("outl %0, %1" : : "a"(value), "Nd"(port)); }
static inline u8 inb(u16 port) { u8 value; asm volatile("inb %1, %0" : "=a"(value) : "Nd"(port)); return value; }
static inline u16 inw(u16 port) { u16 value; asm volatile("inw %1, %0" : "=a"(value) : "Nd"(port)); return value; }
static inline u32 inl(u16 port) { u32 value; asm volatile("inl %1, %0" : "=a"(value) : "Nd"(port)); return value; }

enum { COM1 = 0x3f8, PANIC = 0x505, PCI_ADDRESS = 0xcf8, PCI_DATA = 0xcfc };
enum { PM1_BUTTON = 0x100, PM1_SOFT_OFF = 0x2000 };

static u16 power; /* PMBASE */

static void put(char c) {
    while (!(inb(COM1 + 5) & 0x20));
    outb(COM1, c);
}

static void say(const char *text) {
    for (; *text; text++) put(*text);
}

static void say_number(u32 value, int digits) {
    for (int shift = 4 * (digits - 1); shift >= 0; shift -= 4) put("0123456789abcdef"[value >> shift & 15]);
}

static int is(const char *line, const char *word) {
    while (*word) if (*line++ != *word++) return 0;
    return *line == 0 || *line == ' ';
}

static u32 pci_read(u32 device, u32 offset) {
    outl(PCI_ADDRESS, 0x80000000 | device << 8 | offset);
    return inl(PCI_DATA);
}

static void pci_write(u32 device, u32 offset, u32 value) {
    outl(PCI_ADDRESS, 0x80000000 | device << 8 | offset);
    outl(PCI_DATA, value);
}

static void list_pci(void) {
    for (u32 device = 0; device < 256; device++) {
        u32 numbers = pci_read(device, 0);
        if ((numbers & 0xffff) == 0xffff) continue;
        say_number(device >> 3, 2), put('.'), say_number(device & 7, 1), put(' ');
        say_number(numbers & 0xffff, 4), put(':'), say_number(numbers >> 16, 4), say("\n");
    }
    say("end\n");
}

static void start_watchdog(void) {
    for (u32 device = 0; device < 256; device++) {
        if (pci_read(device, 0) != 0x25ab8086) continue;
        volatile u8 *base = (volatile u8 *)(pci_read(device, 0x10) & ~15u);
        pci_write(device, 4, pci_read(device, 4) | 2);
        /* Unlock, then both stages of half a second (units of 1 ms), then begin: register 0x68 is a byte. */
        *(volatile u16 *)(base + 0xc) = 0x80, *(volatile u16 *)(base + 0xc) = 0x86;
        *(volatile u32 *)(base + 0) = 0x200;
        *(volatile u16 *)(base + 0xc) = 0x80, *(volatile u16 *)(base + 0xc) = 0x86;
        *(volatile u32 *)(base + 4) = 0x200;
        outl(PCI_ADDRESS, 0x80000000 | device << 8 | 0x68);
        outb(PCI_DATA, 2);
        say("fed once\n");
        return;
    }
    say("none\n");
}

static u32 tpm(const u8 *request, u32 size, u8 *answer, u32 room) {
    volatile u8 *base = (volatile u8 *)0xfed40000;
    volatile u32 *start = (volatile u32 *)(base + 0x4c);
    if (*(volatile u32 *)(base + 0x30) == 0xffffffff) return 0;
    *(volatile u32 *)(base + 0x08) = 1; /* locality 0, please */
    *(volatile u32 *)(base + 0x40) = 1; /* ready for a command */
    while (*(volatile u32 *)(base + 0x40) & 1);
    for (u32 i = 0; i < size; i++) base[0x80 + i] = request[i];
    *start = 1;
    for (u32 i = 0; *start & 1; i++) if (i > 100000000) return 0;
    for (u32 i = 0; i < room; i++) answer[i] = base[0x80 + i];
    return room;
}

static void read_clock(void) {
    static const u8 request[] = {0x80, 0x01, 0, 0, 0, 10, 0, 0, 1, 0x81};
    u8 answer[40];
    if (!tpm(request, sizeof request, answer, sizeof answer)) { say("none\n"); return; }
    u32 code = answer[6] << 24 | answer[7] << 16 | answer[8] << 8 | answer[9];
    /* header 10, time 8, clock 8, resets 4, restarts 4, safe 1 */
    u32 resets = answer[26] << 24 | answer[27] << 16 | answer[28] << 8 | answer[29];
    say("code "), say_number(code, 8), say(" resets "), say_number(resets, 8), say("\n");
}

static u8 second(void) { outb(0x70, 0); return inb(0x71); }

static u16 pm1(void) { return inw(power); }

void main(void) {
    static char line[256];
    u32 length = 0;
    int deaf = 0;
    outb(COM1 + 1, 0), outb(COM1 + 3, 0x80), outb(COM1, 1), outb(COM1 + 1, 0), outb(COM1 + 3, 3), outb(COM1 + 2, 7);
    power = pci_read(0x1f << 3, 0x40) & 0xff80;
    outw(power + 2, PM1_BUTTON);
    volatile u16 *screen = (volatile u16 *)0xb8000;
    for (int i = 0; i < 80 * 25; i++) screen[i] = 0x1f00 | "the small guest "[i & 15];
    say("ready\n");
    for (;;) {
        if (pm1() & PM1_BUTTON) {
            outw(power, PM1_BUTTON);
            say("button\n");
            if (!deaf) outw(power + 4, PM1_SOFT_OFF);
        }
        if (!(inb(COM1 + 5) & 1)) continue;
        char c = inb(COM1);
        if (c != '\n' && c != '\r') {
            if (length < sizeof line - 1) line[length++] = c;
            continue;
        }
        line[length] = 0, length = 0;
        if (is(line, "echo")) say(line[4] ? line + 5 : ""), say("\n");
        else if (is(line, "off")) outw(power + 4, PM1_SOFT_OFF);
        else if (is(line, "later")) {
            say("later\n");
            for (int ticks = 0, now = second(); ticks < 2; ticks++, now = second()) while (second() == now);
            outw(power + 4, PM1_SOFT_OFF);
        } else if (is(line, "deaf")) deaf = 1, say("deaf\n");
        else if (is(line, "panic")) say("panic\n"), outb(PANIC, 1);
        else if (is(line, "watchdog")) start_watchdog();
        else if (is(line, "clock")) read_clock();
        else if (is(line, "pci")) list_pci();
        else if (is(line, "fill")) {
            volatile u32 *place = (volatile u32 *)(32 << 20);
            for (int i = 0; i < 1024; i++) place[i] = 0x4b52414d;
            say("filled\n");
        } else say("what\n");
    }
}
