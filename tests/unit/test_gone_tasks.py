"""Jobs whose task is gone are named when the service comes up."""

from __future__ import annotations

from jobsvc.client import Client
from jobsvc.gone_tasks import words_about_gone_tasks

from .local_service import LocalService, unused_url


def test_waiting_jobs_of_a_task_that_is_gone_are_named() -> None:
    with LocalService(data="memory") as service, Client(service.url) as client:
        # given jobs that wait, one of them for its time
        service.working = False
        client.enqueue("jobsvc.echo", 1)
        client.enqueue("jobsvc.echo", 2, delay=600)
        client.enqueue("jobsvc.sleep", 1)
        # when the modules have one of the tasks no more, then that one is named, with how many wait
        (word,) = words_about_gone_tasks([service.url], None, {"jobsvc.sleep"})
        assert "'jobsvc.echo'" in word and "(2)" in word
        assert words_about_gone_tasks([service.url], None, {"jobsvc.sleep", "jobsvc.echo"}) == []
        service.working = True


def test_a_service_that_does_not_answer_is_no_error() -> None:
    (word,) = words_about_gone_tasks([unused_url()], None, [])
    assert "could not be seen" in word
