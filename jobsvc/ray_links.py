"""Links between what the API answers and Ray's dashboard, where its address is known."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from .ports import reachable

ActorId = Annotated[str | None, Meta(description="in Ray; null: not known yet")]
RayUrl = Annotated[str | None, Meta(description="the actor's page in Ray's dashboard")]


def actor_link(dashboard_url: str | None, actor: str) -> str | None:
    """The page of an actor. None if nobody knows the dashboard, or the actor did not say its id."""
    return f"{dashboard_url.rstrip('/')}/#/actors/{actor}" if dashboard_url and actor else None


def page_link(host: str, port: int) -> str:
    """The service's page, for those who look at its actors in Ray's dashboard."""
    return f"http://{reachable(host)}:{port}/"
