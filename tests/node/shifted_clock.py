"""A clock that is wrong, and can be set, for one daemon: its C library's answers are shifted by as much as a file says.

Time namespaces leave the clock that people read alone, so the calls themselves are caught, before Python, OpenSSL or
SQLite see them. The file is read by each call: the clock may be set while the daemon runs.
"""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

_SOURCE = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile long *shift;

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("SHIFTED_CLOCK");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    void *found = file < 0 ? MAP_FAILED : mmap(0, sizeof(long), PROT_READ, MAP_SHARED, file, 0);
    if (file >= 0) close(file);
    shift = found == MAP_FAILED ? 0 : found;
}

int clock_gettime(clockid_t which, struct timespec *now) {
    int result = syscall(SYS_clock_gettime, which, now);
    if (!result && shift && (which == CLOCK_REALTIME || which == CLOCK_REALTIME_COARSE)) now->tv_sec += *shift;
    return result;
}

time_t time(time_t *where) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (where) *where = now.tv_sec;
    return now.tv_sec;
}

int gettimeofday(struct timeval *now, void *zone) {
    struct timespec exact;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &exact);
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return 0;
}
"""


class ShiftedClock:
    """Made in *directory*, right at first. Start the daemon with `env`."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(exist_ok=True)
        source, self._library, self._file = (directory / name for name in ("clock.c", "clock.so", "shift"))
        source.write_text(_SOURCE)
        command = ["gcc", "-O2", "-shared", "-fPIC", "-o", str(self._library), str(source)]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        self._file.write_bytes(struct.pack("@l", 0))

    @property
    def env(self) -> dict[str, str]:
        """The environment of a process that is to have this clock."""
        return {"LD_PRELOAD": str(self._library), "SHIFTED_CLOCK": str(self._file)}

    def ahead(self, seconds: int) -> None:
        """From now on the clock is so many seconds ahead; behind, if negative."""
        with self._file.open("r+b", buffering=0) as file:
            file.write(struct.pack("@l", seconds))
