"""<graphics> and <video>: a screen over VNC on the loopback address."""

from __future__ import annotations

from mcvirtd.hypervisor.design import GraphicsDriver
from mcvirtd.hypervisor.xml.tree import Element, element


def graphics_elements(driver: GraphicsDriver, password: str | None) -> list[Element]:
    """What shows the guest's screen; with the driver 'none' there is neither screen nor VNC."""
    if driver == "none":
        return [element("video", element("model", type="none"))]
    return [
        element("input", type="tablet", bus="usb"),
        element(
            "graphics",
            element("listen", type="address", address="127.0.0.1"),
            type="vnc",
            port="-1",
            autoport="yes",
            passwd=password,
        ),
        element("video", element("model", type=driver)),
    ]
