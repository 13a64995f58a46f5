from __future__ import annotations

import shutil
import subprocess

import pytest

from mcvirt_client.cli.manpage import every_command, page, roff


def test_every_command_is_in_it():
    text = page()
    for path, command in every_command():
        assert f".SS mcvirt {roff(path)}\n" in text
        for example in command.examples:
            assert f"{roff(example)}\n" in text
    for section in ("EXIT STATUS", "FILES", "ENVIRONMENT"):
        assert f".SH {section}\n" in text


def test_no_word_of_ours_is_a_request():
    assert roff(".x") == "\\&.x"
    assert roff("a-b\\c") == "a\\-b\\ec"
    for line in page().splitlines():
        assert not line.startswith(("'", "-"))


@pytest.mark.skipif(shutil.which("groff") is None, reason="groff is not installed")
def test_groff_has_nothing_to_say():
    ran = subprocess.run(
        ["groff", "-man", "-Tutf8", "-ww", "-z"], input=page(), capture_output=True, text=True, check=True, timeout=60
    )
    assert ran.stderr == ""
