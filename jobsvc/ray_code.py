"""The service's code, where every machine of a Ray finds it: in Ray's own key-value store, on the head.

`up` and `reload` put it there. A manager reads it when it begins, so one that Ray starts anew knows the code
of the last reload, not that of the settings with which it was made. What is lost with the head is put there
again by the next `up`, with everything else.
"""

from __future__ import annotations

import msgspec
from ray.experimental import internal_kv

from .service_code import ServiceCode

_KEY = b"jobsvc-code"

_decode = msgspec.msgpack.Decoder(ServiceCode).decode


def put_code(service: str, code: ServiceCode) -> None:
    """For this service, instead of what was there."""
    internal_kv._internal_kv_put(_KEY, msgspec.msgpack.encode(code), True, namespace=service.encode())


def get_code(service: str) -> ServiceCode | None:
    """None if nobody has said what it is."""
    data = internal_kv._internal_kv_get(_KEY, namespace=service.encode())
    return None if data is None else _decode(data)


def forget_code(service: str) -> None:
    """The service has left this Ray."""
    internal_kv._internal_kv_del(_KEY, namespace=service.encode())
