// A guest that means harm: a kernel of its own, without Linux, that does to every device what no driver would.
//
// Built by tests/hostile.rs: 32-bit code, entered by its PVH note, memory as it lies, no paging, no interrupts.
// Each wave is some hundred strokes of one kind against each device; the progress goes to the serial port, and it ends by
// asking for a reset, as Linux would. What it must not do is what it is for: it may crash itself, not its monitor's host.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

__asm__(".section .note.pvh, \"a\", @note\n"
        ".long 4, 8, 18\n.asciz \"Xen\"\n.quad entry\n"
        ".text\n.globl entry\nentry:\n  mov $stack_end, %esp\n  call run\n1: hlt\n  jmp 1b\n"
        ".bss\n.align 16\n.skip 16384\nstack_end:\n.text\n");

#define WINDOW(n) (0xd0000000u + (n) * 0x1000u)
#define RINGS 0x1000000u // 12 MiB: far from the program
#define MEMORY (64u << 20)

static inline void out8(u16 port, u8 value) { __asm__ volatile("outb %0, %1" ::"a"(value), "Nd"(port)); }
static inline void out32(u16 port, u32 value) { __asm__ volatile("outl %0, %1" ::"a"(value), "Nd"(port)); }
static inline u8 in8(u16 port) { u8 v; __asm__ volatile("inb %1, %0" : "=a"(v) : "Nd"(port)); return v; }
static inline u32 in32(u16 port) { u32 v; __asm__ volatile("inl %1, %0" : "=a"(v) : "Nd"(port)); return v; }
static inline u32 get(u32 at) { return *(volatile u32 *)at; }
static inline void set(u32 at, u32 value) { *(volatile u32 *)at = value; }
static inline void set16(u32 at, u16 value) { *(volatile u16 *)at = value; }
static inline void set8(u32 at, u8 value) { *(volatile u8 *)at = value; }

static u32 seed = 2463534242u;
static u32 dice(u32 sides) {
  seed ^= seed << 13, seed ^= seed >> 17, seed ^= seed << 5;
  return sides ? seed % sides : seed;
}

static void say(const char *text) { while (*text) out8(0x3f8, *text++); }

static u32 address(void) {
  switch (dice(6)) {
  case 0: return dice(0);
  case 1: return MEMORY - dice(64);
  case 2: return 0xffffffffu - dice(64);
  case 3: return WINDOW(dice(8));
  default: return RINGS + dice(0x10000);
  }
}

static u32 length(void) { return dice(4) ? dice(9000) : dice(0); }

static u32 ring(u32 queue) { return RINGS + queue * 0x10000; }

// As a driver does it, mostly.
static void set_up(u32 at, int tidy) {
  set(at + 0x70, 0), set(at + 0x70, 3);
  set(at + 0x14, 0);
  u32 features = get(at + 0x10);
  set(at + 0x24, 0), set(at + 0x20, tidy ? features & ~(1u << 29) : features & dice(0));
  set(at + 0x24, 1), set(at + 0x20, 1);
  set(at + 0x70, 11);
  for (u32 queue = 0; queue < 4; queue++) {
    set(at + 0x30, queue);
    u32 most = get(at + 0x34);
    if (!most || most > 1024) continue;
    set(at + 0x38, tidy || dice(8) ? (most < 64 ? most : 64) : dice(70000));
    u32 base = ring(queue);
    for (u32 i = 0; i < 0x3000; i += 4) set(base + i, 0);
    set(at + 0x80, tidy || dice(16) ? base : address()), set(at + 0x84, tidy || dice(64) ? 0 : dice(0));
    set(at + 0x90, base + 0x1000), set(at + 0x94, 0);
    set(at + 0xa0, base + 0x2000), set(at + 0xa4, 0);
    set(at + 0x44, 1);
  }
  set(at + 0x70, 15);
}

static void scribble(u32 queue) {
  u32 base = ring(queue);
  for (u32 i = 0; i < 64; i++) {
    u32 at = base + i * 16;
    set(at, address()), set(at + 4, dice(32) ? 0 : dice(0)), set(at + 8, length());
    set16(at + 12, dice(8)), set16(at + 14, dice(2) ? i : dice(70)); // loops of one, and of many
    set16(base + 0x1004 + i * 2, dice(66));
  }
  for (u32 i = 0; i < 64; i++) set(RINGS + 0xf000 + dice(0x400) * 4, dice(2) ? dice(16) : dice(0));
  set16(base + 0x1002, *(volatile u16 *)(base + 0x1002) + (dice(10) ? dice(64) : dice(0)));
}

