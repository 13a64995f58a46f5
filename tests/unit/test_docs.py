"""The documents say what is so: generated parts are current, quotations are right, links lead somewhere."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

from docs import permissions
from mcvirt import __version__
from mcvirt.api import contracts
from mcvirt.permissions import Permission
from mcvirt.rpc.contract import operations
from mcvirtd import settings
from mcvirtd.daemon import STATE_FILE, TRUST_FILE
from mcvirtd.endpoint import ENDPOINT_FILE

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
DECISIONS = sorted((ROOT / "docs/design").glob("*.md"))
EXAMPLE = ROOT / "docs/mcvirtd.toml.example"
PAGE = (ROOT / "docs/man/mcvirtd.toml.5").read_text()


def read(name: str) -> str:
    return (ROOT / name).read_text()


# --- the table of permissions -------------------------------------------------------------------------------------


def test_table_of_permissions_is_current() -> None:
    assert read("docs/permissions.md") == permissions.document(), "`make docs` writes it anew"


def test_table_of_permissions_has_everything() -> None:
    text = permissions.document()
    for contract in contracts():
        for operation in operations(contract).values():
            assert f"| `{operation}` |" in text
    for permission in Permission:
        assert f"| `{permission.value}` |" in text


# --- settings -----------------------------------------------------------------------------------------------------


def uncommented(text: str) -> dict[str, dict[str, object]]:
    """The example as it is when every default in it is written out."""
    return tomllib.loads("\n".join(re.sub(r"^# (\w+ = )", r"\1", line) for line in text.splitlines()))


def test_example_settings_change_nothing() -> None:
    shipped = tomllib.loads(EXAMPLE.read_text())
    name = lambda: "host1"  # noqa: E731
    assert settings.parse(shipped, host_name=name) == settings.parse({}, host_name=name)


def test_example_settings_show_every_key_with_its_default() -> None:
    shown = uncommented(EXAMPLE.read_text())
    assert {f"{section}.{key}" for section, keys in shown.items() for key in keys} == set(settings.keys())
    assert settings.parse(shown) == settings.parse({}, host_name=lambda: "host1")


@pytest.mark.parametrize("key", settings.keys())
def test_manual_page_of_settings_explains(key: str) -> None:
    section, field = key.split(".")
    part = PAGE.split(f".SS [{section}]")[1].split(".SS ")[0]
    default = uncommented(EXAMPLE.read_text())[section][field]
    if key == "node.name":
        assert "\n.B name\n" in part
        return
    shown = f'""{default}""' if isinstance(default, str) else str(default)
    assert re.search(rf'^\.BR {field} " = {re.escape(shown)}"', part, re.MULTILINE), f"{field} = {shown}"


def test_manual_page_of_the_daemon_names_its_files() -> None:
    page = read("docs/man/mcvirtd.8")
    for name in (STATE_FILE, ENDPOINT_FILE, TRUST_FILE):
        assert f"/{name}\n" in page


# --- what is written by hand --------------------------------------------------------------------------------------


def test_readme_shows_the_example_that_is_run() -> None:
    assert f"```python\n{read('docs/example.py')}```\n" in read("README.md")


def test_example_is_a_program() -> None:
    ast.parse(read("docs/example.py"))


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere_in_this_tree(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text()):
        if not re.match(r"https?://", target):
            place = (path.parent / target).resolve()
            assert place.is_relative_to(ROOT) and place.exists(), target


@pytest.mark.parametrize("path", DECISIONS, ids=lambda path: path.stem)
def test_decisions_have_their_parts(path: Path) -> None:
    text = path.read_text()
    number = int(path.name[:4])
    assert text.startswith(f"# {number}. ")
    places = [text.find(f"\n**{part}") for part in ("Status:**", "Objective.**", "Now.**", "Decision.**")]
    assert -1 not in places and places == sorted(places)
    for name in re.findall(r"`((?:mcvirt|mcvirt_client|mcvirtd)/[\w/.]+)`", text):
        assert (ROOT / name).exists(), name


def test_decisions_are_numbered_without_gaps() -> None:
    assert [int(path.name[:4]) for path in DECISIONS] == list(range(1, len(DECISIONS) + 1))


def test_versions_agree() -> None:
    project = tomllib.loads(read("pyproject.toml"))["project"]
    assert project["version"] == __version__
    assert f"\n## {__version__}" in read("CHANGELOG.md")


def test_license_is_complete() -> None:
    text = read("LICENSE")
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_debian_packages_are_listed_once() -> None:
    names = [line for line in read(".ci/packages").splitlines() if line and not line.startswith("#")]
    assert len(names) == len(set(names))
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9.+-]+", name) for name in names)


def test_every_verb_of_the_makefile_is_explained() -> None:
    text = read("Makefile")
    verbs = re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)
    assert verbs is not None
    # What another verb does on the way needs no explanation.
    for verb in set(verbs[1].split()) - {"packages"}:
        assert re.search(rf"^{verb}:[^#\n]* ## \S", text, re.MULTILINE), verb
