"""What is wrong with a cluster file, as far as the file alone can tell.

Most of these are defaults of Ray or of EC2 that leave machines behind, let strangers in, or make growth slow;
none of them is an error to `ray up`. Each check yields complaints; no complaint is a pass. A value that is
still a placeholder is complained of once, by `placeholders`, and by nobody else.
"""

from __future__ import annotations

import ipaddress
import json
import re
import shlex
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec

from .cluster_file import ClusterFile, NodeType, option_of
from .errors import InvalidRequest
from .s3_store import parse_s3_url
from .settings import PoolSettings, Settings, from_environment

MANAGER, HTTP = "jobsvc_manager", "jobsvc_http"  # resources of the nodes that hold the pair and the ways in
NODE_HEAD_OPTIONS = frozenset(
    {"--data", "--port", "--tasks", "--settings", "--s3-endpoint-url", "--cluster", "--json"}
)
CLUSTER_TAG = "ray-cluster-name"
PLACEHOLDER = re.compile(r"FILL_IN_[A-Z_]+")
IDLE_MINUTES_MAX = 15
UPSCALING_SPEED_MIN = 10
RECONNECT_SECONDS_MIN = 300
ALLOCATE_SECONDS_MAX = 1800
SPOT_TYPES_MIN = 2
TOKEN_BYTES_MIN = 16
MESSAGE_LENGTH_MAX = 160
TOKENS = {  # where nodes look -> what makes one
    "~/.ray/auth_token": "ray get-auth-token --generate; chmod 600 ~/.ray/auth_token",
    "~/.jobsvc/token": "(umask 077; mkdir -p ~/.jobsvc; openssl rand -hex 32 >~/.jobsvc/token)",
}
RECONNECT = "RAY_gcs_rpc_server_reconnect_timeout_s"
ALLOCATE = "RAY_AUTOSCALER_RECONCILE_ALLOCATE_STATUS_TIMEOUT_S"
OTHERS_BITS = 0o077

Complaints = Iterator[str]


def is_placeholder(value: object) -> bool:
    return isinstance(value, str) and PLACEHOLDER.search(value) is not None


def workers(cluster: ClusterFile) -> list[NodeType]:
    """The types that run jobs."""
    return [each for each in _others(cluster) if each.name not in cluster.manager_types]


def managers(cluster: ClusterFile) -> list[NodeType]:
    """The types that may hold a manager, besides the head."""
    return [each for each in _others(cluster) if each.name in cluster.manager_types]


def _others(cluster: ClusterFile) -> list[NodeType]:
    return [each for name, each in cluster.node_types.items() if name != cluster.head_type]


def variables(commands: Iterable[str]) -> dict[str, str]:
    """Every word NAME=value in start commands: exports, and `--settings NAME=value`."""
    found = {}
    for command in commands:
        try:
            words = shlex.split(command, comments=True)
        except ValueError:
            continue
        for word in words:
            name, given, value = word.partition("=")
            if given and name.isidentifier():
                found[name] = value.rstrip(";")
    return found


def pools_of(cluster: ClusterFile) -> dict[str, PoolSettings]:
    """The pools that the service will have: what the head's start commands say, else the default."""
    given = variables(cluster.head_start_commands)
    text = given.get("pools") or given.get("JOBSVC_POOLS")  # --settings pools=…, or the variable
    return from_environment({"JOBSVC_POOLS": text} if text else {}).pools


# --- the checks -----------------------------------------------------------------------------------


def placeholders(cluster: ClusterFile) -> Complaints:
    names = sorted({name for text in _texts(cluster.document) for name in PLACEHOLDER.findall(text)})
    if names:
        yield f"still to be filled in: {', '.join(names)}"


def schema(cluster: ClusterFile) -> Complaints:
    """Ray's own: a name that it does not know is a typo."""
    import jsonschema

    ray = find_spec("ray")
    if ray is None or not ray.submodule_search_locations:
        return  # the check of the machine itself says so
    text = Path(ray.submodule_search_locations[0], "autoscaler", "ray-schema.json").read_text()
    for error in jsonschema.Draft7Validator(json.loads(text)).iter_errors(cluster.document):
        yield f"{'.'.join(map(str, error.absolute_path)) or 'the file'}: {error.message[:MESSAGE_LENGTH_MAX]}"


