"""A guest in one sector: it boots in a second even where everything is emulated, and tells what happens to it.

On its first serial port it prints B when it boots, then a dot about nine times a second, E instead when its disk fails,
every character typed at it, D when it gives a device back that the host wants, and O when it switches itself off, which
it does when its power button is pressed.

A greedy one changes 384 KiB of its memory over and over while it waits for the next dot, so its processor is busy.

Before each dot it writes two things, and goes on when the disk says that they are written. First a record of 4 KiB into
a ring of 64, from LBA 64 on: its number (which goes on from boot to boot) as often as fits, so that what is lost, torn
or in a wrong place shows. Then LBA 1: "TINY", how often it has booted (counted on the disk), the dots of this boot, and
the number of the last record; all little-endian, of 32 bits. `written` looks at both.

It needs machine type pc (the ports are PIIX4's) and a disk of 1 MiB or more that SeaBIOS boots from. Its source, for
`as --32`, `objcopy -R .note.gnu.property` and `ld -m elf_i386 -Ttext 0x7c00 --oformat binary`:

    .code16
    .set head, 0x8000
    .set boots, 0x8004
    .set ticks, 0x8008
    .set serial, 0x800c
    .set stain, 0x8010
    .set record, 0x9000
_start: cli
        xorw %ax, %ax
        movw %ax, %ds
        movw %ax, %es
        movw %ax, %ss
        movw $0x7c00, %sp
        movb %dl, drive
        sti
        cld
        movw $0x602, %dx        # PM1 enable: the power button is worth a status bit
        movw $0x100, %ax
        outw %ax, %dx
        movb $0x42, %ah         # what the last run left on the disk
        movw $first, %si
        call disk
        movl $0x594e4954, head
        incl boots
        andl $0, ticks
        movb $'B', %al
        call say
tick:   incl ticks
        incl serial
        movw $record, %di
        movl serial, %eax
        stosl
        movl boots, %eax
        stosl
        imull $0x01000193, %eax
        addl serial, %eax
        movw $1022, %cx
1:      stosl
        incl %eax
        loop 1b
        movl serial, %eax
        andl $63, %eax
        shll $3, %eax
        addl $64, %eax
        movl %eax, where
        movb $0x43, %ah
        movw $second, %si
        call disk
        jnc 2f
        decl serial             # not written: the same once more
        jmp 3f
2:      movb $0x43, %ah
        movw $first, %si
        call disk
        movb $'.', %al
        jnc 4f
3:      movb $'E', %al
4:      call say
        movl 0x46c, %ebx        # the BIOS counts 18.2 a second here
        addl $2, %ebx
wait:   cmpb $0, greedy
        jne dirty
        hlt
back:
        movw $0x3fd, %dx        # has anybody typed?
        inb %dx, %al
        testb $1, %al
        jz 2f
        movw $0x3f8, %dx
        inb %dx, %al
        call say
2:      movw $0xae04, %dx       # does the host want a device back (slots as bits)?
        inl %dx, %eax
        testl %eax, %eax
        jz 3f
        movw $0xae08, %dx       # have it
        outl %eax, %dx
        movb $'D', %al
        call say
3:      movw $0x600, %dx        # has the power button been pressed?
        inw %dx, %ax
        testb $1, %ah
        jnz off
        cmpl %ebx, 0x46c
        jb wait
        jmp tick
off:    movb $'O', %al
        call say
        movw $0x604, %dx        # PM1 control: sleep state S5
        movw $0x2000, %ax
        outw %ax, %dx
4:      hlt
        jmp 4b
dirty:  movw $0x2000, %dx       # every page between 128 and 512 KiB is another now
1:      movw %dx, %es
        xorw %di, %di
        movw $0x4000, %cx
        incl stain
        movl stain, %eax
        rep stosl
        addw $0x1000, %dx
        cmpw $0x8000, %dx
        jb 1b
        xorw %ax, %ax
        movw %ax, %es
        jmp back
say:    movw $0x3f8, %dx
        outb %al, %dx
        ret
disk:   movb drive, %dl
        movb $0, %al
        int $0x13
        ret
        .balign 4
first:  .byte 16, 0
        .word 1, head, 0        # one sector, to and from 0:8000
        .quad 1                 # LBA 1
second: .byte 16, 0
        .word 8, record, 0
where:  .quad 0
drive:  .byte 0
greedy: .byte 0
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

_CODE = bytes.fromhex(
    "fa31c08ed88ec08ed0bc007c8816487dfbfcba0206b80001efb442be287de8fe0066c706008054494e5966ff060480"
    "668326088000b042e8e00066ff06088066ff060c80bf009066a10c8066ab66a1048066ab6669c0930100016603060c"
    "80b9fe0366ab6640e2fa66a10c806683e03f66c1e0036683c04066a3407db443be387de89b00730766ff0e0c80eb0c"
    "b443be287de88a00b02e7302b045e87c00668b1e6c046683c302803e497d007546f4bafd03eca8017407baf803ece8"
    "5c00ba04ae66ed6685c0740aba08ae66efb044e84800ba0006edf6c401750a66391e6c0472c5e955ffb04fe83000ba"
    "0406b80020eff4ebfdba00208ec231ffb9004066ff06108066a1108066f3ab81c2001081fa008072e331c08ec0eb95"
    "baf803eec38a16487db000cd13c3100001000080000001000000000000001000080000900000000000000000000000"
    "00"
)
SECTOR = _CODE.ljust(510, b"\0") + b"\x55\xaa"
GREEDY = (_CODE[:-1] + b"\1").ljust(510, b"\0") + b"\x55\xaa"  # the last byte says it
RECORDS = 64
RECORD_SIZE = 4096
_FIRST_RECORD = 64 * 512
LENGTH = _FIRST_RECORD + RECORDS * RECORD_SIZE
"""So many bytes from the beginning of its disk are all that it reads and writes."""


def install(disk: Path, size: int = 1024 * 1024, *, greedy: bool = False) -> None:
    """Make *disk* a raw image of *size* bytes that boots this guest."""
    with disk.open("wb") as image:
        image.write(GREEDY if greedy else SECTOR)
        image.truncate(size)


def progress(disk: Path) -> tuple[int, int] | None:
    """How often the guest on *disk* has booted and its dots since then; None before the first."""
    with disk.open("rb") as image:
        image.seek(512)
        magic, boots, ticks = struct.unpack("<4sII", image.read(12))
    return (boots, ticks) if magic == b"TINY" else None


@dataclass(frozen=True, kw_only=True)
class Written:
    """What the guest's disk says: *serial* is the last record that was reported to be written, over all boots."""

    boots: int
    ticks: int
    serial: int
    ahead: int
    """So many records are there beyond *serial*: of a guest that does not run never more than one."""
    lost: tuple[int, ...]
    """Records that should be there, and are not."""
    torn: tuple[int, ...]
    """Records of which only a part is there, by the number at their beginning."""
    restarts: tuple[int, ...]
    """Records that were the first of a boot, among those that are there."""

    @property
    def whole(self) -> bool:
        """Whether all is there that the guest was told is written. True of a running guest too."""
        return not self.lost and not self.torn

    def after(self, before: Written) -> bool:
        """Whether this is the same disk later: nothing that was there *before* has been taken back."""
        return self.whole and self.boots >= before.boots and self.serial >= before.serial


