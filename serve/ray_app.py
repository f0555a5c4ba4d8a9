"""The same server as a Ray Serve application, for more machines than one: `python -m serve.ray_app --engine DIR`.

    python -m serve.ray_app --engine engines/student --replicas 2                     # a cluster of this machine alone
    python -m serve.ray_app --engine engines/student --max-replicas 8 --address auto  # the cluster that this one is in
    serve run serve.ray_app:application engine=engines/student replicas=2             # by Ray's own command

Needs the extra `ray`, which `make test-ray` installs. Every replica is a process with the engine open and all routes of
`serve/server.py`: its requests share its batches. It gets one GPU where the machine has some. Ray's proxy hands each
request to the less busy of two replicas that it draws; a replica is healthy as long as its engine answers a question,
and a new one replaces it otherwise. The engine folder must lie at the same place on every machine. `/metrics` is that
of the replica that is asked; Ray's own metrics are about all of them.
"""

import asyncio
import dataclasses
import signal
import time
from dataclasses import dataclass
from typing import Any

import ray  # pyright: ignore[reportMissingImports]
from fastapi import FastAPI
from ray import serve as ray_serve  # pyright: ignore[reportMissingImports]

from configs import command
from configs.errors import UsageError
from configs.options import setting
from serve import gpu
from serve.config import ServerConfig
from serve.metrics import Metrics
from serve.server import create_app, opened, ready, secret

NAME = "retort"
ONGOING = 512  # requests of a replica at a time; beyond it Ray's proxy holds them back
CHECK_S = 5.0  # between two questions whether a replica is healthy; Ray lets three in a row fail
SETTLE_S = 10.0  # of more load, before a replica is added


@dataclass(frozen=True)
class RayConfig(ServerConfig):
    """Serve an engine as replicas on a Ray cluster.

    Example:

      python -m serve.ray_app --engine engines/student --port 8000 --replicas 2
    """

    replicas: int = setting(1, least=1, most=1000, help="processes with the engine; with --max-replicas the fewest")
    max_replicas: int | None = setting(
        None, least=1, most=1000, help="as the load demands, up to so many replicas; none: as many as --replicas"
    )
    ongoing: float = setting(32.0, above=0.0, help="requests under way at a replica, above which one more is started")
    cpus: float = setting(1.0, least=0.0, help="cores that Ray sets aside for a replica and, on a CPU, it uses")
    address: str | None = setting(None, help="cluster to join, as auto; none: one of this machine alone")

    def __post_init__(self):
        if self.port is None:
            object.__setattr__(self, "port", 8000)
        if self.root or self.load or self.workers:
            raise UsageError("--root, --load and --workers are the plain server's: a load over HTTP would reach one "
                             "replica alone; deploy again with another --engine instead")  # fmt: skip
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise UsageError(f"--max-replicas is {self.max_replicas}, fewer than --replicas, {self.replicas}")
        self.check_server()


@ray_serve.deployment(max_ongoing_requests=ONGOING, health_check_period_s=CHECK_S, health_check_timeout_s=CHECK_S * 2)
@ray_serve.ingress()
class Replica:
    """One process of the application."""

    def __init__(self, config: ServerConfig) -> None:
        self._config, self._metrics = config, Metrics()
        self._engines = opened(config, self._metrics)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Ray calls it after the constructor; it closes the engines with the application."""
        return create_app(self._config, self._engines, self._metrics)

    async def check_health(self) -> None:
        """Ray's: raises where an engine does not answer."""
        await asyncio.gather(*(ready(self._engines, name) for name in self._engines.names()))


def deployed(config: RayConfig) -> Any:
    """The application, to be run with `ray.serve.run`."""
    server = ServerConfig(**{field.name: getattr(config, field.name) for field in dataclasses.fields(ServerConfig)})
    gpus = 1 if gpu.visible() else 0
    if not gpus:  # Ray counts cores and keeps nobody from taking more
        calls = server.calls or max(int(config.cpus), 1)
        server = dataclasses.replace(server, calls=calls, threads=server.threads or 1)
    resources: dict[str, Any] = {"num_cpus": config.cpus, "num_gpus": gpus}
    count: dict[str, Any] = {"num_replicas": config.replicas}
    if config.max_replicas is not None and config.max_replicas > config.replicas:
        count = {"autoscaling_config": {
            "min_replicas": config.replicas, "max_replicas": config.max_replicas,
            "target_ongoing_requests": config.ongoing, "upscale_delay_s": SETTLE_S,
        }}  # fmt: skip
    return Replica.options(name=NAME, ray_actor_options=resources, **count).bind(server)  # type: ignore[attr-defined]


def application(given: dict[str, str]) -> Any:
    """For `serve run serve.ray_app:application NAME=VALUE ...`: the settings of `--help` in the form of Ray's command.

    Raises: UsageError.
    """
    from configs import options

    words = [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    return deployed(options.parse(RayConfig, words, "serve.ray_app"))


def start(config: RayConfig) -> str:
    """Start or join the cluster and run the application there; returns its address once all replicas answer."""
    secret(config.token_file)
    ray.init(address=config.address, log_to_driver=False, include_dashboard=False, ignore_reinit_error=True)
    ray_serve.start(http_options={"host": config.host, "port": config.port})
    ray_serve.run(deployed(config), name=NAME)
    return f"http://{config.host}:{config.port}/"


def main(config: RayConfig) -> dict:
    """Until Ctrl-C or SIGTERM, which end the application, and the cluster if it was started here."""
    stopped: list[int] = []
    url = start(config)
    for number in (signal.SIGTERM, signal.SIGINT):  # after Ray, whose own handler ends the process by an abort
        signal.signal(number, lambda number, _: stopped.append(number))
    print(f"serving on {url} (Ctrl-C or SIGTERM ends it)", flush=True)
    while not stopped:
        time.sleep(0.2)
    ray_serve.delete(NAME)
    if config.address is None:
        ray_serve.shutdown()
    ray.shutdown()
    return {"out": None, "metrics": {"url": url, "replicas": config.replicas}}


if __name__ == "__main__":
    command.run("serve.ray_app", RayConfig, main)