def stopped_machines(cluster: ClusterFile) -> Complaints:
    if cluster.document["provider"].get("cache_stopped_nodes", True) is not False:
        yield "provider.cache_stopped_nodes is not False: on-demand machines would be stopped, not terminated"


def shutdown(cluster: ClusterFile) -> Complaints:
    for each in cluster.node_types.values():
        if each.node_config.get("InstanceInitiatedShutdownBehavior") != "terminate":
            yield f"{each.name}: InstanceInitiatedShutdownBehavior is not terminate: a shutdown only stops it"


def disks(cluster: ClusterFile) -> Complaints:
    for each in cluster.node_types.values():
        mappings = [entry for entry in _list(each.node_config, "BlockDeviceMappings") if "Ebs" in entry]
        if not mappings:
            yield f"{each.name}: BlockDeviceMappings is missing: nothing says that its disk ends with it"
        for entry in mappings:
            if entry["Ebs"].get("DeleteOnTermination") is not True:
                yield f"{each.name}: {entry.get('DeviceName')} has no DeleteOnTermination: true"


def disk_tags(cluster: ClusterFile) -> Complaints:
    for each in cluster.node_types.values():
        values = [
            tag.get("Value")
            for entry in _list(each.node_config, "TagSpecifications")
            if entry.get("ResourceType") == "volume"
            for tag in entry.get("Tags", [])
            if tag.get("Key") == CLUSTER_TAG
        ]
        if values != [cluster.cluster_name]:
            yield f"{each.name}: its disks get no {CLUSTER_TAG}={cluster.cluster_name}: `sweep` misses them"


def instance_metadata(cluster: ClusterFile) -> Complaints:
    for each in cluster.node_types.values():
        options = each.node_config.get("MetadataOptions") or {}
        if options.get("HttpTokens") != "required":
            yield f"{each.name}: MetadataOptions.HttpTokens is not required (IMDSv2)"
        if options.get("HttpEndpoint", "enabled") != "enabled":
            yield f"{each.name}: MetadataOptions.HttpEndpoint is off: no role, and no spot notice"


def roles(cluster: ClusterFile) -> Complaints:
    if {"aws_access_key_id", "aws_secret_access_key"} & set(cluster.aws_credentials):
        yield "provider.aws_credentials has keys: they would go to the head, and into the store for the guard"
    for each in cluster.node_types.values():
        if profile_of(each) is None:
            yield f"{each.name}: no IamInstanceProfile: Ray gives one to the head alone, so no S3 here"
    for each in workers(cluster):
        if profile_of(each) is not None and profile_of(each) == profile_of(cluster.head):
            yield f"{each.name}: has the head's IamInstanceProfile, so every job could start and end machines"
    for each in managers(cluster):
        if profile_of(each) is not None and profile_of(each) in map(profile_of, workers(cluster)):
            yield f"{each.name}: has the workers' IamInstanceProfile: its guard could not start a head"


def profile_of(node_type: NodeType) -> str | None:
    """The name of its instance profile."""
    profile = node_type.node_config.get("IamInstanceProfile") or {}
    name = profile.get("Name") or str(profile.get("Arn") or "").rpartition("/")[2]
    return name or None


def open_ports(cluster: ClusterFile) -> Complaints:
    own = cluster.document["provider"].get("security_group") or {}
    for permission in own.get("IpPermissions", []):
        if open_to_all(permission):
            yield f"provider.security_group opens {ports_of(permission)} to the whole world"
    for each in cluster.node_types.values():
        if not each.node_config.get("SecurityGroupIds") and not each.node_config.get("NetworkInterfaces"):
            yield f"{each.name}: no SecurityGroupIds: the group that Ray makes opens SSH to the whole world"


def open_to_all(permission: dict[str, Any]) -> bool:
    """Does this rule of a security group let every address in?"""
    ranges = [entry.get("CidrIp") for entry in permission.get("IpRanges", [])]
    ranges += [entry.get("CidrIpv6") for entry in permission.get("Ipv6Ranges", [])]
    return any(each and ipaddress.ip_network(each, strict=False).prefixlen == 0 for each in ranges)


