"""From the lines of a comparison to tables in Markdown: one for readers, one with everything."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from .compare_lines import Cell, Cells, Line, cells
from .peers.roster import PEERS, TITLES

RATES = ("enqueue_each", "enqueue_bulk", "drain", "w1_end_to_end", "w2_end_to_end")
WITH_SPREAD = frozenset({"w1_end_to_end", "w2_end_to_end"})
HEAD = (
    "",
    "W1 one by one, jobs/s",
    "W1 in bulk, jobs/s",
    "W1 drain, jobs/s",
    "W1 end to end, jobs/s",
    "W2 end to end, jobs/s",
    "idle, p50 / p99 ms",
    "bytes per queued job",
    "after a kill of all workers",
)
HOW = """\
### How it is measured

- Each peer has a virtualenv, a fresh broker or service and two worker processes of its own; the client
  runs on the same cores. W1 is a no-op with a 200-byte argument, W2 sha512 × 1,000 over 16 KiB.
- One by one: no worker runs; one caller waits for each answer of the broker, without HTTP. For jobsvc it
  is single `PUT`s over HTTP by 32 callers.
- In bulk: the peer's own way to send many, while no worker runs (– where it has none).
- Drain: of a full queue, from the start of the first job to the last result visible to the client.
- End to end: workers are up and idle; from the first enqueue, in bulk where there is such a thing, to the
  last result visible.
- Every result is read back and compared with the right one, outside of the time (Procrastinate keeps
  none).
- Idle: one job at a time, from the client library's call to the result in hand.
- Bytes per queued job: what the broker says of itself (Redis), tables and indexes (PostgreSQL), or the
  growth of the processes that hold them (jobsvc: the leader; Ray: caller, raylet and GCS).
- Kill: 6 jobs of 3 s; SIGKILL to all workers and their children while two or more run; new workers at
  once. A killed job may have to wait behind those that were waiting already; "any job" is the first to begin
  after the kill. What has not been done until the deadline need not be lost: some peers run such jobs
  again after minutes or an hour."""


def report(lines: list[Line]) -> str:
    found = cells(lines)
    parts = ["\n".join(_short_table(lines, found))]
    parts += ["\n".join(f"- {note}" for note in _notes(lines, found)), HOW]
    parts.append("### All measurements\n\n" + "\n".join(_full_table(lines, found)))
    return "\n\n".join(parts) + "\n"


def number(value: float) -> str:
    """Three figures are as many as rounds agree on."""
    if value >= 100:
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{value:.3g}"


def plural(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


# --- the short table ---------------------------------------------------------------------------------


def _short_table(lines: list[Line], found: Cells) -> Iterator[str]:
    """A row for each peer and, for jobsvc, for each store: that of Redis's two settings in one cell."""
    yield _row(HEAD)
    yield _row(["---"] * len(HEAD))
    for peer, modes in sorted(rows(found), key=lambda row: _order(row, found)):
        rates = [_beside(found, peer, modes, measure) for measure in RATES]
        once = modes[0] == PEERS[peer].modes[0]
        yield _row(
            [
                _title(peer, modes),
                *rates,
                _latency(found, peer, modes[0]),
                _memory(lines, peer) if once else "–",
                _crash(lines, peer) if once else "–",
            ]
        )


def rows(found: Cells) -> list[tuple[str, tuple[str, ...]]]:
    """Peers with the modes that share a row, of those with any rate."""
    wanted: list[tuple[str, tuple[str, ...]]] = []
    for peer, entry in PEERS.items():
        groups = [(mode,) for mode in entry.modes] if peer == "jobsvc" else [entry.modes]
        wanted += [(peer, group) for group in groups]
    return [
        (peer, modes)
        for peer, modes in wanted
        if any((peer, mode, measure) in found for mode in modes for measure in RATES)
    ]


def _order(row: tuple[str, tuple[str, ...]], found: Cells) -> tuple[int, float]:
    """jobsvc first, what keeps nothing last, between them by end-to-end rate."""
    peer, modes = row
    cell = found.get((peer, modes[0], "w1_end_to_end"))
    group = 0 if peer == "jobsvc" else 2 if modes == ("none",) else 1
    return group, -(cell.median if cell else 0.0)


def _title(peer: str, modes: tuple[str, ...]) -> str:
    if peer == "jobsvc":
        return "**jobsvc**" if modes == ("fsync",) else "**jobsvc**, S3 (ministack)"
    return TITLES.get(peer, peer)


def _beside(found: Cells, peer: str, modes: tuple[str, ...], measure: str) -> str:
    shown = []
    for mode in modes:
        cell = found.get((peer, mode, measure))
        if cell is not None:
            spread = f" ±{cell.spread_percent:.0f} %" if measure in WITH_SPREAD and cell.count > 1 else ""
            shown.append(number(cell.median) + spread)
    return " / ".join(shown) or "–"


def _latency(found: Cells, peer: str, mode: str) -> str:
    both = [found.get((peer, mode, measure)) for measure in ("latency_p50", "latency_p99")]
    return " / ".join(number(cell.median) for cell in both if cell is not None) or "–"


