"""Whether the modules of tasks can be imported, found out before anything is started.

They are imported in a process of their own, with the paths and the environment that the service will have: so
the check is of what will run, whoever asks stays clean of what the modules do as they are imported, and a
module that ends its process, or never comes back, is an answer like another. What the modules print goes
nowhere; what is found travels on a pipe of its own, line by line, so that the module that was being imported
is known whatever happens.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from .errors import InvalidRequest
from .project_code import project_modules
from .service_code import ServiceCode
from .settings import Settings
from .tasks import builtin_registry

SLOW_SECONDS = 2.0  # pandas and torch take longer: said once, and waited for
IMPORT_SECONDS_MAX = 120.0
LAST_MOMENT_SECONDS = 0.2
OUTPUT_BYTES_READ = 2_000
NEEDED = frozenset(
    {"jobsvc", "ray", "msgspec", "fastapi", "starlette", "uvicorn", "httpx", "psutil", "typer"}
)


def hidden_module(folder: Path) -> str | None:
    """A file here that Python would take for a module that every process of the service needs, in words."""
    needed = {
        name for name, module in [*sys.modules.items()] if "." not in name and _is_not_here(module, folder)
    }
    for path in sorted(folder.glob("*")):
        name = path.stem if path.suffix == ".py" else path.name
        is_module = path.suffix == ".py" or (path / "__init__.py").exists()
        if is_module and (name in needed & sys.stdlib_module_names or name in NEEDED):
            if name == __package__ and path == Path(__file__).parent:
                continue  # the folder of jobsvc's own source
            return f"{path} hides the module {name!r} that jobsvc needs: give it another name"
    return None


def _is_not_here(module: object, folder: Path) -> bool:
    file = getattr(module, "__file__", None)
    return not isinstance(file, str) or Path(file).parent != folder


class _Told(msgspec.Struct):
    """One line of the process that imports."""

    importing: str | None = None
    problem: str | None = None
    code: ServiceCode | None = None


_told = msgspec.json.Decoder(_Told)


class TaskCheck:
    """The modules being imported. Begun early, asked late: other checks are made meanwhile."""

    def __init__(self, settings: Settings, environment: Mapping[str, str], folder: str | None = None) -> None:
        self._began = time.monotonic()
        self._hidden = hidden_module(Path(folder or os.getcwd()))
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as this
        self._pipe, others_end = os.pipe()
        command = [sys.executable, "-c", "from jobsvc.task_check import main; main()", str(others_end)]
        command += ["shell" if settings.allow_shell else "", *settings.tasks]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                cwd=folder,
                pass_fds=[others_end],
                start_new_session=True,  # what the modules start ends with it
            )
        finally:
            os.close(others_end)

    def code(self, say: Callable[[str], None]) -> ServiceCode:
        """The code that the service will have, with every task. Raises InvalidRequest: module, place, what
        Python says."""
        try:
            if self._hidden is not None:
                raise InvalidRequest(self._hidden, "tasks")
            told = self._last_word(say)
            if told.code is not None:
                return told.code
            self._end_process()
            raise InvalidRequest(told.problem or self._death(told.importing), "tasks")
        finally:
            self.close()

    def _last_word(self, say: Callable[[str], None]) -> _Told:
        last = _Told()
        rest = b""
        is_slow = False
        while True:
            waited = time.monotonic() - self._began
            if waited > IMPORT_SECONDS_MAX:
                waited_for = f"is still being imported after {IMPORT_SECONDS_MAX:g} s"
                return _Told(problem=f"the module {last.importing!r} {waited_for}: what does it wait for?")
            if waited > SLOW_SECONDS and not is_slow:
                is_slow = True
                say(f"importing {last.importing or 'the tasks'}: this takes a while")
            limit = IMPORT_SECONDS_MAX if is_slow else SLOW_SECONDS
            if not select.select([self._pipe], [], [], max(0.0, limit - waited) + 0.01)[0]:
                continue
            data = os.read(self._pipe, 65_536)
            if not data:
                return last
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                last = _told.decode(line)
            if last.problem is not None or last.code is not None:
                return last

    def _death(self, importing: str | None) -> str:
        """The process ended without a word."""
        code = self._process.returncode
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        self._output.seek(0)
        said = self._output.read()[-OUTPUT_BYTES_READ:].decode(errors="replace").strip().splitlines()
        last_line = f"; it said last: {said[-1]}" if said else ""
        if importing is None:
            return f"the modules could not be looked at: {how}{last_line}"
        return f"the module {importing!r} ends the process that imports it ({how}){last_line}"

    def close(self) -> None:
        """End the process, and whatever it started."""
        if self._pipe < 0:
            return
        self._end_process()
        os.close(self._pipe)
        self._output.close()
        self._pipe = -1

    def _end_process(self) -> None:
        try:
            self._process.wait(LAST_MOMENT_SECONDS)  # if it ends by itself, its own exit code tells more
        except subprocess.TimeoutExpired:
            pass
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._process.wait()


def check_tasks(
    settings: Settings,
    environment: Mapping[str, str],
    say: Callable[[str], None] = lambda _: None,
    folder: str | None = None,
) -> ServiceCode:
    """The same in one step."""
    return TaskCheck(settings, environment, folder).code(say)


def main() -> None:
    """In the process that imports: the pipe's descriptor, `shell` or nothing, and the modules."""
    pipe = int(sys.argv[1])
    os.set_inheritable(pipe, False)
    allow_shell, modules = sys.argv[2] == "shell", sys.argv[3:]
    sys.argv[1:] = []

    def tell(told: _Told) -> None:
        line = memoryview(msgspec.json.encode(told) + b"\n")
        while line:
            line = line[os.write(pipe, line) :]

    registry = builtin_registry(allow_shell)
    before = list(sys.modules)
    for name in modules:
        tell(_Told(importing=name))
        try:
            registry.add_module(name)
        except InvalidRequest as error:
            tell(_Told(problem=error.detail))
            os._exit(0)
    tell(_Told(code=ServiceCode(project_modules(before), registry.names())))
    os._exit(0)  # threads that a module started do not hold it up