static void registers(u32 at) {
  for (u32 i = 0; i < 300; i++) {
    u32 to = at + dice(0x1000);
    switch (dice(6)) {
    case 0: set8(to, dice(0)); break;
    case 1: set16(to & ~1u, dice(0)); break;
    case 2: (void)*(volatile u8 *)to; break;
    case 3: (void)get(to & ~3u); break;
    default: set(at + (dice(0x40) << 2), dice(3) ? dice(16) : dice(0));
    }
  }
}

static void rings(u32 at) {
  for (u32 round = 0; round < 24; round++) {
    if (round % 6 == 0) set_up(at, round % 12 == 0);
    for (u32 queue = 0; queue < 4; queue++) scribble(queue);
    for (u32 queue = 0; queue < 4; queue++) set(at + 0x50, queue);
    // While it works: other sizes, other places, and rings that change under its hands.
    set(at + 0x30, dice(4)), set(at + 0x38, dice(70000)), set(at + 0x80, address()), set(at + 0x44, dice(2));
    for (u32 queue = 0; queue < 4; queue++) scribble(queue);
    set(at + 0x50, dice(6));
  }
}

static void kicks(u32 at) {
  set_up(at, 1);
  for (u32 i = 0; i < 2000; i++) set(at + 0x50, i & 3);
}

// One packet of the guest's sockets in the queue to the host.
static void packet(u32 at, u16 *index, u32 from, u32 to, u16 op, u32 len, u32 data) {
  u32 base = ring(1);
  // Not for long: a queue that claims more than it holds is given up by the device, which is a stroke as well.
  for (u32 spin = 0; spin < 20000 && (u16)(*index - *(volatile u16 *)(base + 0x2002)) >= 30; spin++) {}
  u32 header = RINGS + 0x80000 + (*index % 32) * 64;
  set(header, 3), set(header + 4, 0), set(header + 8, 2), set(header + 12, 0);
  set(header + 16, from), set(header + 20, to), set(header + 24, len);
  set16(header + 28, 1), set16(header + 30, op), set(header + 32, 0), set(header + 36, dice(4) ? 0x40000 : dice(0)), set(header + 40, dice(0));
  u32 first = (*index % 32) * 2;
  set(base + first * 16, header), set(base + first * 16 + 4, 0), set(base + first * 16 + 8, 44);
  set16(base + first * 16 + 12, len ? 1 : 0), set16(base + first * 16 + 14, first + 1);
  set(base + first * 16 + 16, data), set(base + first * 16 + 20, 0), set(base + first * 16 + 24, len);
  set16(base + first * 16 + 28, 0);
  set16(base + 0x1004 + (*index % 64) * 2, first);
  ++*index;
  set16(base + 0x1002, *index);
  set(at + 0x50, 1);
}

static void sockets(u32 at) {
  u16 index = 0;
  set_up(at, 1);
  for (u32 i = 0; i < 0x8000; i += 4) set(RINGS + 0x90000 + i, 0x78787878); // a line without an end
  packet(at, &index, 1000, 2, 1, 0, 0);
  for (u32 i = 0; i < 60; i++) packet(at, &index, 1000, 2, 5, 0x8000, RINGS + 0x90000); // 2 MiB into the log
  for (u32 i = 0; i < 0x8000; i += 16) set(RINGS + 0x90000 + i, 0x0a787878);
  for (u32 i = 0; i < 60; i++) packet(at, &index, 1000, 2, 5, 0x8000, RINGS + 0x90000);
  for (u32 i = 0; i < 400; i++) packet(at, &index, 2000 + i, dice(5), 1, 0, 0); // more connections than there are
  for (u32 i = 0; i < 400; i++) packet(at, &index, dice(4000), dice(5), dice(10), dice(70000), address());
}

static void ports(void) {
  for (u32 i = 0; i < 300; i++) {
    u16 port = dice(0);
    in8(port), in32(port);
    if (port != 0x64 && port != 0xcf9) out8(port, 0x5a), out32(port & 0xff00, dice(0));
  }
  for (u32 i = 0; i < 3000; i++) out8(0x3f8, 'x');
}

void run(void) {
  say("hostile: begins\n");
  for (u32 n = 0; n < 10; n++) {
    u32 at = WINDOW(n);
    if (get(at) != 0x74726976) break;
    registers(at), say("registers ");
    rings(at), say("rings ");
    kicks(at), say("kicks ");
    if (get(at + 8) == 19) sockets(at), say("sockets ");
    set(at + 0x70, 0);
  }
  for (u32 i = 0; i < 300; i++) (void)get(0xc0000000u + dice(0x3ec00000)), set(0xd1000000u + dice(0x100000), dice(0));
  ports();
  say("\nhostile: ends\n");
  out8(0x64, 0xfe);
}
