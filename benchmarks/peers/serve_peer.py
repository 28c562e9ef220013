"""Ray Serve's task_consumer, whose adapter is Celery on Redis."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import psutil
import ray
import redis
from ray import serve
from ray.serve.schema import CeleryAdapterConfig, TaskProcessorConfig
from ray.serve.task_consumer import instantiate_adapter_from_config, task_consumer, task_handler

from .. import work
from .peer import RESULT_SECONDS, Peer, address, count_of_keys, kill_all
from .ray_here import start_ray

QUEUE = "bench"
RESULT_LOOK_SECONDS = 0.002
CONFIG = TaskProcessorConfig(
    queue_name=QUEUE, adapter_config=CeleryAdapterConfig(broker_url=address(0), backend_url=address(1))
)


@serve.deployment(num_replicas=2, ray_actor_options={"num_cpus": 1})
@task_consumer(task_processor_config=CONFIG)
class Consumer:
    @task_handler(name="noop")
    def noop(self, text: str) -> list[float]:
        return work.noop(text)

    @task_handler(name="sha")
    def sha(self, text: str) -> list[object]:
        return work.sha(text)

    @task_handler(name="nap")
    def nap(self, text: str) -> list[float]:
        return work.nap(text)


class Driver(Peer):
    def open(self) -> None:
        start_ray(num_cpus=4)  # two of them for Serve's own actors
        serve.start(http_options={"location": "NoServer"})
        self._adapter = instantiate_adapter_from_config(CONFIG)
        self.finished = count_of_keys(1)  # type: ignore[method-assign]

    def close(self) -> None:
        serve.shutdown()
        ray.shutdown()

    def start_workers(self) -> None:
        serve.run(Consumer.bind(), name=QUEUE, route_prefix=None, blocking=False)

    def stop_workers(self) -> None:
        serve.delete(QUEUE)

    def kill_workers(self) -> None:
        children = psutil.Process().children(recursive=True)
        kill_all([each for each in children if "ray::ServeReplica" in " ".join(each.cmdline())])

    def restart_workers(self) -> None:
        """Serve does it."""

    def enqueue_each(self, kind: str, arguments: Sequence[str]) -> list[Any]:
        return [self._adapter.enqueue_task_sync(kind, args=[each]).id for each in arguments]

    def result(self, handle: Any) -> Any:
        deadline = time.monotonic() + RESULT_SECONDS
        while time.monotonic() < deadline:
            found = self._adapter.get_task_status_sync(handle)
            if found.status == "SUCCESS":
                return found.result
            time.sleep(RESULT_LOOK_SECONDS)
        raise TimeoutError(f"job {handle} has no result")

    def held(self) -> int:
        broker = redis.Redis.from_url(address(0))
        return int(broker.hlen("unacked")) + int(broker.llen(QUEUE))