def _memory(lines: Iterable[Line], peer: str) -> str:
    sizes = [line for line in lines if (line.peer, line.measure) == (peer, "memory")]
    return number(sizes[0].value or 0.0) if sizes else "–"


def _crash(lines: Iterable[Line], peer: str) -> str:
    """jobsvc is asked in each round, and the worst of them is told."""
    told = [line for line in lines if (line.peer, line.measure) == (peer, "crash_rerun")]
    if not told:
        return "–"
    worst = min(told, key=lambda line: (line.finished or 0, -(line.value or 0.0)))
    left = (worst.jobs or 0) - (worst.finished or 0)
    lost = 0 if worst.held is None else max(0, left - worst.held)
    done = f"{worst.finished} of {worst.jobs} jobs done" + (f", {lost} lost" if lost else "")
    if worst.value is None:
        return f"{done}; the {worst.killed} killed ones not begun again in {worst.deadline_seconds:g} s"
    first = f" (any job: {worst.first_start_seconds:.2g} s)" if worst.first_start_seconds else ""
    return f"{done}; the killed ones begun again after {worst.value:.2g} s{first}"


def _row(texts: Iterable[str]) -> str:
    return f"| {' | '.join(texts)} |"


# --- what the numbers depend on ----------------------------------------------------------------------


def _notes(lines: list[Line], found: Cells) -> Iterator[str]:
    if not lines:
        return
    last = lines[-1]
    rounds = max(line.round for line in lines)
    loads = [line.load_before for line in lines]
    yield (
        f"Medians of {plural(rounds, 'round')}, ± half the distance of the extremes; two numbers in a cell "
        "are Redis with `appendfsync always` / `everysec`, latency is with `always`."
    )
    yield (
        f"{last.machine}; 8 KiB and fdatasync take {last.sync_ms:g} ms; load before a session {min(loads):g} "
        f"to {max(loads):g}; jobsvc at {last.commit}, {last.at[:10]}."
    )
    if any(line.scale != 1.0 for line in lines):
        yield "**Not the usual numbers of jobs: a trial, whose figures mean nothing.**"
    yield from _of_jobsvc(lines, found)
    told = [(peer, entry.note) for peer, entry in PEERS.items() if entry.note and _has(lines, peer)]
    if told:
        yield "; ".join(f"{TITLES.get(peer, peer)}: {note}" for peer, note in told) + "."
    versions = sorted({version for line in lines for version in line.versions})
    if versions:
        yield f"Versions: {', '.join(versions)}."
    yield from _failures(lines)


def _has(lines: Iterable[Line], peer: str) -> bool:
    return any(line.peer == peer for line in lines)


def _of_jobsvc(lines: Iterable[Line], found: Cells) -> Iterator[str]:
    texts = {
        "enqueue_each_busy": "single PUTs by 32 callers while workers run: {} jobs/s",
        "enqueue_each_one_caller": "by one caller: {} jobs/s",
    }
    parts = [
        text.format(number(cell.median))
        for measure, text in texts.items()
        if (cell := found.get(("jobsvc", "fsync", measure)))
    ]
    parts += [
        f"{number(line.value or 0.0)} bytes a job with {line.jobs:,} queued"
        for line in lines
        if (line.peer, line.measure) == ("jobsvc", "memory_of_more")
    ]
    puts = found.get(("jobsvc", "s3", "s3_puts_per_thousand"))
    dollars = found.get(("jobsvc", "s3", "s3_dollars_per_million"))
    if puts and dollars:
        price = f"{dollars.median:.2g} $ for 1,000,000 W1 jobs at the price of S3 Standard"
        parts.append(f"S3: {number(puts.median)} PUTs for 1,000 jobs, {price}")
    if parts:
        yield f"jobsvc: {'; '.join(parts)}."


def _failures(lines: Iterable[Line]) -> Iterator[str]:
    measured = {(line.peer, line.mode, line.part, line.round) for line in lines if line.measure == "session"}
    for line in lines:
        session = (line.peer, line.mode, line.part, line.round)
        if line.measure == "failed" and session not in measured:
            reason = " ".join(line.reason.split())[-200:]
            yield f"Not measured: {line.peer} {line.mode} {line.part}, round {line.round}: {reason}"


# --- the full table ----------------------------------------------------------------------------------


def _full_table(lines: list[Line], found: Cells) -> Iterator[str]:
    units = {(line.peer, line.mode, line.measure): line for line in lines}
    yield _row(("peer", "sync", "measure", "median", "lowest", "highest", "unit", "rounds", "jobs", "how"))
    yield _row(["---"] * 10)
    for key, cell in found.items():
        line = units[key]
        if line.measure in ("session", "crash_new_workers_work"):
            continue
        jobs = f"{line.jobs:,}" if line.jobs else ""
        yield _row([*key, *_numbers(cell), line.unit, str(cell.count), jobs, line.by or line.of])


def _numbers(cell: Cell) -> list[str]:
    return [number(cell.median), number(cell.low), number(cell.high)]
