"""A guest in one sector: it boots in a second even where everything is emulated, and tells what happens to it.

On its first serial port it prints B when it boots, then a dot about nine times a second, E instead when its disk fails,
every character typed at it, D when it gives a device back that the host wants, and O when it switches itself off, which
it does when its power button is pressed. With each dot it writes LBA 1 of its disk: "TINY", how often it has booted
(counted on the disk) and the dots of this boot, as little-endian numbers of 32 bits.

It needs machine type pc (the ports are PIIX4's) and a disk that SeaBIOS boots from. Its source, for
`as --32` and `ld -m elf_i386 -Ttext 0x7c00 --oformat binary`:

    .code16
    .set boots, 0x8004
    .set ticks, 0x8008
_start: cli
        xorw %ax, %ax
        movw %ax, %ds
        movw %ax, %es
        movw %ax, %ss
        movw $0x7c00, %sp
        movb %dl, drive
        sti
        movw $0x602, %dx        # PM1 enable: the power button is worth a status bit
        movw $0x100, %ax
        outw %ax, %dx
        movb $0x42, %ah         # what the last run left on the disk
        call disk
        movl $0x594e4954, 0x8000
        incl boots
        andl $0, ticks
        movb $'B', %al
        call say
tick:   incl ticks
        movb $0x43, %ah
        call disk
        movb $'.', %al
        jnc 1f
        movb $'E', %al
1:      call say
        movl 0x46c, %ebx        # the BIOS counts 18.2 a second here
        addl $2, %ebx
wait:   hlt
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
say:    movw $0x3f8, %dx
        outb %al, %dx
        ret
disk:   movb drive, %dl
        movw $packet, %si
        movb $0, %al
        int $0x13
        ret
        .balign 4
packet: .byte 16, 0
        .word 1, 0x8000, 0      # one sector, to and from 0:8000
        .quad 1                 # LBA 1
drive:  .byte 0
"""

from __future__ import annotations

import struct
from pathlib import Path

_CODE = bytes.fromhex(
    "fa31c08ed88ec08ed0bc007c8816b87cfbba0206b80001efb442e87f0066c706008054494e5966ff0604806683260880"
    "00b042e8610066ff060880b443e85c00b02e7302b045e84e00668b1e6c046683c302f4bafd03eca8017407baf803ece8"
    "3500ba04ae66ed6685c0740aba08ae66efb044e82100ba0006edf6c401750966391e6c0472ccebaeb04fe80a00ba0406"
    "b80020eff4ebfdbaf803eec38a16b87cbea87cb000cd13c31000010000800000010000000000000000"
)
SECTOR = _CODE.ljust(510, b"\0") + b"\x55\xaa"


def install(disk: Path, size: int = 1024 * 1024) -> None:
    """Make *disk* a raw image of *size* bytes that boots this guest."""
    with disk.open("wb") as image:
        image.write(SECTOR)
        image.truncate(size)


def progress(disk: Path) -> tuple[int, int] | None:
    """How often the guest on *disk* has booted and its dots since then; None before the first."""
    with disk.open("rb") as image:
        image.seek(512)
        magic, boots, ticks = struct.unpack("<4sII", image.read(12))
    return (boots, ticks) if magic == b"TINY" else None
