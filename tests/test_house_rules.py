"""The rules of the house, held by a machine so that nobody has to remember them.

A file imports its own layer or lower ones, never upwards and never in a circle. Below layer 4 nothing reads
a clock, a random number, the environment, or makes an id. Functions and modules stay small enough to read.
"""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import get_type_hints

import msgspec
import pytest

from jobsvc.events import Change
from jobsvc.jobs import TERMINAL, State
from jobsvc.settings import PoolSettings, Settings
from jobsvc.transitions import TRANSITIONS

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "jobsvc"
FUNCTION_LINES_MAX = 70
MODULE_LINES_MAX = 500

LAYERS = {
    0: "errors settings_bounds settings service_code jobs clock_view commands events",
    1: """transitions columns numbered_runs finished_groups recently_finished timed_jobs segments
          acceptance_order unpulled_jobs ready_lines ready_lanes retention_lines interned_options
          pack_references failure_groups completion_feed queue_counts remembered_keys
          queue_state selections decisions queue_snapshot job_views state_history scaling start_brake values
          value_types signatures""",
    2: """object_store directory_store s3_store faulty_store log_records read_ahead journal snapshots
          store_owner""",
    3: """bulkheads pushed_records tallies worker_registry throughput insistence history_lines log_clock
          commit_loop held_tasks unserved_tasks
          retirement orphans leasing settling leader_reads leader pool_scaler manager
          job_frames put_pace worker_objects worker_packs call_pace prefetch attempts payload_fetch
          worker_parts worker simulated_runner tasks flights feed_watch payload_packs gateway""",
    4: """access logs metrics grafana_dashboard ports ray_links manager_status actor_titles builtin_tasks
          process_tree job_output job_children job_streams job_loop
          tripwires process_traits python_traits library_traits dict_versions process_state process_growth
          code_calls job_calls job_process job_child project_code job_start job_deaths hold_back
          runner_news job_runner door_tasks
          leader_links ray_code ray_versions raylet_log autoscaler_view pool_environments manager_actor
          worker_actor clock_words
          discovery ray_head serve_proxy service_processes
          http_mount http_access http_docs http_docs_page http_errors http_express http_requests
          http_job_requests http_clock http_views http_feed http_jobs http_bulk http_live http_operations
          http_page http_service http_streams
          http_api serve_express
          client_async
          client client_bulk client_calls client_code client_core client_feed client_http client_job
          client_jobs client_logs client_tables bench project_tasks
          cluster_file ec2_cluster_mark ec2_instances ec2_sweep
          imds drain_notice node_settings known_variables node_units node_watchdog head_pulse guard_evidence
          guard_files guard guard_machine""",
    5: """deployed serve_app guest way_in placed deployment gone_tasks service task_check start_checks
          reload_checks doctor demo
          cluster_down
          cluster_file_checks cluster_aws_checks cluster_doctor
          cli cli_completion cli_output cli_jobs cli_change cli_watch cli_service cli_bench cli_cluster
          cli_node __init__ __main__""",
}
LAYER_OF = {name: layer for layer, names in LAYERS.items() for name in names.split()}

# started by name, or used by tests alone
ENTRY_POINTS = {"__init__", "__main__", "cli", "faulty_store", "simulated_runner"}

RIMS = {
    "ray": {
        "actor_titles",
        "autoscaler_view",
        "leader_links",
        "manager_actor",
        "metrics",
        "pool_environments",
        "guest",
        "ray_code",
        "serve_app",
        "service",
        "way_in",
        "worker_actor",
    },
    "fastapi": {"http_api", "http_docs", "http_docs_page", "http_views", "http_errors", "serve_app"},
    "boto3": {"s3_store", "doctor", "ec2_instances", "cluster_aws_checks"},
    "botocore": {"s3_store", "doctor", "ec2_instances", "cluster_aws_checks", "cluster_doctor"},
}

BANNED_BELOW_RIMS = re.compile(
    r"time\.(time|monotonic|perf_counter)(_ns)?|random\.(?!Random$)\w+|uuid\.uuid\d|os\.(environ|getenv|urandom)"
    r"|secrets\.\w+|(datetime\.)?(datetime|date)\.(now|utcnow|today)"
)


def modules() -> list[Path]:
    return sorted(PACKAGE.glob("*.py"))


def each_module() -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", modules(), ids=lambda path: path.stem)


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def for_types_alone(tree: ast.Module) -> set[ast.AST]:
    """What stands under `if TYPE_CHECKING`: it is never run."""
    guarded = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
    ]
    return {inner for node in guarded for statement in node.body for inner in ast.walk(statement)}


def imports_of(path: Path) -> Iterator[tuple[str, str, bool]]:
    """(package, module of ours or "", at the head of the file) of every import that is run."""
    tree = tree_of(path)
    typing_only = for_types_alone(tree)
    at_head = set(tree.body)
    for node in ast.walk(tree):
        if node in typing_only:
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                package, _, rest = alias.name.partition(".")
                yield package, rest if package == "jobsvc" else "", node in at_head
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            package, _, rest = node.module.partition(".")
            yield package, rest if package == "jobsvc" else "", node in at_head
        elif isinstance(node, ast.ImportFrom):
            names = [node.module] if node.module else [alias.name for alias in node.names]
            for name in names:
                yield "jobsvc", name, node in at_head


def ours(path: Path, *, at_head_only: bool = False) -> set[str]:
    return {
        module
        for package, module, at_head in imports_of(path)
        if package == "jobsvc" and module and (at_head or not at_head_only)
    }


# --- layers ---------------------------------------------------------------------------------------


@each_module()
def test_every_module_has_a_layer_and_imports_downwards(path: Path) -> None:
    assert path.stem in LAYER_OF, "say in LAYERS where it belongs"
    upwards = {name for name in ours(path) if LAYER_OF.get(name, 9) > LAYER_OF[path.stem]}
    assert not upwards, f"layer {LAYER_OF[path.stem]} imports upwards"


