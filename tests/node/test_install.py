"""`make install` and `make uninstall`, without network, and the installed commands on a real libvirtd."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.ground import Ground

ROOT = Path(__file__).resolve().parents[2]
# Whatever asks a package index in spite of --no-index gets no answer.
OFFLINE = {
    **{name: value for name, value in os.environ.items() if not name.startswith("PIP_")},
    "PIP_CONFIG_FILE": os.devnull,
    "PIP_NO_INDEX": "1",
    "http_proxy": "http://127.0.0.1:9",
    "https_proxy": "http://127.0.0.1:9",
}


def make(*words: str, check: bool = True, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        ["make", "-C", str(ROOT), "--no-print-directory", *words],
        check=False,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=env,
    )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def said(*argv: str | Path) -> str:
    return subprocess.run([str(word) for word in argv], capture_output=True, text=True, check=True, cwd="/").stdout


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wheels")
    make("wheels", f"WHEELS={directory}")
    return directory


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory, wheels: Path) -> Iterator[Path]:
    directory = tmp_path_factory.mktemp("prefix")
    make("install", f"PREFIX={directory}", f"WHEELS={wheels}", env=OFFLINE)
    yield directory
    make("uninstall", f"PREFIX={directory}")


def releases(prefix: Path) -> list[str]:
    return sorted(path.name for path in (prefix / "lib/mcvirt").iterdir() if not path.is_symlink())


def test_commands_run_without_the_source(prefix: Path) -> None:
    assert said(prefix / "bin/mcvirt", "--version") == "mcvirt 12.0.0\n"
    assert said(prefix / "sbin/mcvirtd", "--version") == "mcvirtd 12.0.0\n"


def test_commands_take_no_code_from_where_they_are_started(prefix: Path, tmp_path: Path) -> None:
    (tmp_path / "msgspec.py").write_text("raise SystemExit('code of a stranger')\n")
    for directory, path in ((tmp_path, ""), (Path("/"), str(tmp_path))):
        done = subprocess.run(
            [prefix / "bin/mcvirt", "--version"],
            cwd=directory,
            env={"PYTHONPATH": path},
            capture_output=True,
            check=True,
        )
        assert done.stdout == b"mcvirt 12.0.0\n"


def test_installed_daemon_serves_the_installed_command(prefix: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with Ground(tmp_path / "ground", installed=prefix) as ground:
        check = ground.run([str(prefix / "sbin/mcvirtd"), "--check", "--settings", str(ground.settings)])
        assert "mcvirtd can run here" in check
        process = ground.popen(["list", "--json"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        output, _ = process.communicate(timeout=60)
        assert (process.returncode, output) == (0, b"[]\n")


def test_unit_completion_and_manual_are_in_place(prefix: Path) -> None:
    unit = (prefix / "lib/systemd/system/mcvirtd.service").read_text()
    assert f"ExecStart={prefix}/sbin/mcvirtd\n" in unit
    assert "/usr/local" not in unit
    assert "complete" in (prefix / "share/bash-completion/completions/mcvirt").read_text()
    for page in ("man1/mcvirt.1", "man5/mcvirtd.toml.5", "man8/mcvirtd.8"):
        assert (prefix / "share/man" / page).read_text().startswith(".TH "), page


def test_completion_of_commands(prefix: Path) -> None:
    script = prefix / "share/bash-completion/completions/mcvirt"
    words = (
        f"source {script}; COMP_LINE='mcvirt hard' COMP_POINT=11 COMP_TYPE=9 COMP_WORDBREAKS=' '; "
        f'_mcvirt_complete {prefix}/bin/mcvirt; echo "${{COMPREPLY[@]}}"'
    )
    assert said("bash", "-c", words).split() == ["hard-drive"]


def test_an_upgrade_that_fails_leaves_what_is_installed(prefix: Path, tmp_path: Path) -> None:
    before = (prefix / "lib/mcvirt/current").readlink()
    done = make("install", f"PREFIX={prefix}", f"WHEELS={tmp_path}", check=False, env=OFFLINE)
    assert done.returncode != 0
    assert (prefix / "lib/mcvirt/current").readlink() == before
    assert releases(prefix) == [str(before)]
    assert said(prefix / "bin/mcvirt", "--version") == "mcvirt 12.0.0\n"


def test_an_upgrade_keeps_the_files_of_the_running_daemon(prefix: Path, wheels: Path) -> None:
    before = (prefix / "lib/mcvirt/current").readlink()
    make("install", f"PREFIX={prefix}", f"WHEELS={wheels}", env=OFFLINE)
    after = (prefix / "lib/mcvirt/current").readlink()
    assert before != after
    assert releases(prefix) == sorted((str(before), str(after)))
    assert said(prefix / "bin/mcvirt", "--version") == "mcvirt 12.0.0\n"


def test_staged_for_a_package(tmp_path: Path, wheels: Path) -> None:
    make("install", f"DESTDIR={tmp_path}", "PREFIX=/usr", f"WHEELS={wheels}", env=OFFLINE)
    script = tmp_path / "usr/lib/mcvirt/current/bin/mcvirtd"
    release = (tmp_path / "usr/lib/mcvirt/current").readlink()
    assert script.read_text().startswith(f"#!/usr/lib/mcvirt/{release}/bin/python3 -I\n")
    assert (tmp_path / "usr/bin/mcvirt").readlink() == Path("../lib/mcvirt/current/bin/mcvirt")
    assert (tmp_path / "usr/lib/systemd/system/mcvirtd.service").exists()
    named = subprocess.run(["grep", "-rl", str(tmp_path), str(tmp_path)], capture_output=True, text=True, check=False)
    assert named.stdout == "", "these files name the place where the package is made"
    make("uninstall", f"DESTDIR={tmp_path}", "PREFIX=/usr")
    assert [path for path in tmp_path.rglob("*") if not path.is_dir()] == []


def test_uninstall_leaves_state_and_settings(tmp_path: Path, prefix: Path) -> None:
    """On a copy of what is installed, as others still need that."""
    subprocess.run(["cp", "-a", str(prefix), str(tmp_path / "usr")], check=True)
    for name in ("etc/mcvirt/mcvirtd.toml", "var/lib/mcvirt/state.db", "usr/bin/other"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("mine\n")
    make("uninstall", f"DESTDIR={tmp_path}", "PREFIX=/usr")
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if not path.is_dir())
    assert left == ["etc/mcvirt/mcvirtd.toml", "usr/bin/other", "var/lib/mcvirt/state.db"]
