"""The cluster file: what `ray up` reads, read by us for what we need of it.

Ray's schema refuses top-level keys that it does not know, so what jobsvc needs beyond Ray's own words stands
where jobsvc itself gets it: in the options of `jobsvc node head` among the head's start commands. One place
says where the data is, and both the node and the operator's commands read it there.

Nothing is filled in, and nothing is judged here beyond what would make the file useless: a placeholder is a
value like another. `doctor --cluster` judges.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import yaml

from .errors import InvalidRequest

SPOT = "spot"
MANAGER_RESOURCE = "jobsvc_manager"
# It becomes part of EC2 tags, of file names and of keys in the store.
CLUSTER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class NodeType(msgspec.Struct, frozen=True, kw_only=True):
    """One of `available_node_types`."""

    name: str
    node_config: dict[str, Any]  # as given to EC2's RunInstances
    resources: dict[str, float]
    min_workers: int
    max_workers: int
    document: dict[str, Any]  # the whole entry

    @property
    def instance_type(self) -> str:
        return str(self.node_config.get("InstanceType", ""))

    @property
    def is_spot(self) -> bool:
        options = self.node_config.get("InstanceMarketOptions")
        return isinstance(options, dict) and options.get("MarketType") == SPOT


class ClusterFile(msgspec.Struct, frozen=True, kw_only=True):
    """What a cluster file says. `document` is all of it, as YAML has it."""

    path: str  # absolute
    document: dict[str, Any]
    cluster_name: str
    region: str
    head_type: str
    node_types: dict[str, NodeType]
    max_workers: int
    file_mounts: dict[str, str]  # path on a node -> path here
    ssh_user: str
    ssh_private_key: str | None  # None: Ray makes a key pair of its own
    head_start_commands: tuple[str, ...]
    worker_start_commands: tuple[str, ...]
    data: str  # `--data` of the head's start commands; "" if there is none
    s3_endpoint_url: str | None  # `--s3-endpoint-url` of the same

    @property
    def aws_credentials(self) -> dict[str, str]:
        """Keys in the file itself, which Ray then uses; mostly none, and boto3 looks in its usual places."""
        return dict(self.document["provider"].get("aws_credentials") or {})

    @property
    def manager_types(self) -> frozenset[str]:
        """Types other than the head's that may carry a manager, and with it the guard."""
        return frozenset(
            name
            for name, each in self.node_types.items()
            if name != self.head_type and each.resources.get(MANAGER_RESOURCE)
        )

    @property
    def head(self) -> NodeType:
        return self.node_types[self.head_type]


def load_cluster_file(path: str | Path) -> ClusterFile:
    """Read a cluster file. Raises InvalidRequest, which names the field, or OSError with the file's name."""
    where = Path(path).expanduser().resolve()
    try:
        text = where.read_text()
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{where} is not text: {error}", "cluster file") from error
    return read_cluster_file(text, str(where))


def read_cluster_file(text: str, path: str) -> ClusterFile:
    """The same from its text; `path` is what the messages and `ray` call it."""
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}, line {mark.line + 1}" if mark is not None else path
        said = getattr(error, "problem", None) or " ".join(str(error).split())
        raise InvalidRequest(f"{where} is not YAML: {said}", "cluster file") from error
    if not isinstance(document, dict):
        raise InvalidRequest(f"{path} is not a cluster file: it has no keys", "cluster file")
    provider = _mapping(document, "provider")
    if provider.get("type") != "aws":
        raise InvalidRequest(f"must be aws, not {provider.get('type')!r}", "provider.type")
    auth = _mapping(document, "auth")
    max_workers = _count(document, "max_workers", "max_workers", 2)  # Ray's default
    head_commands = _commands(document, "head_start_ray_commands")
    return ClusterFile(
        path=path,
        document=document,
        cluster_name=_cluster_name(document),
        region=_text(provider, "region", "provider.region"),
        head_type=_head_type(document),
        node_types=_node_types(document, max_workers),
        max_workers=max_workers,
        file_mounts=_file_mounts(document),
        ssh_user=_text(auth, "ssh_user", "auth.ssh_user"),
        ssh_private_key=_text(auth, "ssh_private_key", "auth.ssh_private_key", optional=True) or None,
        head_start_commands=head_commands,
        worker_start_commands=_commands(document, "worker_start_ray_commands"),
        data=option_of("--data", head_commands) or "",
        s3_endpoint_url=option_of("--s3-endpoint-url", head_commands),
    )