def test_no_circles() -> None:
    edges = {path.stem: ours(path, at_head_only=True) for path in modules()}
    left = dict(edges)
    while True:
        free = [name for name, needed in left.items() if not needed & set(left)]
        if not free:
            break
        for name in free:
            del left[name]
    assert not left, "these import each other"


@each_module()
def test_only_the_rims_know_ray_fastapi_and_boto3(path: Path) -> None:
    for package, _, _ in imports_of(path):
        assert package not in RIMS or path.stem in RIMS[package], f"imports {package}"


@each_module()
def test_below_the_rims_nothing_reads_clocks_chance_or_environment(path: Path) -> None:
    if LAYER_OF.get(path.stem, 9) >= 4:
        return
    assert "secrets" not in {package for package, _, _ in imports_of(path)}
    used = [
        f"line {node.lineno}: {text}"
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Attribute)
        and BANNED_BELOW_RIMS.fullmatch(text := ast.unparse(node))
        and not (text.startswith("random.") and imports_only_the_type(path))
    ]
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.ImportFrom) and node.module in ("time", "random", "uuid", "os"):
            used += [
                f"line {node.lineno}: {alias.name}"
                for alias in node.names
                if BANNED_BELOW_RIMS.fullmatch(f"{node.module}.{alias.name}")
            ]
    assert not used


def imports_only_the_type(path: Path) -> bool:
    """True where `random` cannot be the module: only `Random` was imported from it."""
    return not any(
        isinstance(node, ast.Import) and any(alias.name == "random" for alias in node.names)
        for node in ast.walk(tree_of(path))
    )


def test_every_module_is_used() -> None:
    used = set(ENTRY_POINTS)
    for path in modules():
        used |= ours(path)
        texts = [
            node.value
            for node in ast.walk(tree_of(path))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        ]
        for name in LAYER_OF:  # started as `python -m jobsvc.name`, or as an import path
            pattern = re.compile(rf"jobsvc[./]{name}\b|^\.{name}$")
            if name != path.stem and any(pattern.search(text) for text in texts):
                used.add(name)
    unused = {path.stem for path in modules()} - used
    assert not unused


# --- sizes, types, words --------------------------------------------------------------------------


@each_module()
def test_modules_and_functions_are_small_and_typed(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    assert lines <= MODULE_LINES_MAX, f"{lines} lines"
    problems = []
    for node in ast.walk(tree_of(path)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        length = (node.end_lineno or node.lineno) - node.lineno + 1
        if length > FUNCTION_LINES_MAX:
            problems.append(f"{node.name} has {length} lines")
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        arguments += [each for each in (node.args.vararg, node.args.kwarg) if each is not None]
        bare = [each.arg for each in arguments if each.annotation is None and each.arg not in ("self", "cls")]
        if bare or (node.returns is None and node.name != "__init__"):
            problems.append(f"{node.name} is not annotated {bare}")
    assert not problems


@each_module()
def test_modules_say_what_they_are(path: Path) -> None:
    assert ast.get_docstring(tree_of(path))
    assert not {"utils", "common", "base", "helpers", "misc"} & set(path.stem.split("_"))


def text_files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    paths = [ROOT / line for line in listed.stdout.splitlines()]
    return [path for path in paths if path.is_file() and b"\0" not in path.read_bytes()[:4096]]


def test_nothing_is_left_for_later() -> None:
    marks = re.compile(r"\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "X" * 3)) + r")\b")
    found = [str(path.relative_to(ROOT)) for path in text_files() if marks.search(path.read_text())]
    assert not found


def test_files_know_no_machine_and_no_package_host() -> None:
    words = ("/wo" + "rk/", "pypi" + ".org", "files.python" + "hosted", "/root" + "/", "/home" + "/")
    allowed = {("cluster.yaml", "/home" + "/")}
    found = [
        (str(path.relative_to(ROOT)), word)
        for path in text_files()
        for word in words
        if word in path.read_text() and (path.name, word) not in allowed
    ]
    assert not found


@pytest.mark.parametrize("struct", [Settings, PoolSettings])
def test_settings_carry_their_units(struct: type[msgspec.Struct]) -> None:
    counts = {"num_cpus", "num_gpus"}  # Ray's own words, and fractions of a thing
    bare = [
        name
        for name, kind in get_type_hints(struct).items()
        if kind in (float, float | None) and name not in counts and not name.endswith("_seconds")
    ]
    assert not bare


# --- the drawing ----------------------------------------------------------------------------------


def drawing() -> str:
    """The transition table as a mermaid state diagram."""
    lines = ["stateDiagram-v2"]
    lines += [
        f"    [*] --> {State.SCHEDULED.value}: enqueue, later",
        f"    [*] --> {State.QUEUED.value}: enqueue",
    ]
    for state, row in TRANSITIONS.items():
        for change, target in row.items():
            lines.append(f"    {state.value} --> {target.value}: {change.name.lower()}")
    return "\n".join(lines)


def test_the_drawing_in_the_readme_is_the_table() -> None:
    readme = (ROOT / "README.md").read_text()
    blocks = [
        each for each in re.findall(r"```mermaid\n(.*?)```", readme, re.DOTALL) if "stateDiagram" in each
    ]
    if not blocks:
        pytest.skip("the README has no drawing of the states yet")
    assert [block.strip() for block in blocks] == [drawing()]


def test_every_change_is_drawn_and_ends_are_ends() -> None:
    assert {change for row in TRANSITIONS.values() for change in row} == set(Change)
    assert {change for state in TERMINAL for change in TRANSITIONS[state]} == {Change.REVIVE}
