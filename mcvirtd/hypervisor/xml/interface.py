"""<interface>: a network adapter on a bridge."""

from __future__ import annotations

from mcvirtd.hypervisor.design import AdapterDesign
from mcvirtd.hypervisor.xml.tree import Element, element, to_text


def interface_element(adapter: AdapterDesign) -> Element:
    """*adapter* as libvirt wants it, in a domain or alone."""
    return element(
        "interface",
        element("mac", address=adapter.mac),
        element("source", bridge=adapter.bridge),
        element("model", type=adapter.model),
        type="bridge",
    )


def interface_xml(adapter: AdapterDesign) -> str:
    """The text with which *adapter* is attached to a domain, detached from it, or moved to another bridge."""
    return to_text(interface_element(adapter))
