"""Links from what the API answers to Ray's dashboard, where its address is known."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

ActorId = Annotated[str | None, Meta(description="in Ray; null: not known yet")]
RayUrl = Annotated[str | None, Meta(description="the actor's page in Ray's dashboard")]


def actor_link(dashboard_url: str | None, actor: str) -> str | None:
    """The page of an actor. None if nobody knows the dashboard, or the actor did not say its id."""
    return f"{dashboard_url.rstrip('/')}/#/actors/{actor}" if dashboard_url and actor else None
