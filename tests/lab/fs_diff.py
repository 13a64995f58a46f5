"""What has changed in a node's files."""

from __future__ import annotations

import json
from collections.abc import Mapping

from tests.lab.node import Node

# The modification time of a directory says only that something in it has changed, which is found anyway.
_LOOK = """
import json, os, stat
found = {}
for top in TOPS:
    for place, directories, files in os.walk(top):
        directories[:] = [name for name in directories if name != "__pycache__"]
        for name in directories + files:
            path = os.path.join(place, name)
            try:
                at = os.lstat(path)
            except FileNotFoundError:
                continue
            link = os.readlink(path) if stat.S_ISLNK(at.st_mode) else ""
            size = at.st_size if stat.S_ISREG(at.st_mode) else False
            found[path] = [at.st_mode, at.st_uid, at.st_gid, size, link]
            if TIMES and stat.S_ISREG(at.st_mode):
                found[path].append(at.st_mtime_ns)
print(json.dumps(found))
"""
Files = Mapping[str, list[object]]


def files(node: Node, *tops: str, times: bool = True) -> Files:
    """Everything below these directories of the node, with mode, owner, size, link and time."""
    code = f"TOPS = {list(tops)!r}\nTIMES = {times}\n{_LOOK}"
    found: Files = json.loads(node.succeed("/usr/bin/python3 -I -", input=code.encode(), within=120))
    return found


def difference(before: Files, after: Files) -> list[str]:
    """What is new (+), gone (-) and changed (~) in between."""
    marks = [(path, "-" if path not in after else "~") for path in before if before[path] != after.get(path)]
    marks += [(path, "+") for path in after if path not in before]
    return [f"{mark} {path}" for path, mark in sorted(marks)]
