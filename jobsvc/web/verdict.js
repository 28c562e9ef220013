// The one line: does it work? Returns [tone, word, text]; the first rule that fits speaks.

import { count, duration, rate, secondsSince } from "./format.js";

const OLD_SECONDS = 300;
const STUCK_SECONDS = 30;

export function verdict(summary) {
  const { counts, workers } = summary;
  const oldest = secondsSince(summary.oldest_queued_at);
  if (!summary.leader || counts === null) {
    return ["bad", "No leader", "No manager leads at the moment. What was accepted is safe; running jobs go on."];
  }
  const crew = Object.values(workers ?? {}).reduce((sum, number) => sum + number, 0);
  const heldBack = workers?.held_back ?? 0;
  const busy = counts.running > 0 || summary.finished_per_second > 0;
  const total = Object.values(counts).reduce((sum, number) => sum + number, 0);
  if (!summary.ready) return ["bad", "Not committing", `${summary.problem}.`];
  if (summary.paused_queued > 0 && summary.paused_queued === counts.queued && !counts.running) {
    return ["warn", "Held", `${count(counts.queued)} jobs wait in paused queues: ${summary.paused.join(", ")}.`];
  }
  const share = summary.finished_per_second > 0 ? summary.failed_per_second / summary.finished_per_second : 0;
  if (share > 0.1) {
    return ["bad", "Failing", `${Math.round(share * 100)} % of the jobs that ended in the last minute failed.`];
  }
  if (heldBack) {
    const pool = summary.pools.find((each) => each.held_back);
    const why = pool ? ` Pool ${pool.name}: ${pool.waiting}.` : "";
    return [heldBack === crew ? "bad" : "warn", "Held back", `${count(heldBack)} of ${count(crew)} workers can run nothing.${why}`];
  }
  if (counts.queued > summary.paused_queued && !busy && oldest > STUCK_SECONDS) {
    const pool = summary.pools.find((each) => each.waiting);
    const why = pool ? ` Pool ${pool.name} waits: ${pool.waiting}.` : "";
    return ["bad", "Stuck", `${count(counts.queued)} jobs wait and none runs; the oldest for ${duration(oldest)}.${why}`];
  }
  if (oldest > OLD_SECONDS && counts.queued > summary.paused_queued) {
    return ["warn", "Behind", `The oldest of ${count(counts.queued)} queued jobs waits for ${duration(oldest)}.`];
  }
  if (counts.running || counts.queued) {
    const waits = counts.queued ? `, ${count(counts.queued)} wait, the oldest for ${duration(oldest)}` : ", nothing waits";
    return ["good", "Working", `${count(counts.running)} running${waits}.`];
  }
  if (summary.finished_per_second >= 1) {
    return ["good", "Working", `${rate(summary.finished_per_second)} jobs end per second, nothing waits.`];
  }
  const here = crew === 1 ? "1 worker is" : `${count(crew)} workers are`;
  if (total === 0) return ["good", "Ready", `No job yet; ${here} here.`];
  if (counts.scheduled) return ["good", "Idle", `${count(counts.scheduled)} jobs wait for their time; ${here} here.`];
  return ["good", "Idle", `Nothing waits; ${here} here.`];
}
