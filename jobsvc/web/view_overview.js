// Overview: one look tells whether it works.

import { Component, Fragment, h } from "./preact.mjs";
import { Chart } from "./charts.js";
import { ago, count, duration, rate, secondsSince } from "./format.js";
import { AsOf, Live, jobsHref } from "./parts.js";
import { store } from "./store.js";
import { verdict } from "./verdict.js";

const RANGES = [
  [900, "15 min"],
  [3600, "1 h"],
  [86_400, "24 h"],
  [259_200, "72 h"],
];

function Tile({ title, value, href, note }) {
  const inside = [h("span", { class: "tile-title" }, title), h("strong", null, value), note ? h("span", { class: "dim" }, note) : null];
  return href ? h("a", { class: "tile", href }, inside) : h("div", { class: "tile" }, inside);
}

function Tiles({ summary }) {
  const workers = summary.workers ?? {};
  const all = Object.values(workers).reduce((sum, number) => sum + number, 0);
  const wanted = summary.pools.reduce((sum, pool) => sum + pool.wanted, 0);
  return h(
    "div",
    { class: "tiles" },
    h(Tile, { title: "queued", value: count(summary.counts.queued), href: jobsHref({ state: "queued" }), note: summary.paused_queued ? `${count(summary.paused_queued)} in paused queues` : null }),
    h(Tile, { title: "oldest waits", value: duration(secondsSince(summary.oldest_queued_at)), note: summary.oldest_queue ? `in ${summary.oldest_queue}` : "nothing waits" }),
    h(Tile, { title: "running", value: count(summary.counts.running), href: jobsHref({ state: "running" }) }),
    h(Tile, { title: "in / s", value: rate(summary.enqueued_per_second), note: "last minute" }),
    h(Tile, { title: "out / s", value: rate(summary.finished_per_second), note: `failed: ${rate(summary.failed_per_second)} / s` }),
    h(Tile, { title: "workers busy", value: summary.workers ? `${count(workers.busy ?? 0)} / ${count(all)}` : "–", href: "#/workers", note: `${count(wanted)} wanted` }),
    h(Tile, { title: "failed, held", value: count(summary.counts.failed), href: "#/failures", note: summary.failure_groups === 1 ? "of one kind" : `of ${count(summary.failure_groups)} kinds` }),
  );
}

// Rates between two points of running totals. A total that fell belongs to another count.
function rates(points, column) {
  return points.map((point, place) => {
    if (place === 0) return null;
    const seconds = point[0] - points[place - 1][0];
    return seconds > 0 ? Math.max(0, point[column] - points[place - 1][column]) / seconds : null;
  });
}

function Charts({ history }) {
  const { columns, points, step_seconds: step } = history;
  const at = (name) => columns.indexOf(name);
  const times = points.map((point) => point[0]);
  const values = (name) => points.map((point) => point[at(name)]);
  const marks = history.takeovers.map((each) => ({ at: Date.parse(each.at) / 1000, text: `epoch ${each.epoch}` }));
  const shared = { times, step, marks };
  return h(
    "div",
    { class: "charts" },
    h(Chart, {
      ...shared,
      title: "Jobs that wait and run",
      format: count,
      series: [
        { name: "queued", values: values("queued") },
        { name: "running", values: values("running") },
        { name: "scheduled", values: values("scheduled") },
      ],
    }),
    h(Chart, {
      ...shared,
      title: "Throughput, jobs per second",
      series: [
        { name: "in", values: rates(points, at("enqueued")) },
        { name: "out", values: rates(points, at("finished")) },
        { name: "failed", values: rates(points, at("failed")) },
      ],
    }),
    h(Chart, { ...shared, title: "Age of the oldest queued job", format: duration, series: [{ name: "oldest", values: values("oldest_queued_age") }] }),
    h(Chart, {
      ...shared,
      title: "Workers",
      format: count,
      series: [
        { name: "all", values: values("workers") },
        { name: "busy", values: values("busy") },
      ],
    }),
  );
}

function TopFailures({ failures }) {
  if (!failures.groups.length) return h("p", { class: "empty" }, "No job is failed.");
  return h(
    "ol",
    { class: "top" },
    failures.groups.map((group) =>
      h(
        "li",
        { key: group.fingerprint },
        h("a", { href: jobsHref({ state: "failed", failure: group.fingerprint }) }, h("strong", null, count(group.count)), ` × ${group.type}`),
        ` in ${group.task}: `,
        h("span", { class: "dim" }, group.message.slice(0, 140) || "no message"),
        h("span", { class: "dim" }, ` · latest ${ago(group.last_at)}`),
      ),
    ),
  );
}

export class Overview extends Component {
  constructor(props) {
    super(props);
    this.state = { seconds: Number(localStorage.getItem("jobsvc.range")) || 900 };
  }

  choose(seconds) {
    localStorage.setItem("jobsvc.range", seconds);
    this.setState({ seconds });
  }

  render(_, { seconds }) {
    const { summary } = store;
    const [tone, word, text] = summary ? verdict(summary) : ["", "…", "Asking how it is."];
    return h(
      Fragment,
      null,
      h("h1", { tabIndex: -1, class: `verdict ${tone}` }, h("strong", null, word), h("span", null, ` ${text}`)),
      summary?.counts ? h(Tiles, { summary }) : null,
      summary?.counts ? h(AsOf, { at: store.knownAt }) : null,
      h(
        "div",
        { class: "ranges", role: "group", "aria-label": "Range of the charts" },
        RANGES.map(([range, name]) =>
          h("button", { key: range, type: "button", class: "small", "aria-pressed": String(range === seconds), onClick: () => this.choose(range) }, name),
        ),
      ),
      h(Live, { url: `v1/history?seconds=${seconds}`, every: 5, keep: true }, (history) => h(Charts, { history })),
      h("h2", null, "Top failures"),
      h(Live, { url: "v1/failures?limit=5", every: 5 }, (failures) => h(TopFailures, { failures })),
    );
  }
}
