// The one stream. Closed while nobody looks, opened again after every end; polled if a proxy holds it back.

import { Problem, events, getJson } from "./api.js";
import { store, update } from "./store.js";

const SILENCE_MS = 10_000; // it tells something each second, whoever leads
const POLL_MS = 5_000;
const PAUSES_MS = [300, 1000, 2000, 4000, 8000, 15_000];

const listeners = new Set();
let stop = null;
let wake = null;

// Called after each summary. Returns how to end it.
export function onSummary(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

function sleep(milliseconds) {
  return new Promise((go) => {
    const timer = setTimeout(go, milliseconds);
    wake = () => {
      clearTimeout(timer);
      go();
    };
  });
}

function linkIs(link) {
  if (store.link !== link) update({ link, linkSince: Date.now() });
}

// What only a manager knows, and what the page goes on showing, with its age, while none answers.
const KNOWN = ["counts", "oldest_queued_at", "oldest_queue", "paused", "paused_queued", "failure_groups", "enqueued_per_second", "finished_per_second", "failed_per_second", "pools", "changed", "records", "epoch"];

function take(summary, link) {
  const before = store.summary;
  const knows = summary.counts !== null;
  if (knows) store.knownAt = Date.now();
  else if (before) for (const name of KNOWN) summary[name] = before[name];
  summary.workers ??= before?.workers ?? null;
  const changes = { summary, summaryAt: Date.now(), skew: Date.parse(summary.now) - Date.now() };
  if (!summary.ready) changes.leaderlessSince = store.leaderlessSince ?? Date.parse(summary.now);
  else changes.leaderlessSince = null;
  if (before && summary.ready && summary.epoch > store.lastEpoch) {
    changes.takeover = { epoch: summary.epoch, leader: summary.leader, at: Date.now() };
  }
  if (summary.ready || !before) changes.lastEpoch = summary.epoch;
  linkIs(link);
  update(changes);
  for (const listener of listeners) listener(summary);
}

async function follow() {
  const controller = new AbortController();
  stop = () => controller.abort();
  try {
    for await (const [name, data] of events("v1/events", controller.signal, SILENCE_MS)) {
      if (name === "summary") take(data, "live");
    }
  } finally {
    stop = null;
  }
}

async function pollOnce() {
  take(await getJson("v1/events"), "polling");
}

export async function runLive() {
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) stop?.();
    wake?.();
  });
  for (let failures = 0; ; ) {
    if (document.hidden) {
      await sleep(60_000);
      continue;
    }
    const seen = store.summaryAt;
    try {
      await follow();
    } catch (error) {
      if (error instanceof Problem && error.status === 401) {
        await sleep(60_000); // until the token is given, which wakes us
        continue;
      }
    }
    if (document.hidden) continue;
    failures = store.summaryAt > seen ? 0 : failures + 1;
    if (failures > 0) {
      try {
        await pollOnce();
        await sleep(POLL_MS);
        continue;
      } catch {
        linkIs("lost");
      }
    }
    const pause = PAUSES_MS[Math.min(failures, PAUSES_MS.length - 1)];
    await sleep(pause * (0.75 + Math.random() / 2));
  }
}

export function reconnect() {
  stop?.();
  wake?.();
}
