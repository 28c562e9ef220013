"""How many jobs a worker asks for."""

from __future__ import annotations

from jobsvc.prefetch import BusySeconds, Prefetch


def measured(task: str, seconds: float, times: int, **chosen: float) -> Prefetch:
    prefetch = Prefetch(0.2, int(chosen.get("jobs_max", 1000)), 5.0)
    for _ in range(times):
        prefetch.ended(task, seconds)
    return prefetch


def test_it_begins_with_one_and_grows_by_what_has_ended() -> None:
    assert measured("t", 0.001, 0).room({}, 0.0) == 1
    assert measured("t", 0.001, 0).room({"t": 1}, 0.0) == 0
    assert measured("t", 0.001, 1).room({}, 0.0) == 2
    assert measured("t", 0.001, 7).room({"t": 3}, 0.0) == 5


def test_it_holds_a_window_of_work_and_counts_what_is_held() -> None:
    prefetch = measured("t", 0.0099, 500)
    assert prefetch.room({}, 0.0) in (19, 20)
    assert prefetch.room({"t": 15}, 0.0) in (4, 5)
    assert prefetch.room({"t": 30}, 0.0) == 0
    assert measured("t", 0.00001, 5000, jobs_max=100).room({}, 0.0) == 100


def test_what_is_not_measured_counts_as_a_whole_window() -> None:
    assert measured("t", 0.001, 500).room({"other": 2}, 0.0) == 0


def test_long_jobs_one_ahead_and_none_behind_one_that_goes_on() -> None:
    prefetch = measured("t", 2.0, 10)
    assert prefetch.room({}, 0.0) == 1
    assert prefetch.room({"t": 1}, 1.0) == 1
    assert prefetch.room({"t": 2}, 1.0) == 0
    assert prefetch.room({"t": 1}, 5.1) == 0
    assert measured("t", 60.0, 10).room({"t": 1}, 0.0) == 0


def test_what_is_too_much_goes_back_from_the_end() -> None:
    prefetch = measured("t", 0.5, 10)
    assert prefetch.surplus(["t"], 0.1) == 0
    assert prefetch.surplus(["t"] * 10, 0.1) == 9
    assert prefetch.surplus(["t"] * 10, 6.0) == 10
    assert prefetch.surplus(["new"] * 10, 0.1) == 0


def test_busy_seconds_survive_a_report_that_did_not_arrive() -> None:
    busy = BusySeconds()
    busy.add("a", 1, 0.5)
    taken = busy.take()
    assert busy.take() == {}
    busy.add("a", 2, 1.0)
    busy.put_back(taken)
    assert busy.take() == {"a": (3, 1.5)}
