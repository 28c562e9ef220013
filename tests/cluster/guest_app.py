"""What a user runs on a Ray: `guest_app ADDRESS serve PORT`, `noserve`, `busy N` or `idle N`."""

from __future__ import annotations

import sys
from typing import Any

import ray
from ray import serve
from starlette.requests import Request


@serve.deployment(ray_actor_options={"num_cpus": 0})
class Mine:
    async def __call__(self, request: Request) -> str:
        return f"mine {request.url.path}"


@ray.remote(num_cpus=1)
class Busy:
    def ready(self) -> bool:
        return True


def main(address: str, what: str, *numbers: str) -> None:
    ray.init(address=address, namespace="mine", log_to_driver=False)
    if what == "serve":
        serve.start(http_options={"host": "127.0.0.1", "port": int(numbers[0])})
        application: Any = Mine.bind()  # type: ignore[attr-defined]
        serve.run(application, name="mine", route_prefix="/")
    elif what == "noserve":
        serve.shutdown()  # type: ignore[no-untyped-call]
    elif what == "idle":
        for number in range(int(numbers[0])):
            ray.kill(ray.get_actor(f"busy-{number}"))
    else:
        actors = [
            Busy.options(name=f"busy-{n}", lifetime="detached").remote()
            for n in range(int(numbers[0]))  # type: ignore[attr-defined]
        ]
        ray.get([each.ready.remote() for each in actors])


if __name__ == "__main__":
    main(*sys.argv[1:])
