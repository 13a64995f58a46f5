"""Values and errors <-> the bytes of one message.

The wire is plain JSON, in Pyro4's own message frame and under its id for JSON. msgspec writes and reads it: several
times faster than serpent, and it checks types while it reads. Classes never cross; exceptions of ours cross as data in
the reply, never as Pyro's pickled `vars(exception)`.
"""

from __future__ import annotations

import contextlib
from typing import Any, NoReturn

import msgspec
from Pyro4 import errors as pyro_errors
from Pyro4 import util


class Reply(msgspec.Struct, omit_defaults=True):
    """What an operation answers: its value, an error, or the task that goes on with it.

    *away* are the nodes without which a change was made.
    """

    ok: msgspec.Raw = msgspec.Raw(b"null")
    error: dict[str, Any] | None = None
    task: str | None = None
    away: tuple[str, ...] = ()


def _refuse_compression() -> NoReturn:
    # A small compressed message can unpack to gigabytes, and MAX_MESSAGE_SIZE counts only what is on the wire.
    raise pyro_errors.SerializeError("compressed messages are not accepted")


class WireSerializer(util.JsonSerializer):  # type: ignore[misc]
    """JSON by msgspec under Pyro4's serializer id for JSON."""

    _encode = msgspec.json.Encoder().encode
    _decode = msgspec.json.Decoder().decode

    def dumpsCall(self, obj: str, method: str, vargs: Any, kwargs: Any) -> bytes:
        return self._encode({"object": obj, "method": method, "params": vargs, "kwargs": kwargs})

    def dumps(self, data: Any) -> bytes:
        if isinstance(data, BaseException):
            data = {"__exception__": True, "name": type(data).__name__, "text": str(data)}
        return self._encode(data)

    def loadsCall(self, data: Any) -> tuple[str, str, Any, Any]:
        try:
            call = self._decode(data)
            return call["object"], call["method"], call["params"], call["kwargs"]
        except (msgspec.DecodeError, KeyError, TypeError, RecursionError) as error:
            raise pyro_errors.SerializeError(f"this is not a call: {error}") from None

    def loads(self, data: Any) -> Any:
        try:
            return self._decode(data)
        except (msgspec.DecodeError, RecursionError) as error:
            raise pyro_errors.SerializeError(f"this is not JSON: {error}") from None

    def deserializeData(self, data: Any, compressed: bool = False) -> Any:
        return _refuse_compression() if compressed else self.loads(data)

    def deserializeCall(self, data: Any, compressed: bool = False) -> Any:
        return _refuse_compression() if compressed else self.loadsCall(data)


def install() -> None:
    """Make this the only serializer that Pyro4 has in this process."""
    serializer = WireSerializer()
    util._serializers.clear()
    util._serializers_by_id.clear()
    util._serializers["json"] = serializer
    util._serializers_by_id[serializer.serializer_id] = serializer
    # The daemon answers a message that it could not even read with marshal's id: the same bytes then, and no marshal.
    util._serializers_by_id[util.MarshalSerializer.serializer_id] = serializer


def prepare() -> None:
    """Have msgspec look at all types that there are now, while there is one thread.

    Otherwise it does so when a type is first decoded, and a second thread that decodes one meanwhile uses what is half
    made: the process dies of it.
    """
    found: list[type] = [msgspec.Struct]
    while found:
        cls = found.pop()
        found += cls.__subclasses__()
        # What can't be decoded never is.
        with contextlib.suppress(TypeError, NameError):
            msgspec.json.Decoder(cls)
