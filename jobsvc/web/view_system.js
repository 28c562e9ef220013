// System: who leads, how far the standby is, commits, what the store is asked for and what that costs.

import { Component, Fragment, h } from "./preact.mjs";
import { hasToken } from "./api.js";
import { count, duration, money, rate } from "./format.js";
import { onSummary } from "./live.js";
import { AsOf, Live, RayLink, Scroll, When } from "./parts.js";
import { store } from "./store.js";

const DOLLARS = { put: 0.005 / 1000, list: 0.005 / 1000, get: 0.0004 / 1000, delete: 0 };
const MONTH_SECONDS = 30 * 86_400;
const WINDOW_MS = 60_000;
const NUMBERS = new Set(["epoch", "records applied", "behind", "process"]);

function totals(summary) {
  const sums = {};
  for (const manager of summary.managers) {
    for (const [kind, number] of Object.entries(manager.store_requests)) sums[kind] = (sums[kind] ?? 0) + number;
  }
  return sums;
}

function Managers({ summary }) {
  return h(
    Scroll,
      { label: "Managers" },
    h(
      "table",
      null,
      h("thead", null, h("tr", null, ["manager", "role", "epoch", "records applied", "behind", "health", "node", "process", "Ray"].map((name) => h("th", { scope: "col", key: name, class: NUMBERS.has(name) ? "number" : "" }, name)))),
      h(
        "tbody",
        null,
        summary.managers.map((manager) =>
          h(
            "tr",
            { key: manager.name },
            h("th", { scope: "row" }, manager.name),
            h("td", null, h("span", { class: `mark role-${manager.role}` }, manager.role)),
            h("td", { class: "number" }, count(manager.epoch)),
            h("td", { class: "number" }, count(manager.applied.records)),
            h("td", { class: "number" }, manager.lag === null ? "?" : `${count(manager.lag)} records`),
            h("td", null, manager.healthy ? "good" : manager.problem),
            h("td", null, h(RayLink, { path: `#/cluster/nodes/${encodeURIComponent(manager.node)}`, text: manager.node.slice(0, 8) }) ?? manager.node.slice(0, 8)),
            h("td", { class: "number" }, manager.pid),
            h("td", null, manager.actor_id ? h(RayLink, { path: `#/actors/${encodeURIComponent(manager.actor_id)}`, text: "actor" }) : "–"),
          ),
        ),
      ),
    ),
  );
}

function Store({ summary, rates }) {
  const sums = totals(summary);
  const kinds = Object.keys(sums).sort();
  const cost = (numbers) => Object.entries(numbers).reduce((sum, [kind, number]) => sum + number * (DOLLARS[kind] ?? 0), 0);
  return h(
    Fragment,
    null,
    h(
      Scroll,
      { label: "Requests to the store" },
      h(
      "table",
      null,
      h("thead", null, h("tr", null, h("th", { scope: "col" }, "request"), ["since they began", "per second", "cost on S3", "a month at this rate"].map((name) => h("th", { scope: "col", class: "number", key: name }, name)))),
      h(
        "tbody",
        null,
        kinds.map((kind) =>
          h(
            "tr",
            { key: kind },
            h("th", { scope: "row" }, kind.toUpperCase()),
            h("td", { class: "number" }, count(sums[kind])),
            h("td", { class: "number" }, rates ? rate(rates[kind] ?? 0) : "…"),
            h("td", { class: "number" }, money(cost({ [kind]: sums[kind] }))),
            h("td", { class: "number" }, rates ? money(cost({ [kind]: (rates[kind] ?? 0) * MONTH_SECONDS })) : "…"),
          ),
        ),
      ),
      h("tfoot", null, h("tr", null, h("th", { scope: "row" }, "all"), h("td", { class: "number" }, count(Object.values(sums).reduce((sum, each) => sum + each, 0))), h("td"), h("td", { class: "number" }, money(cost(sums))), h("td", { class: "number" }, rates ? money(cost(Object.fromEntries(kinds.map((kind) => [kind, (rates[kind] ?? 0) * MONTH_SECONDS])))) : "…"))),
      ),
    ),
    h("p", { class: "dim" }, "Requests of the two managers since their processes began; replicas and workers put payloads, large results and logs besides. Prices: $0.005 for 1,000 PUT or LIST, $0.0004 for 1,000 GET. A directory costs nothing."),
  );
}

