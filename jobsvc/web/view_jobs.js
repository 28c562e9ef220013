// Jobs: a filter that lives in the address, pages by cursor, actions on some or on all that match.
//
// A page is pinned below a place in the order of acceptance, so rows do not move under the pointer while new
// jobs come in: they are counted, and shown when asked for. A row that left the filter stays, greyed.

import { Component, Fragment, h } from "./preact.mjs";
import { change } from "./api.js";
import { describe, openBulk } from "./bulk.js";
import { count, duration, secondsSince } from "./format.js";
import { ActionButton, JobLink, Live, STATES, Scroll, StateMark, When, jobsHref } from "./parts.js";
import { notify, store } from "./store.js";

const PAGE = 50;
const SEARCHES_MAX = 20;
const FILTERS = ["state", "queue", "task", "batch", "failure"];

// "state:failed queue:images" and the words of the filter box.
export function parseFilter(text) {
  const filter = {};
  for (const word of text.trim().split(/\s+/).filter(Boolean)) {
    const colon = word.indexOf(":");
    const name = colon > 0 ? word.slice(0, colon) : STATES.includes(word) ? "state" : "task";
    const value = colon > 0 ? word.slice(colon + 1) : word;
    if (!FILTERS.includes(name)) return { problem: `“${name}” is no filter. There are: ${FILTERS.join(", ")}.` };
    if (name === "state" && !STATES.includes(value)) return { problem: `“${value}” is no state. There are: ${STATES.join(", ")}.` };
    filter[name] = value;
  }
  return { filter };
}

const JOB_ID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i;

class FilterBox extends Component {
  constructor(props) {
    super(props);
    this.state = { problem: null };
  }

  render({ filter }, { problem }) {
    const text = Object.entries(filter)
      .map(([name, value]) => `${name}:${value}`)
      .join(" ");
    const send = (event) => {
      event.preventDefault();
      const typed = new FormData(event.target).get("filter").trim();
      if (JOB_ID.test(typed)) {
        location.hash = `#/jobs/${typed.toLowerCase()}`;
        return;
      }
      const parsed = parseFilter(typed);
      this.setState({ problem: parsed.problem ?? null });
      if (parsed.filter) location.hash = jobsHref(parsed.filter);
    };
    return h(
      "form",
      { class: "filter", onSubmit: send, role: "search" },
      h("label", { for: "filter" }, "Filter"),
      h("input", {
        key: text,
        id: "filter",
        name: "filter",
        "data-filter": true,
        defaultValue: text,
        value: undefined,
        placeholder: "state:failed queue:images task:… batch:…  or a job's id",
        autocomplete: "off",
        spellcheck: false,
        "aria-describedby": problem ? "filter-problem" : undefined,
      }),
      h("button", { type: "submit" }, "Show"),
      text ? h("a", { class: "button", href: "#/jobs" }, "Clear") : null,
      problem ? h("p", { id: "filter-problem", class: "problem", role: "alert" }, problem) : null,
    );
  }
}

function lastRun(job) {
  if (job.running) return secondsSince(job.running.leased_at);
  return job.attempts.length ? job.attempts[job.attempts.length - 1].seconds : null;
}

function note(job) {
  if (job.error) return `${job.error.type}: ${job.error.message}`;
  if (job.waiting) return `waits ${job.waiting}`;
  return job.worker ?? "";
}

function Row({ job, selected, onSelect }) {
  return h(
    "tr",
    { "data-row": job.id, tabIndex: -1, class: job.left ? "left" : "" },
    h("td", null, h("input", { type: "checkbox", checked: selected, "aria-label": `Select ${job.id}`, onChange: onSelect })),
    h("td", null, h(StateMark, { job }), job.left ? h("span", { class: "dim" }, " left the filter") : null),
    h("td", null, h(JobLink, { id: job.id })),
    h("td", null, job.task),
    h("td", null, job.queue),
    h("td", { class: "number" }, `${job.failures + (job.running || job.state === "succeeded" ? 1 : 0)}/${job.max_attempts}`),
    h("td", null, h(When, { at: job.created_at, relative: true })),
    h("td", { class: "number" }, duration(lastRun(job))),
    h("td", { class: "note", title: note(job) }, note(job).slice(0, 200)),
  );
}

export class Jobs extends Component {
  constructor(props) {
    super(props);
    this.searches = 0;
    this.state = { rows: [], selected: new Set(), pin: null, back: [], top: null, next: null, working: false };
  }

  componentDidUpdate(before) {
    if (String(before.query) !== String(this.props.query)) {
      this.go(null, []);
    }
  }

  filter() {
    return Object.fromEntries(FILTERS.map((name) => [name, this.props.query.get(name)]).filter(([, value]) => value));
  }

  held() {
    return this.hover || this.state.selected.size > 0;
  }

  // Rows that are on the screen stay where they are while somebody points at them.
  take(page) {
    const { rows, pin, back } = this.state;
    if (!page.jobs.length && page.cursor !== null && this.searches < SEARCHES_MAX) {
      this.searches += 1; // nothing among the jobs that one answer looks at: on with older ones
      this.setState({ pin: page.cursor, back: back.length ? back : [null], next: page.cursor, top: page.top, rows: [] });
      return;
    }
    let shown = page.jobs;
    if (rows.length && this.held() && pin !== null) {
      const fresh = new Map(page.jobs.map((job) => [job.id, job]));
      shown = rows.map((job) => fresh.get(job.id) ?? { ...job, left: true });
    }
    const changes = { rows: shown, next: page.cursor, top: page.top };
    if (pin === null) changes.pin = page.top;
    // A list that is not full shows what is new by itself: nothing is pushed away.
    else if (!back.length && page.jobs.length < PAGE && page.top !== pin && !this.held()) changes.pin = page.top;
    this.setState(changes);
  }