def ports_of(permission: dict[str, Any]) -> str:
    first, last = permission.get("FromPort"), permission.get("ToPort")
    if permission.get("IpProtocol") == "-1" or first is None or first == -1:
        return "every port"
    return f"port {first}" if first == last else f"ports {first} to {last}"


def image(cluster: ClusterFile) -> Complaints:
    for each in cluster.node_types.values():
        chosen = str(each.node_config.get("ImageId") or "").lower()
        if chosen in ("", "latest_dlami"):
            yield f"{each.name}: ImageId is missing: Ray would take an image of Ubuntu 18.04"
        elif not chosen.startswith("ami-") and not is_placeholder(chosen.upper()):
            yield f"{each.name}: ImageId {chosen} is not an image's id"


def key(cluster: ClusterFile) -> Complaints:
    if cluster.ssh_private_key is None:
        yield "auth.ssh_private_key is missing: Ray would make a key pair of its own in your account"
    elif not is_placeholder(cluster.ssh_private_key):
        yield from _secret("auth.ssh_private_key", Path(cluster.ssh_private_key).expanduser(), 1)
    for each in cluster.node_types.values():
        if not each.node_config.get("KeyName"):
            yield f"{each.name}: KeyName is missing: nobody could log in, Ray neither"


def tokens(cluster: ClusterFile) -> Complaints:
    for commands, field in _start_commands(cluster):
        if variables(commands).get("RAY_AUTH_MODE") != "token":
            yield f"{field} do not set RAY_AUTH_MODE=token: Ray's ports would let everybody run code"
    for remote, maker in TOKENS.items():
        local = cluster.file_mounts.get(remote)
        if local is None:
            yield f"file_mounts has no {remote}"
        elif not _here(cluster, local).exists():
            yield f"{local} is not there; to make one: {maker}"
        else:
            yield from _secret(f"the file for {remote}", _here(cluster, local), TOKEN_BYTES_MIN)


def file_mounts(cluster: ClusterFile) -> Complaints:
    for remote, local in cluster.file_mounts.items():
        path = _here(cluster, local)
        if remote not in TOKENS and not path.exists():
            yield f"file_mounts: {local} is not there"
        elif (path / ".venv").is_dir() or (path / ".git").is_dir():
            yield f"file_mounts: {local} has a .venv or .git in it, which Ray reads through at every `ray up`"
    excluded = cluster.document.get("rsync_exclude") or []
    if cluster.ssh_private_key and any(Path(cluster.ssh_private_key).match(str(each)) for each in excluded):
        yield "rsync_exclude keeps the SSH key from the head: it could reach no other machine"


def idle_time(cluster: ClusterFile) -> Complaints:
    minutes = cluster.document.get("idle_timeout_minutes", 5)  # Ray's default
    if minutes > IDLE_MINUTES_MAX:
        yield f"idle_timeout_minutes is {minutes}: each machine is paid for that long after its last job"
    for each in cluster.node_types.values():
        seconds = each.document.get("idle_timeout_s") or 0
        if seconds > IDLE_MINUTES_MAX * 60:
            yield f"{each.name}: idle_timeout_s is {seconds}"
    for each in workers(cluster):
        if each.min_workers > 0:
            yield f"{each.name}: min_workers is {each.min_workers}: these machines run when there is no work"


def upscaling(cluster: ClusterFile) -> Complaints:
    speed = cluster.document.get("upscaling_speed", 1)
    if speed < UPSCALING_SPEED_MIN:
        yield f"upscaling_speed is {speed}: twenty machines would be asked for over minutes; 10 or more"


def limits(cluster: ClusterFile) -> Complaints:
    least = sum(each.min_workers for each in _others(cluster))
    if least > cluster.max_workers:
        yield f"max_workers is {cluster.max_workers}, and the types' min_workers are {least} together"
    elif least == cluster.max_workers or not any(each.max_workers for each in workers(cluster)):
        yield f"max_workers leaves no room for a single worker ({cluster.max_workers}, {least} always run)"


def spot_types(cluster: ClusterFile) -> Complaints:
    for each in cluster.node_types.values():
        options = (each.node_config.get("InstanceMarketOptions") or {}).get("SpotOptions") or {}
        if options.get("SpotInstanceType") == "persistent":
            yield f"{each.name}: SpotInstanceType: EC2 would start a persistent request's machine again"
    types = {each.instance_type for each in workers(cluster) if each.is_spot and each.max_workers}
    on_demand = any(not each.is_spot and each.max_workers for each in workers(cluster))
    if types and len(types) < SPOT_TYPES_MIN and not on_demand:
        yield f"only {', '.join(types)} for spot workers: EC2 runs out of one type at a time; name another"