def record(serial: int, boots: int) -> bytes:
    """The record with this number."""
    base = boots * 0x01000193 + serial
    words = [serial, boots, *((base + index) & 0xFFFFFFFF for index in range(RECORD_SIZE // 4 - 2))]
    return struct.pack(f"<{len(words)}I", *words)


def written(data: bytes) -> Written | None:
    """What is in the first LENGTH bytes of the guest's disk; None if it never wrote anything."""
    magic, boots, ticks, serial = struct.unpack_from("<4sIII", data, 512)
    if magic != b"TINY":
        return None
    lost, torn = [], []
    there: dict[int, int] = {}
    for expected in range(max(1, serial - RECORDS + 1), serial + 1):
        at = _FIRST_RECORD + expected % RECORDS * RECORD_SIZE
        found = data[at : at + RECORD_SIZE]
        number, of_boot = struct.unpack_from("<II", found)
        if any(found) and found != record(number, of_boot):
            torn.append(number)
        elif number < expected or (number - expected) % RECORDS:  # also where nothing was ever written
            lost.append(expected)
        else:
            there[number] = of_boot
    if serial < RECORDS:  # else it is in the place of an older one
        at = _FIRST_RECORD + (serial + 1) % RECORDS * RECORD_SIZE
        number, of_boot = struct.unpack_from("<II", data, at)
        if number == serial + 1 and data[at : at + RECORD_SIZE] == record(number, of_boot):
            there[number] = of_boot
    numbers = sorted(there)
    return Written(
        boots=boots,
        ticks=ticks,
        serial=serial,
        ahead=max([0, *(number - serial for number in numbers)]),
        lost=tuple(lost),
        torn=tuple(torn),
        restarts=tuple(
            number for number in numbers if number == 1 or there.get(number - 1, there[number]) != there[number]
        ),
    )
