// Workers and pools: who is there, what each runs, what a pool waits for.

import { Component, Fragment, h } from "./preact.mjs";
import { clock, count, duration } from "./format.js";
import { JobLink, Live, RayLink, Scroll } from "./parts.js";

const PAGE = 50;
const NUMBERS = new Set(["leases", "heard", "process"]);
const JOB_ID = /[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}/;

function Runs({ worker }) {
  if (worker.held_back) {
    return h(Fragment, null, worker.held_back, " ", h("span", { class: "dim" }, `since ${clock(worker.held_back_since)}`));
  }
  const id = worker.current_job?.match(JOB_ID)?.[0];
  if (!id) return worker.current_job ?? h("span", { class: "dim" }, "–");
  return h(Fragment, null, worker.current_job.replace(id, "").replace(/[ :,]+$/, ""), " ", h(JobLink, { id }));
}

function Pools({ pools }) {
  const table = h(
    "table",
    null,
    h("caption", null, "Pools"),
    h("thead", null, h("tr", null, h("th", { scope: "col" }, "pool"), ["workers", "wanted", "least", "most"].map((name) => h("th", { scope: "col", class: "number", key: name }, name)), h("th", { scope: "col" }, "waits for"))),
    h(
      "tbody",
      null,
      pools.map((pool) =>
        h(
          "tr",
          { key: pool.name },
          h("th", { scope: "row" }, pool.name),
          [pool.observed, pool.wanted, pool.min_workers, pool.max_workers].map((number, place) => h("td", { class: "number", key: place }, count(number))),
          h("td", null, pool.waiting ?? h("span", { class: "dim" }, "nothing")),
        ),
      ),
    ),
  );
  return h(Scroll, { label: "Pools" }, table);
}

export class Workers extends Component {
  constructor(props) {
    super(props);
    this.state = { page: 0 };
  }

  render(_, { page }) {
    return h(
      Fragment,
      null,
      h("h1", { tabIndex: -1 }, "Workers"),
      h(Live, { url: "v1/workers", every: 1, rest: 5 }, ({ workers, pools }) => {
        const pages = Math.max(1, Math.ceil(workers.length / PAGE));
        const at = Math.min(page, pages - 1);
        const shown = workers.slice(at * PAGE, (at + 1) * PAGE);
        return h(
          Fragment,
          null,
          h(Pools, { pools }),

          workers.length ? this.table(shown, workers.length) : h("p", { class: "empty" }, "No worker is here. Workers start when there is work, or to fill min_workers."),
          pages > 1
            ? h(
                "div",
                { class: "buttons" },
                h("button", { type: "button", disabled: at === 0, "data-key": "[", onClick: () => this.setState({ page: at - 1 }) }, "‹ before"),
                h("span", null, `${at + 1} of ${pages}`),
                h("button", { type: "button", disabled: at === pages - 1, "data-key": "]", onClick: () => this.setState({ page: at + 1 }) }, "after ›"),
              )
            : null,
        );
      }),
    );
  }

  table(shown, total) {
    return h(
      Scroll,
      { label: "Workers" },
      h(
        "table",
        null,
        h("caption", null, `Workers: ${count(shown.length)} of ${count(total)}`),
        h("thead", null, h("tr", null, ["worker", "state", "runs", "leases", "heard", "pool", "node", "process", "Ray"].map((name) => h("th", { scope: "col", key: name, class: NUMBERS.has(name) ? "number" : "" }, name)))),
        h(
          "tbody",
          null,
          shown.map((worker) =>
            h(
              "tr",
              { key: worker.name },
              h("th", { scope: "row" }, worker.name),
              h("td", null, h("span", { class: `mark worker-${worker.state}` }, worker.state.replace("_", " "))),
              h("td", null, h(Runs, { worker })),
              h("td", { class: "number" }, count(worker.leases)),
              h("td", { class: "number" }, `${duration(worker.seen_seconds_ago)} ago`),
              h("td", null, worker.pool),
              h("td", null, h(RayLink, { path: `#/cluster/nodes/${encodeURIComponent(worker.node)}`, text: worker.node.slice(0, 8) }) ?? worker.node.slice(0, 8)),
              h("td", { class: "number" }, worker.pid),
              h("td", null, worker.actor_id ? h(RayLink, { path: `#/actors/${encodeURIComponent(worker.actor_id)}`, text: "actor" }) : "–"),
            ),
          ),
        ),
      ),
    );
  }
}