function Endpoints({ document }) {
  const rows = Object.entries(document.paths).flatMap(([path, methods]) => Object.entries(methods).map(([method, operation]) => [method.toUpperCase(), path, operation.summary]));
  return h(
    "details",
    null,
    h("summary", null, `The API: ${count(rows.length)} requests`),
    h(Scroll, { label: "The API" }, h("table", null, h("tbody", null, rows.map(([method, path, text]) => h("tr", { key: method + path }, h("th", { scope: "row" }, method), h("td", null, h("code", null, path)), h("td", null, text)))))),
  );
}

export class System extends Component {
  constructor(props) {
    super(props);
    this.samples = [];
  }

  componentDidMount() {
    this.unhook = onSummary((summary) => this.sample(summary));
    if (store.summary) this.sample(store.summary);
  }

  componentWillUnmount() {
    this.unhook();
  }

  sample(summary) {
    const at = Date.parse(summary.now);
    this.samples.push({ at, sums: totals(summary) });
    this.samples = this.samples.filter((sample) => at - sample.at <= WINDOW_MS);
  }

  // Over what was seen of the last minute. A count that fell belongs to a process that began anew.
  rates() {
    const first = this.samples[0];
    const last = this.samples[this.samples.length - 1];
    if (!first || last.at - first.at < 3000) return null;
    const seconds = (last.at - first.at) / 1000;
    return Object.fromEntries(Object.entries(last.sums).map(([kind, number]) => [kind, Math.max(0, number - (first.sums[kind] ?? 0)) / seconds]));
  }

  render() {
    const { summary } = store;
    if (!summary) return h("h1", { tabIndex: -1 }, "System");
    const { commits, counts } = summary;
    const held = counts && Object.values(counts).reduce((sum, number) => sum + number, 0);
    return h(
      Fragment,
      null,
      h("h1", { tabIndex: -1 }, "System"),
      h("h2", null, "Managers"),
      h(Managers, { summary }),
      h("h2", null, "Commits"),
      h(
        "dl",
        { class: "facts-list" },
        [
          ["last record", commits.age_seconds === null ? "no leader" : `${duration(commits.age_seconds)} ago`],
          ["p50", duration(commits.p50_seconds)],
          ["p99", duration(commits.p99_seconds)],
          ["of the latest", count(commits.count)],
          ["records so far", count(summary.records)],
          ["jobs held", `${count(held)}, the sum of all states`],
          ["the latest takeover", summary.takeover_seconds === null || summary.epoch < 2 ? "none yet" : `nobody led for ${duration(summary.takeover_seconds)}`],
          ["takeovers", `${count(Math.max(0, summary.epoch - 1))} so far (epoch ${summary.epoch})`],
        ].map(([name, value]) => h("div", { key: name }, h("dt", null, name), h("dd", null, value))),
      ),
      h(AsOf, { at: store.summaryAt }),
      h("h2", null, "Store"),
      h(Store, { summary, rates: this.rates() }),
      h("h2", null, "Failovers"),
      h(Live, { url: "v1/history?seconds=259200", every: 30 }, ({ takeovers }) =>
        takeovers.length
          ? h("ul", null, [...takeovers].reverse().map((each) => h("li", { key: each.epoch }, `epoch ${each.epoch} began at `, h(When, { at: each.at, withDate: true }))))
          : h("p", { class: "empty" }, "None since the leader's process began to look."),
      ),
      h("h2", null, "More"),
      h(
        "ul",
        null,
        hasToken()
          ? h("li", null, "With the token as a header: ", h("code", null, "/docs, /openapi.json, /metrics"))
          : h("li", null, h("a", { href: "docs" }, "API documentation"), ", ", h("a", { href: "openapi.json" }, "OpenAPI"), ", ", h("a", { href: "metrics" }, "metrics for Prometheus")),
        summary.ray_dashboard_url
          ? h("li", null, h(RayLink, { path: "#/actors", text: "Ray dashboard: actors" }), ", ", h(RayLink, { path: "#/serve", text: "Serve" }), ", ", h(RayLink, { path: "#/cluster", text: "cluster" }), ". Jobs of this service are not Ray Jobs: that tab does not list them.")
          : null,
      ),
      h(Live, { url: "openapi.json", every: 3600, asOf: false }, (document) => h(Endpoints, { document })),
    );
  }
}
