"""Types that several threads decode for the first time at once, in a process of their own: it may die of it."""

from __future__ import annotations

import subprocess
import sys

FIRST_TIME = """\
import sys, threading, types
import msgspec
from mcvirt.rpc import codec

sys.setswitchinterval(1e-6)
DEPTH = 6
source = "from __future__ import annotations\\nimport msgspec\\n"
for number in range(DEPTH):
    source += f"class Level{number}(msgspec.Struct, kw_only=True):\\n"
    source += "".join(f"    field{field}: int = 0\\n" for field in range(10))
    source += f"    inner: Level{number - 1} | None = None\\n" if number else ""
value = {}
for _ in range(DEPTH - 1):
    value = {"inner": value}

for round in range(60):
    module = sys.modules[f"round{round}"] = types.ModuleType(f"round{round}")
    exec(source, module.__dict__)
    outermost = getattr(module, f"Level{DEPTH - 1}")
    codec.prepare()
    at_once = threading.Barrier(6)

    def decode():
        at_once.wait()
        msgspec.convert(value, outermost)

    threads = [threading.Thread(target=decode) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    del sys.modules[module.__name__]
"""


def test_threads_may_decode_a_type_for_the_first_time_at_once() -> None:
    done = subprocess.run([sys.executable, "-c", FIRST_TIME], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