def option_of(option: str, commands: Iterable[str]) -> str | None:
    """The value of an option, said as `--name value` or `--name=value`, in the first command that has it."""
    for command in commands:
        try:
            words = shlex.split(command, comments=True)
        except ValueError:
            continue  # a quote that does not close: the shell will say so, and it is not our option
        for index, word in enumerate(words):
            if word == option:
                return "".join(words[index + 1 : index + 2]).rstrip(";")
            if word.startswith(f"{option}="):
                return word.removeprefix(f"{option}=").rstrip(";")
    return None


def _node_types(document: Mapping[str, Any], cluster_max_workers: int) -> dict[str, NodeType]:
    head_type = _head_type(document)
    found: dict[str, NodeType] = {}
    for name, entry in _mapping(document, "available_node_types").items():
        field = f"available_node_types.{name}"
        if not isinstance(entry, dict):
            raise InvalidRequest("must be a mapping", field)
        found[str(name)] = NodeType(
            name=str(name),
            node_config=_mapping(entry, "node_config", f"{field}.node_config"),
            resources=_resources(entry, f"{field}.resources"),
            min_workers=_count(entry, "min_workers", f"{field}.min_workers", 0),
            max_workers=_count(
                entry, "max_workers", f"{field}.max_workers", 0 if name == head_type else cluster_max_workers
            ),
            document=entry,
        )
    if head_type not in found:
        raise InvalidRequest(f"{head_type!r} is not one of available_node_types", "head_node_type")
    return found


def _cluster_name(document: Mapping[str, Any]) -> str:
    name = _text(document, "cluster_name", "cluster_name")
    if not CLUSTER_NAME.fullmatch(name):
        raise InvalidRequest(f"{name!r} may have letters, digits, '.', '_' and '-'", "cluster_name")
    return name


def _head_type(document: Mapping[str, Any]) -> str:
    return _text(document, "head_node_type", "head_node_type")


def _resources(entry: Mapping[str, Any], field: str) -> dict[str, float]:
    found = _mapping(entry, "resources", field, optional=True)
    for name, amount in found.items():
        if isinstance(amount, bool) or not isinstance(amount, int | float):
            raise InvalidRequest(f"must be a number, not {amount!r}", f"{field}.{name}")
    return {str(name): float(amount) for name, amount in found.items()}


def _file_mounts(document: Mapping[str, Any]) -> dict[str, str]:
    found = _mapping(document, "file_mounts", optional=True)
    for remote, local in found.items():
        if not isinstance(local, str):
            raise InvalidRequest(f"must be a path, not {local!r}", f"file_mounts.{remote}")
    return {str(remote): local for remote, local in found.items()}


def _commands(document: Mapping[str, Any], field: str) -> tuple[str, ...]:
    commands = document.get(field) or []
    if not isinstance(commands, list) or not all(isinstance(each, str) for each in commands):
        raise InvalidRequest("must be a list of commands", field)
    return tuple(commands)


def _mapping(
    document: Mapping[str, Any], key: str, field: str | None = None, *, optional: bool = False
) -> dict[str, Any]:
    found = document.get(key)
    if found is None and optional:
        return {}
    if not isinstance(found, dict):
        raise InvalidRequest("is missing" if found is None else "must be a mapping", field or key)
    return found


def _text(document: Mapping[str, Any], key: str, field: str, *, optional: bool = False) -> str:
    found = document.get(key)
    if found is None and optional:
        return ""
    if not isinstance(found, str) or not found:
        raise InvalidRequest("is missing" if found is None else f"must be text, not {found!r}", field)
    return found


def _count(document: Mapping[str, Any], key: str, field: str, default: int) -> int:
    found = document.get(key, default)
    if isinstance(found, bool) or not isinstance(found, int) or found < 0:
        raise InvalidRequest(f"must be a whole number, not {found!r}", field)
    return found
