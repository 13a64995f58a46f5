"""The lab for people: `make lab` starts it, and `make lab DO=...` does one thing with it.

up [N]                  N fresh nodes (2), instead of those there were
join                    make one cluster of them; `revert joined` comes back to there
shell NODE [COMMAND]    a shell on a node, or one command; NODE is 1 or node1
cut|heal NODE           unplug a node from the cluster's network, and plug it in
power-off|boot NODE     let a node's power fail, and switch it on
save|revert NAME        remember all disks and memories, and go back to there
net COMMAND             a command on the cluster's network, as its host 10.9.0.254: tcpdump -ni lan
console NODE            what a node has written on its serial console
status                  which nodes there are
down                    end it
"""

from __future__ import annotations

import os
import shlex
import sys

from tests.lab.cache import LabFailed
from tests.lab.cluster import Cluster
from tests.lab.ground import Ground
from tests.lab.lab import RUNS, Lab
from tests.lab.node import Node

PLACE = RUNS / "people"


def _found() -> Lab:
    lab = Lab.find(PLACE)
    if lab is None:
        raise LabFailed("no lab is up: `make lab` starts one")
    return lab


def _node(word: str) -> Node:
    for node in _found().nodes:
        if word in (node.name, node.name.removeprefix("node")):
            return node
    raise LabFailed(f"there is no node {word}: `make lab DO=status` lists them")


def up(count: str = "2") -> None:
    down()
    lab = Lab(int(count), directory=PLACE, keep=True)
    lab.start()
    print(f"{', '.join(node.name for node in lab.nodes)} are up; `make lab DO='shell 1'` goes there, DO=help says more")


def shell(word: str, *command: str) -> None:
    node = _node(word)
    argv = node.ssh_argv("-t") if sys.stdin.isatty() and not command else node.ssh_argv()
    os.execvp(argv[0], [*argv, *command])


def net(*command: str) -> None:
    ground = Ground.find(PLACE)
    if ground is None:
        raise LabFailed("no lab is up: `make lab` starts one")
    argv = ground.inside(command)
    os.execvp(argv[0], argv)


def status() -> None:
    for node in _found().nodes:
        print(f"{node.name}  {'on ' if node.machine.is_on else 'off'}  {node.address}  {node.machine.console_path}")


def down() -> None:
    if lab := Lab.find(PLACE):
        lab.close()


VERBS = {
    "up": up,
    "shell": shell,
    "join": lambda: Cluster.join(_found()),
    "cut": lambda word: _node(word).cut(),
    "heal": lambda word: _node(word).heal(),
    "power-off": lambda word: _node(word).power_off(),
    "boot": lambda word: _node(word).boot(),
    "save": lambda name: _found().save(name),
    "revert": lambda name: _found().revert(name),
    "net": net,
    "console": lambda word: print(_node(word).machine.console(1000)),
    "status": status,
    "down": down,
}


def main(words: list[str]) -> int:
    verb, *arguments = words or ["up"]
    if verb not in VERBS:
        print(__doc__)
        return 0 if verb == "help" else 2
    try:
        VERBS[verb](*arguments)  # type: ignore[operator]
    except (LabFailed, TypeError) as error:
        said = f"{shlex.join(words)}: see `make lab DO=help`" if isinstance(error, TypeError) else error
        print(f"lab: {said}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
