// Parts that several views share.

import { Component, h } from "./preact.mjs";
import { Problem, getJson } from "./api.js";
import { ago, clock, count, duration } from "./format.js";
import { onSummary } from "./live.js";
import { canAct, notify, store, update } from "./store.js";

export const STATES = ["scheduled", "queued", "running", "succeeded", "failed", "cancelled"];
export const GLYPHS = {
  scheduled: "◷",
  retrying: "↻",
  queued: "○",
  running: "▶",
  cancelling: "▶",
  succeeded: "✓",
  failed: "✕",
  cancelled: "⊘",
};

// A state is a glyph and a word and a colour, never a colour alone.
export function StateMark({ job, state }) {
  let shown = state ?? job.state;
  if (job?.state === "scheduled" && job.attempt > 0) shown = "retrying";
  if (job?.state === "running" && job.cancel_requested) shown = "cancelling";
  return h("span", { class: `mark ${shown}` }, h("span", { "aria-hidden": "true" }, GLYPHS[shown] ?? "·"), ` ${shown}`);
}

export function When({ at, withDate = false, relative = false }) {
  if (!at) return h("span", { class: "dim" }, "–");
  return h("time", { datetime: at, title: at }, relative ? ago(at) : clock(at, withDate));
}

export function JobLink({ id, text }) {
  return h("a", { href: `#/jobs/${encodeURIComponent(id)}`, class: "id", title: id }, text ?? `…${id.slice(-12)}`);
}

export function jobsHref(filter) {
  return `#/jobs?${new URLSearchParams(filter)}`;
}

export function RayLink({ path, text }) {
  const base = store.summary?.ray_dashboard_url;
  if (!base || !/^https?:\/\//.test(base)) return null;
  return h("a", { href: `${base.replace(/\/$/, "")}/${path}`, rel: "noreferrer", target: "_blank" }, text, h("span", { class: "dim" }, " ↗"));
}

export function copyText(text) {
  const done = () => notify("Copied.");
  if (navigator.clipboard) {
    navigator.clipboard.writeText(text).then(done, () => notify("The browser did not allow to copy."));
    return;
  }
  const area = document.createElement("textarea"); // no clipboard on plain http to another name
  area.value = text;
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
  done();
}

export function Copy({ text, label }) {
  return h("button", { type: "button", class: "small", onClick: () => copyText(text), title: text }, label);
}

export function ProblemBox({ problem }) {
  const again = problem instanceof Problem && problem.status === 503;
  return h(
    "div",
    { class: "problem", role: "alert" },
    h("strong", null, again ? "Nobody can answer this now. " : "This could not be read. "),
    problem.message,
    problem.requestId ? h("span", { class: "dim" }, ` (request ${problem.requestId})`) : null,
  );
}

// How old what is shown is. Every view has one.
export function AsOf({ at }) {
  const seconds = Math.max(0, (Date.now() - at) / 1000);
  const old = seconds > 10;
  return h(
    "p",
    { class: old ? "asof old" : "asof" },
    `as of ${clock(at + store.skew)} · ${duration(Math.floor(seconds))} old`,
  );
}

// Reads one address, and reads it again when the service has changed, no sooner than its last answer was used.
export class Live extends Component {
  constructor(props) {
    super(props);
    this.state = { data: null, at: 0, problem: null };
    this.changed = -1;
  }

  componentDidMount() {
    this.unhook = onSummary((summary) => this.look(summary));
    this.read();
  }

  componentDidUpdate(before) {
    if (before.url !== this.props.url) {
      this.controller?.abort();
      this.busy = false;
      if (!this.props.keep) this.setState({ data: null, problem: null });
      this.read();
    }
  }

  componentWillUnmount() {
    this.unhook();
    this.gone = true;
    this.controller?.abort();
  }

  look(summary) {
    const every = (this.props.every ?? 2) * 1000;
    const due = Date.now() - (this.triedAt ?? 0) >= every;
    const rest = (this.props.rest ?? 30) * 1000; // looks again even if nothing seems to have changed
    const stale = summary.changed !== this.changed || this.state.problem || Date.now() - this.triedAt > rest;
    if (due && stale && !store.paused && !this.busy) this.read();
  }

  async read() {
    const controller = new AbortController();
    this.controller = controller;
    this.busy = true;
    this.triedAt = Date.now();
    const changed = store.summary?.changed ?? -1;
    try {
      const data = await getJson(this.props.url, controller.signal);
      if (this.gone || controller !== this.controller) return;
      this.changed = changed;
      this.props.onData?.(data);
      this.setState({ data, at: Date.now(), problem: null });
    } catch (problem) {
      if (!this.gone && controller === this.controller && problem.name !== "AbortError") this.setState({ problem });
    } finally {
      if (controller === this.controller) this.busy = false;
    }
  }

  render({ children, asOf = true }, { data, at, problem }) {
    const draw = Array.isArray(children) ? children[0] : children;
    return h(
      "div",
      { class: "live" },
      problem && (!data || store.summary?.ready) ? h(ProblemBox, { problem }) : null,
      data ? draw(data, () => this.read()) : problem ? null : h("p", { class: "dim" }, "Reading…"),
      // what has not changed since it was read is as old as the latest summary that says so
      data && asOf ? h(AsOf, { at: store.summary?.changed === this.changed ? Math.max(at, store.knownAt) : at }) : null,
    );
  }
}

// --- dialogs -----------------------------------------------------------------------------------------

export class Dialog extends Component {
  componentDidMount() {
    this.before = document.activeElement;
    this.box.showModal();
  }

  componentWillUnmount() {
    if (this.before?.isConnected) this.before.focus();
  }

  render({ title, children }) {
    return h(
      "dialog",
      {
        ref: (box) => (this.box = box),
        "aria-labelledby": "dialog-title",
        onCancel: (event) => {
          event.preventDefault();
          closeDialog();
        },
      },
      h("h2", { id: "dialog-title" }, title),
      children,
    );
  }
}

export function openDialog(draw) {
  update({ dialog: draw });
}

export function closeDialog() {
  update({ dialog: null });
}

export function ActionButton({ onClick, danger, disabled, children, ...rest }) {
  return h(
    "button",
    { type: "button", class: danger ? "danger" : "", disabled: disabled || !canAct(), onClick, ...rest },
    children,
  );
}

// A table that is wider than the screen scrolls by itself, also by keyboard.
export function Scroll({ label, children }) {
  return h("div", { class: "scroll", tabIndex: 0, role: "region", "aria-label": label }, children);
}

export function StateCounts({ counts, filter = {} }) {
  return STATES.map((state) =>
    h(
      "td",
      { class: "number", key: state },
      counts[state] ? h("a", { href: jobsHref({ ...filter, state }) }, count(counts[state])) : h("span", { class: "dim" }, "0"),
    ),
  );
}