def head(cluster: ClusterFile) -> Complaints:
    if cluster.head.resources.get("CPU") != 0:
        yield f"{cluster.head_type}: resources has no CPU: 0, so jobs would run beside the head's processes"
    if cluster.head.is_spot:
        yield f"{cluster.head_type}: is a spot machine, which EC2 may take back at any time"


def pair(cluster: ClusterFile) -> Complaints:
    for resource, what in ((MANAGER, "managers"), (HTTP, "ways in")):
        places = cluster.head.resources.get(resource, 0.0)
        places += sum(each.min_workers * each.resources.get(resource, 0.0) for each in managers(cluster))
        if places < 2:
            yield f"{places:g} of resource {resource} always there: two {what} on two machines need 2"
    for each in managers(cluster):
        if each.is_spot:
            yield f"{each.name}: is a spot machine, which EC2 may take back at any time"
        if each.resources.get("CPU") != 0:
            yield f"{each.name}: resources has no CPU: 0, so jobs would run beside the manager"


def pools(cluster: ClusterFile) -> Complaints:
    try:
        found = pools_of(cluster)
    except InvalidRequest as error:
        yield str(error)
        return
    for name, pool in found.items():
        wanted = {"CPU": pool.num_cpus, "GPU": pool.num_gpus, **pool.resources}
        if pool.memory_bytes:
            wanted["memory"] = float(pool.memory_bytes)
        if not any(_holds(each, wanted) for each in workers(cluster) if each.max_workers):
            shape = ", ".join(f"{amount:g} {resource}" for resource, amount in wanted.items() if amount)
            yield f"pool {name}: no node type has this shape ({shape}), so its jobs would wait for ever"


def service_settings(cluster: ClusterFile) -> Complaints:
    """What the head's start commands say to the service, read as the head will read it."""
    field = "head_start_ray_commands"
    given = variables(cluster.head_start_commands)
    environment = {name: value for name, value in given.items() if name.startswith("JOBSVC_")}
    known = {each.name for each in msgspec.structs.fields(Settings)}
    for option, value in _options(cluster.head_start_commands):
        if option not in NODE_HEAD_OPTIONS:
            yield f"{field}: `jobsvc node head` has no option {option}"
        elif option == "--settings":
            name, equals, text = value.partition("=")
            if not equals or name not in known:
                yield f"{field}: --settings {value}: there is no such setting"
            environment[f"JOBSVC_{name.upper()}"] = text
        elif option == "--port":
            environment["JOBSVC_PORT"] = value
    if any(map(is_placeholder, environment.values())):
        return
    try:
        from_environment(environment)
    except InvalidRequest as error:
        if not error.field or not error.field.startswith("pools"):  # `pools` has a row of its own
            yield f"{field}: {error}"


