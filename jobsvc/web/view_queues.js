// Queues: what waits where; pause and resume.

import { Fragment, h } from "./preact.mjs";
import { change } from "./api.js";
import { count, duration, rate, secondsSince } from "./format.js";
import { ActionButton, Dialog, Live, STATES, Scroll, StateCounts, closeDialog, openDialog } from "./parts.js";
import { notify } from "./store.js";

async function setPaused(queue, paused, reread) {
  closeDialog();
  try {
    await change("PATCH", `v1/queues/${encodeURIComponent(queue)}`, { paused });
    notify(paused ? `Queue ${queue} is paused.` : `Queue ${queue} goes on.`);
  } catch (problem) {
    notify(`Not done: ${problem.message}`);
  }
  reread();
}

function askPause(queue, reread) {
  openDialog(() =>
    h(
      Dialog,
      { title: `Pause ${queue.name}?` },
      h("p", null, `${count(queue.counts.queued)} queued jobs will wait; ${count(queue.counts.running)} that run go on. New jobs are accepted and wait too.`),
      h(
        "div",
        { class: "buttons" },
        h("button", { type: "button", onClick: closeDialog, autofocus: true }, "Leave it"),
        h(ActionButton, { danger: true, onClick: () => setPaused(queue.name, true, reread) }, "Pause the queue"),
      ),
    ),
  );
}

function Row({ queue, reread }) {
  return h(
    "tr",
    null,
    h("th", { scope: "row" }, queue.name, queue.paused ? h("span", { class: "mark cancelled" }, " ⏸ paused") : null),
    h("td", null, queue.pool),
    h(StateCounts, { counts: queue.counts, filter: { queue: queue.name } }),
    h("td", { class: "number" }, duration(secondsSince(queue.oldest_queued_at))),
    h("td", { class: "number" }, rate(queue.finished_per_second)),
    h(
      "td",
      null,
      queue.paused
        ? h(ActionButton, { onClick: () => setPaused(queue.name, false, reread), "aria-label": `Resume ${queue.name}` }, "Resume")
        : h(ActionButton, { onClick: () => askPause(queue, reread), "aria-label": `Pause ${queue.name}` }, "Pause…"),
    ),
  );
}

export function Queues() {
  return h(
    Fragment,
    null,
    h("h1", { tabIndex: -1 }, "Queues"),
    h(Live, { url: "v1/queues", every: 1, rest: 15 }, ({ queues, unlisted, others }, reread) => {
      if (!queues.length) return h("p", { class: "empty" }, "No queue yet: a queue is made by its first job.");
      const sums = Object.fromEntries(STATES.map((state) => [state, queues.reduce((sum, queue) => sum + queue.counts[state], unlisted ? others[state] : 0)]));
      return h(
        Scroll,
      { label: "Queues" },
        h(
          "table",
          null,
          h(
            "thead",
            null,
            h(
              "tr",
              null,
              ["queue", "pool"].map((name) => h("th", { scope: "col", key: name }, name)),
              STATES.map((name) => h("th", { scope: "col", class: "number", key: name }, name)),
              h("th", { scope: "col", class: "number" }, "oldest waits"),
              h("th", { scope: "col", class: "number" }, "out / s"),
              h("th", { scope: "col" }, "action"),
            ),
          ),
          h("tbody", null, queues.map((queue) => h(Row, { key: queue.name, queue, reread }))),
          unlisted
            ? h("tbody", null, h("tr", null, h("th", { scope: "row" }, `${unlisted} more`), h("td"), h(StateCounts, { counts: others }), h("td"), h("td"), h("td")))
            : null,
          h("tfoot", null, h("tr", null, h("th", { scope: "row" }, "all"), h("td", null), h(StateCounts, { counts: sums }), h("td"), h("td", { class: "number" }, rate(queues.reduce((sum, queue) => sum + queue.finished_per_second, 0))), h("td"))),
        ),
      );
    }),
  );
}