  go(pin, back) {
    this.searches = 0;
    this.setState({ pin, back, rows: [], selected: new Set() });
  }

  toggle(id) {
    const selected = new Set(this.state.selected);
    if (!selected.delete(id)) selected.add(id);
    this.setState({ selected });
  }

  async act(action) {
    const ids = [...this.state.selected];
    this.setState({ working: true });
    const answers = await Promise.allSettled(ids.map((id) => change("POST", `v1/jobs/${id}/${action}`)));
    const refused = answers.filter((answer) => answer.status === "rejected");
    const done = ids.length - refused.length;
    notify(`${count(done)} of ${count(ids.length)} ${action === "cancel" ? "cancelled" : "put back"}.${refused.length ? ` ${refused[0].reason.message}` : ""}`);
    this.setState({ working: false, selected: new Set() });
  }

  render() {
    const { rows, selected, pin, back, top, next, working } = this.state;
    const filter = this.filter();
    const query = new URLSearchParams({ ...filter, limit: PAGE });
    if (pin !== null) query.set("cursor", pin);
    const newer = pin !== null && top !== null && !back.length ? Number(top) - Number(pin) : 0;
    return h(
      Fragment,
      null,
      h("h1", { tabIndex: -1 }, "Jobs"),
      h(FilterBox, { filter }),
      h(
        "div",
        { onPointerEnter: () => (this.hover = true), onPointerLeave: () => (this.hover = false) },
        h(Live, { url: `v1/jobs?${query}`, keep: true, every: 1.5, onData: (page) => this.take(page) }, () => [
          h(
            "div",
            { class: "over" },
            h("p", null, this.title(filter, rows.length, next)),
            h("div", { class: "buttons" }, this.actions(filter, selected, working)),
            newer > 0 || back.length
              ? h("button", { type: "button", "data-key": ".", onClick: () => this.go(null, []) }, back.length ? "To the newest" : `Show the newest: ${count(newer)} accepted since`)
              : null,
          ),
          rows.length ? this.table(rows, selected) : this.nothing(filter, next),
          h(
            "div",
            { class: "under" },
            h(
              "div",
              { class: "buttons" },
              h("button", { type: "button", "data-key": "[", disabled: !back.length, onClick: () => this.go(back[back.length - 1], back.slice(0, -1)) }, "‹ newer"),
              h("button", { type: "button", "data-key": "]", disabled: next === null, onClick: () => this.go(next, [...back, pin]) }, "older ›"),
            ),
          ),
        ]),
      ),
    );
  }

  title(filter, shown, next) {
    const names = Object.keys(filter);
    const counts = store.summary?.counts;
    let of = "";
    if (counts && names.length === 0) of = ` of ${count(Object.values(counts).reduce((sum, each) => sum + each, 0))} held`;
    else if (counts && names.length === 1 && filter.state) of = ` of ${count(counts[filter.state])} ${filter.state}`;
    else if (next !== null) of = ", and there are more,";
    return `Showing ${count(shown)}${of}${names.length ? ` · ${describe(filter)}` : ""}, newest first`;
  }

  nothing(filter, next) {
    if (next !== null) return h("p", { class: "empty" }, "None among the jobs looked at so far; older ones may match. Go on with “older”.");
    if (Object.keys(filter).length) return h("p", { class: "empty" }, `No job matches ${describe(filter)}. `, h("a", { href: "#/jobs" }, "Show all jobs"));
    const line = `curl -X POST ${location.origin}${location.pathname}v1/jobs -H 'Content-Type: application/json' -d '{"task": "jobsvc.echo", "args": ["hello"]}'`;
    return h("div", { class: "empty" }, h("p", null, "No jobs yet. Send one:"), h("pre", { tabIndex: 0 }, line), h("pre", { tabIndex: 0 }, "jobsvc enqueue jobsvc.echo hello"));
  }

  actions(filter, selected, working) {
    const some = selected.size > 0;
    const named = Object.keys(filter).length > 0;
    const over = filter.state && ["succeeded", "failed", "cancelled"].includes(filter.state);
    const dead = !filter.state || ["failed", "cancelled"].includes(filter.state);
    return [
      some ? h("span", { key: "n" }, `${count(selected.size)} selected`) : null,
      some ? h(ActionButton, { key: "r", disabled: working, onClick: () => this.act("retry") }, "Retry selected") : null,
      some ? h(ActionButton, { key: "c", danger: true, disabled: working, onClick: () => this.act("cancel") }, "Cancel selected") : null,
      !some && named && dead ? h(ActionButton, { key: "ra", onClick: () => openBulk("retry", filter) }, "Retry all that match…") : null,
      !some && named && !over ? h(ActionButton, { key: "ca", danger: true, onClick: () => openBulk("cancel", filter) }, "Cancel all that match…") : null,
    ];
  }

  table(rows, selected) {
    const all = rows.length > 0 && rows.every((job) => selected.has(job.id));
    const names = ["state", "id", "task", "queue", "attempt", "accepted", "ran", "note"];
    return h(
      Scroll,
      { label: "Jobs" },
      h(
        "table",
        { class: "jobs" },
        h(
          "thead",
          null,
          h(
            "tr",
            null,
            h("th", { scope: "col" }, h("input", { type: "checkbox", "aria-label": "Select this page", checked: all, onChange: () => this.setState({ selected: new Set(all ? [] : rows.map((job) => job.id)) }) })),
            names.map((name) => h("th", { scope: "col", key: name, class: name === "ran" || name === "attempt" ? "number" : "" }, name)),
          ),
        ),
        h("tbody", null, rows.map((job) => h(Row, { key: job.id, job, selected: selected.has(job.id), onSelect: () => this.toggle(job.id) }))),
      ),
    );
  }
}