def _options(commands: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Options and values of `jobsvc node head`, as far as its command goes."""
    for command in commands:
        try:
            words = shlex.split(command, comments=True)
        except ValueError:
            yield command, ""
            continue
        for start in (at for at in range(len(words)) if words[at : at + 2] == ["node", "head"]):
            rest = words[start + 2 :]
            for at, word in enumerate(rest):
                if word in ("&&", "||", "|", ";"):
                    break
                name, equals, value = word.partition("=")
                if word.startswith("--"):
                    yield name, value if equals else "".join(rest[at + 1 : at + 2]).rstrip(";")


def _holds(node_type: NodeType, wanted: dict[str, float]) -> bool:
    known = node_type.resources
    # Ray finds out CPU, GPU and memory of an instance type itself where the file is silent.
    silent = {"CPU", "memory"} - set(known)
    return all(known.get(name, 0.0) >= amount for name, amount in wanted.items() if name not in silent)


def data(cluster: ClusterFile) -> Complaints:
    if not cluster.data.startswith("s3://"):
        yield "the head's start commands have no --data s3://BUCKET/PREFIX"
        return
    if not is_placeholder(cluster.data):
        try:
            prefix = parse_s3_url(cluster.data)[1]
        except InvalidRequest as error:
            yield str(error)
            return
        if not prefix:
            yield f"{cluster.data} has no prefix, and iam/*.json gives rights on a prefix"
    theirs = option_of("--data", cluster.worker_start_commands)
    if theirs is not None and theirs != cluster.data:
        yield f"the head has --data {cluster.data} and the other nodes --data {theirs}"


def start_commands(cluster: ClusterFile) -> Complaints:
    for (commands, field), role in zip(_start_commands(cluster), ("head", "worker"), strict=True):
        if not any(f"jobsvc node {role}" in each for each in commands):
            yield f"{field} have no `jobsvc node {role}`: nothing would start Ray again, or see a notice"
        given = variables(commands)
        if _number(given.get(RECONNECT)) < RECONNECT_SECONDS_MIN:
            yield f"{field}: {RECONNECT} is not {RECONNECT_SECONDS_MIN} or more: nodes die with their head"
        region = given.get("AWS_DEFAULT_REGION", cluster.region)
        if region != cluster.region:
            yield f"{field}: AWS_DEFAULT_REGION is {region}, and provider.region {cluster.region}"
    seconds = _number(variables(cluster.head_start_commands).get(ALLOCATE))
    if not 0 < seconds <= ALLOCATE_SECONDS_MAX:
        yield f"{ALLOCATE} is not at most {ALLOCATE_SECONDS_MAX}: a machine that never comes up costs an hour"


Check = Callable[[ClusterFile], Complaints]

CHECKS: dict[str, tuple[Check, str]] = {  # name -> (check, what is said if there is no complaint)
    "filled in": (placeholders, "no placeholder is left"),
    "schema": (schema, "Ray takes it"),
    "data": (data, "one S3 prefix for all nodes"),
    "stopped machines": (stopped_machines, "terminated, not stopped"),
    "shutdown": (shutdown, "terminates"),
    "disks": (disks, "end with their machine"),
    "disk tags": (disk_tags, "carry the cluster's name"),
    "instance metadata": (instance_metadata, "IMDSv2 only"),
    "roles": (roles, "head and workers have their own"),
    "open ports": (open_ports, "none to the whole world"),
    "image": (image, "chosen"),
    "key": (key, "there"),
    "tokens": (tokens, "Ray's and ours are there, for you alone"),
    "file mounts": (file_mounts, "there"),
    "idle time": (idle_time, "short; no worker without work"),
    "upscaling": (upscaling, "fast"),
    "limits": (limits, "room for workers"),
    "spot types": (spot_types, "more than one kind of machine"),
    "head": (head, "no job CPUs, on demand"),
    "pair": (pair, "two machines for managers"),
    "pools": (pools, "each fits a node type"),
    "settings": (service_settings, "the service takes them"),
    "start commands": (start_commands, "jobsvc node, with its variables"),
}


# --- reading --------------------------------------------------------------------------------------


def _start_commands(cluster: ClusterFile) -> list[tuple[tuple[str, ...], str]]:
    return [
        (cluster.head_start_commands, "head_start_ray_commands"),
        (cluster.worker_start_commands, "worker_start_ray_commands"),
    ]


def _secret(what: str, path: Path, bytes_min: int) -> Complaints:
    """A file that must have something in it, and that nobody else may read."""
    try:
        mode, size = path.stat().st_mode, len(path.read_bytes().strip())
    except OSError as error:
        yield f"{what}: {path}: {error.strerror}"
        return
    if size < bytes_min:
        yield f"{what}: {path} has {size} bytes, which is no secret"
    elif is_placeholder(path.read_text(errors="replace")):
        yield f"{what}: {path} is a placeholder"
    if mode & OTHERS_BITS:
        yield f"{what}: others may read {path}: chmod 600 {path}"


def _here(cluster: ClusterFile, local: str) -> Path:
    """Relative to the cluster file's folder, from which `ray up` is to be run."""
    return Path(cluster.path).parent / Path(local).expanduser()


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _texts(each)
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each)


def _list(node_config: dict[str, Any], field: str) -> list[dict[str, Any]]:
    return [each for each in node_config.get(field) or [] if isinstance(each, dict)]


def _number(text: str | None) -> float:
    try:
        return float(text or 0)
    except ValueError:
        return 0.0
