"""Elements from values, text from elements, and back: the only place that knows lxml's ways."""

from __future__ import annotations

from typing import Any

from lxml import etree

from mcvirt.errors import BadArgument
from mcvirt.names import printable

Element = Any  # lxml has no types of its own


def element(tag: str, *children: Element | None, text: str | None = None, **attributes: object) -> Element:
    """<tag attributes>text children</tag>; children and attributes that are None are left out.

    Raises BadArgument for text that XML has no way to carry (control characters, half a surrogate pair).
    """
    made = etree.Element(tag)
    for name, value in attributes.items():
        if value is not None:
            made.set(name.rstrip("_"), _carried(str(value)))
    if text is not None:
        made.text = _carried(text)
    made.extend(child for child in children if child is not None)
    return made


def _carried(value: str) -> str:
    # XML 1.0 has no way to write these. Line ends and tabs it has, but a reader may change them; no name of ours
    # and no path that we make has any.
    if any(char < " " or "\ud800" <= char <= "\udfff" or char in "\x7f\ufffe\uffff" for char in value):
        raise BadArgument(what=f"'{printable(value)}'", why="it has a character that libvirt can't be told.")
    return value


def to_text(root: Element) -> str:
    """The document that *root* is, indented for people."""
    return str(etree.tostring(root, encoding="unicode", pretty_print=True))


def from_text(text: str) -> Element:
    """The tree of *text*, which comes from libvirt; no entity is resolved and nothing is fetched."""
    parser = etree.XMLParser(resolve_entities=False, no_network=True, huge_tree=False)
    return etree.fromstring(text.encode(), parser)
