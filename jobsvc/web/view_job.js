// One job: why it waits, what its attempts did, its error, log, payload and result.

import { Component, Fragment, h } from "./preact.mjs";
import { change, events, request } from "./api.js";
import { bytes, count, duration, secondsSince, withoutAnsi } from "./format.js";
import { ActionButton, Copy, Live, RayLink, Scroll, StateMark, When, jobsHref } from "./parts.js";
import { notify, serverNow } from "./store.js";

const LINES = 1000;
const SHOWN_BYTES = 64 * 1024;
const ENDED = ["succeeded", "failed", "cancelled"];

async function act(job, action, reread) {
  try {
    const after = await change("POST", `v1/jobs/${job.id}/${action}`);
    notify(action === "retry" ? "It is queued again." : after.state === "running" ? "Its worker was asked to end it." : "It is cancelled.");
  } catch (problem) {
    notify(`Not done: ${problem.message}`);
  }
  reread();
}

// The same call as a new job. The arguments go back as the text they came as: numbers must not change on the way.
async function runAgain(job) {
  try {
    const text = (await (await request(`v1/jobs/${job.id}/payload`)).text()).trim();
    const names = ["task", "queue", "priority", "max_attempts", "max_crashes", "timeout_seconds", "backoff_base_seconds", "backoff_cap_seconds", "labels", "batch"];
    const options = Object.fromEntries(names.map((name) => [name, job[name]]).filter(([, value]) => value !== null));
    const body = `${JSON.stringify(options).slice(0, -1)},${text.slice(1)}`;
    const created = await change("POST", "v1/jobs", undefined, body);
    notify("It runs again as a new job.");
    location.hash = `#/jobs/${created.id}`;
  } catch (problem) {
    notify(`Not done: ${problem.message}`);
  }
}

// --- timeline ----------------------------------------------------------------------------------------

function Timeline({ job }) {
  const begin = Date.parse(job.created_at);
  const end = job.finished_at ? Date.parse(job.finished_at) : serverNow();
  const span = Math.max(1, end - begin);
  const x = (moment) => Math.min(1000, Math.max(0, ((moment - begin) / span) * 1000));
  const parts = job.attempts.map((attempt) => ({
    from: Date.parse(attempt.started_at),
    to: Date.parse(attempt.ended_at),
    seconds: attempt.seconds,
    kind: attempt.outcome,
    text: `attempt ${attempt.number}: ${attempt.outcome} after ${duration(attempt.seconds)}`,
  }));
  if (job.running) {
    const from = Date.parse(job.running.leased_at);
    parts.push({ from, to: end, seconds: (end - from) / 1000, kind: "running", text: `attempt ${job.running.number}: has its worker for ${duration((end - from) / 1000)}` });
  }
  const ran = parts.reduce((sum, part) => sum + part.seconds, 0);
  return h(
    "figure",
    { class: "timeline" },
    h(
      "svg",
      { viewBox: "0 0 1000 28", preserveAspectRatio: "none", role: "img", "aria-label": `Timeline: ${parts.map((part) => part.text).join("; ") || "no attempt yet"}` },
      h("rect", { class: "wait", x: 0, y: 8, width: 1000, height: 12 }),
      parts.map((part) =>
        h("rect", { key: part.text, class: `part ${part.kind}`, x: x(part.from), y: 2, width: Math.max(3, x(part.to) - x(part.from)), height: 24 }, h("title", null, part.text)),
      ),
    ),
    h(
      "figcaption",
      null,
      "accepted ",
      h(When, { at: job.created_at, withDate: true }),
      ` · ${duration(span / 1000)} in all, ${duration(ran)} with a worker · `,
      job.finished_at ? h(Fragment, null, "ended ", h(When, { at: job.finished_at, withDate: true })) : "goes on",
    ),
  );
}

function Attempts({ job }) {
  const rows = [...job.attempts].reverse();
  if (!rows.length && !job.running) return h("p", { class: "empty" }, "No attempt yet.");
  return h(
    Scroll,
      { label: "Attempts" },
    h(
      "table",
      null,
      h("thead", null, h("tr", null, ["attempt", "outcome", "began", "ran", "worker", "node", "error"].map((name) => h("th", { scope: "col", key: name }, name)))),
      h(
        "tbody",
        null,
        job.running
          ? h(
              "tr",
              null,
              h("th", { scope: "row" }, job.running.number),
              h("td", null, h(StateMark, { job })),
              h("td", null, h(When, { at: job.running.leased_at })),
              h("td", null, duration(secondsSince(job.running.leased_at))),
              h("td", null, job.running.worker, " ", job.running.actor_id ? h(RayLink, { path: `#/actors/${encodeURIComponent(job.running.actor_id)}`, text: "in Ray" }) : null),
              h("td", null, h("span", { class: "dim" }, "–")),
              h("td", null),
            )
          : null,
        rows.map((attempt) =>
          h(
            "tr",
            { key: attempt.number },
            h("th", { scope: "row" }, attempt.number),
            h("td", null, h("span", { class: `mark outcome-${attempt.outcome}` }, attempt.outcome.replace("_", " "))),
            h("td", null, h(When, { at: attempt.started_at })),
            h("td", null, duration(attempt.seconds)),
            h("td", null, attempt.worker),
            h("td", null, h(RayLink, { path: `#/cluster/nodes/${encodeURIComponent(attempt.node)}`, text: attempt.node.slice(0, 8) }) ?? attempt.node.slice(0, 8)),
            h("td", { class: "note" }, attempt.error ? h(ErrorText, { error: attempt.error }) : null),
          ),
        ),
      ),
    ),
  );
}

function ErrorText({ error }) {
  const extra = [error.exit_code === null ? null : `exit code ${error.exit_code}`, error.signal].filter(Boolean).join(", ");
  return h(
    Fragment,
    null,
    h("strong", null, error.type),
    error.message ? `: ${error.message.slice(0, 300)}` : "",
    extra ? h("span", { class: "dim" }, ` (${extra})`) : null,
    error.traceback ? h("details", null, h("summary", null, "traceback"), h("pre", { tabIndex: 0 }, error.traceback)) : null,
  );
}

function Failure({ job }) {
  const last = job.attempts[job.attempts.length - 1];
  const error = job.error ?? (ENDED.includes(job.state) ? null : last?.error);
  if (!error) return null;
  return h(
    "section",
    { class: "failure" },
    h("h2", null, job.error ? "Why it failed" : "The last attempt's error"),
    h("p", { class: "message" }, h("strong", null, error.type), error.message ? `: ${error.message}` : ""),
    error.traceback ? h("pre", { tabIndex: 0, "aria-label": "Traceback" }, error.traceback) : null,
  );
}

// --- log ---------------------------------------------------------------------------------------------

class Log extends Component {
  constructor(props) {
    super(props);
    this.state = { lines: [""], cut: false, ended: false, problem: null };
  }

  componentDidMount() {
    this.follow();
  }

  componentWillUnmount() {
    this.controller?.abort();
  }

  async follow() {
    this.controller = new AbortController();
    const path = `v1/jobs/${this.props.id}/logs?attempt=${this.props.attempt}&tail=${LINES}`;
    for (let tries = 0; !this.state.ended && !this.controller.signal.aborted; tries += 1) {
      try {
        this.setState({ lines: [""], problem: null });
        for await (const [name, data] of events(path, this.controller.signal)) {
          if (name === "log") this.add(data.text);
          if (name === "end") this.setState({ ended: true });
        }
      } catch (problem) {
        if (problem.name === "AbortError") return;
        this.setState({ problem });
        if (problem.status && problem.status < 500) return;
      }
      if (!this.state.ended) await new Promise((go) => setTimeout(go, Math.min(1000 * 2 ** tries, 10_000)));
    }
  }

  add(text) {
    const lines = [...this.state.lines];
    const [first, ...rest] = withoutAnsi(text).split("\n");
    lines[lines.length - 1] += first;
    lines.push(...rest);
    const cut = this.state.cut || lines.length > LINES + 1;
    const box = this.box;
    const atEnd = box && box.scrollTop + box.clientHeight >= box.scrollHeight - 8;
    this.setState({ lines: lines.slice(-LINES - 1), cut }, () => {
      if (atEnd && this.box) this.box.scrollTop = this.box.scrollHeight;
    });
  }

  render(_, { lines, cut, ended, problem }) {
    const text = lines.join("\n");
    return h(
      Fragment,
      null,
      h("p", { class: "dim" }, ended ? "The whole log." : "Live: what it prints appears here.", cut ? ` Only the last ${count(LINES)} lines are shown.` : ""),
      problem ? h("p", { class: "problem", role: "alert" }, problem.message) : null,
      h("pre", { class: "log", tabIndex: 0, "aria-label": "Log", ref: (box) => (this.box = box) }, text || (ended ? "It printed nothing." : "")),
    );
  }
}

class Logs extends Component {
  constructor(props) {
    super(props);
    this.state = { attempt: null };
  }

  render({ job }, { attempt }) {
    const numbers = job.attempts.map((each) => each.number);
    if (job.running) numbers.push(job.running.number);
    if (!numbers.length) return h("p", { class: "empty" }, "No attempt has begun, so there is no log.");
    const shown = attempt ?? numbers[numbers.length - 1];
    return h(
      Fragment,
      null,
      h(
        "div",
        { class: "over" },
        h(
          "p",
          null,
          h("label", { for: "attempt" }, "Attempt "),
          h("select", { id: "attempt", value: shown, onChange: (event) => this.setState({ attempt: Number(event.target.value) }) }, numbers.map((number) => h("option", { key: number, value: number }, number))),
        ),
        h("button", { type: "button", onClick: () => download(`v1/jobs/${job.id}/logs?attempt=${shown}`, `${job.id}-${shown}.log`) }, "Download the log"),
      ),
      h(Log, { key: shown, id: job.id, attempt: shown }),
    );
  }
}

// --- payload and result ------------------------------------------------------------------------------

async function download(path, name) {
  try {
    const response = await request(path);
    const link = document.createElement("a");
    link.href = URL.createObjectURL(await response.blob());
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  } catch (problem) {
    notify(`Not read: ${problem.message}`);
  }
}

function hex(data) {
  const lines = [];
  for (let place = 0; place < Math.min(256, data.length); place += 16) {
    const row = [...data.slice(place, place + 16)];
    const text = row.map((byte) => (byte >= 32 && byte < 127 ? String.fromCharCode(byte) : "·")).join("");
    lines.push(`${place.toString(16).padStart(4, "0")}  ${row.map((byte) => byte.toString(16).padStart(2, "0")).join(" ").padEnd(47)}  ${text}`);
  }
  return lines.join("\n");
}

// Not read until somebody asks: it may be large, and it may be secret.
class Content extends Component {
  constructor(props) {
    super(props);
    this.state = { text: null, note: "", problem: null };
  }

  async show() {
    try {
      const response = await request(this.props.path);
      const data = new Uint8Array(await response.arrayBuffer());
      const json = (response.headers.get("content-type") ?? "").includes("json");
      const part = data.slice(0, SHOWN_BYTES);
      const cut = json ? part.length < data.length : data.length > 256;
      this.setState({ text: json ? new TextDecoder().decode(part) : hex(data), note: `${bytes(data.length)}${cut ? `, the beginning is shown` : ""}` });
    } catch (problem) {
      this.setState({ problem });
    }
  }

  render({ name, path, file, size }, { text, note, problem }) {
    return h(
      Fragment,
      null,
      h(
        "div",
        { class: "buttons" },
        text === null ? h("button", { type: "button", onClick: () => this.show() }, `Show the ${name}${size === undefined ? "" : ` (${bytes(size)})`}`) : h("span", { class: "dim" }, note),
        h("button", { type: "button", onClick: () => download(path, file) }, "Download"),
      ),
      problem ? h("p", { class: "problem", role: "alert" }, problem.message) : null,
      text === null ? null : h("pre", { tabIndex: 0, "aria-label": name }, text),
    );
  }
}

// --- the page ----------------------------------------------------------------------------------------

function Facts({ job }) {
  const rows = [
    ["task", h("a", { href: jobsHref({ task: job.task }) }, job.task)],
    ["queue", h("a", { href: jobsHref({ queue: job.queue }) }, job.queue)],
    ["pool", job.pool],
    ["priority", job.priority],
    ["attempts spent", `${job.failures} of ${job.max_attempts}; ${job.crashes} of ${job.max_crashes} crashes`],
    ["timeout", job.timeout_seconds === null ? "none" : duration(job.timeout_seconds)],
    ["batch", job.batch ? h("a", { href: jobsHref({ batch: job.batch }) }, job.batch) : "none"],
    ["labels", Object.entries(job.labels).map(([name, value]) => `${name}=${value}`).join(", ") || "none"],
  ];
  return h("dl", { class: "facts-list" }, rows.map(([name, value]) => h("div", { key: name }, h("dt", null, name), h("dd", null, value))));
}

function Waiting({ job }) {
  if (!job.waiting) return null;
  const since = job.attempts.length ? job.attempts[job.attempts.length - 1].ended_at : job.created_at;
  return h(
    "section",
    { class: "waiting" },
    h("h2", null, "Why it waits"),
    h("p", null, `It waits ${job.waiting}, since ${duration(secondsSince(since))}.`),
    job.run_at && job.state === "scheduled" ? h("p", null, "Its time comes at ", h(When, { at: job.run_at, withDate: true }), ".") : null,
    job.waiting.includes("is paused") ? h("p", null, "Resume the queue to let it run: ", h("a", { href: "#/queues" }, "queues"), ".") : null,
  );
}

export class JobPage extends Component {
  render({ id }) {
    return h(Live, { url: `v1/jobs/${encodeURIComponent(id)}`, every: 0.9, rest: 5 }, (job, reread) =>
      h(
        Fragment,
        null,
        h("h1", { tabIndex: -1, class: "job-title" }, h(StateMark, { job }), " ", job.task, h("span", { class: "id dim" }, ` ${job.id}`)),
        h(
          "div",
          { class: "buttons" },
          ENDED.includes(job.state) ? null : h(ActionButton, { danger: true, disabled: job.cancel_requested, onClick: () => act(job, "cancel", reread) }, job.cancel_requested ? "Cancelling…" : "Cancel"),
          ["failed", "cancelled"].includes(job.state) ? h(ActionButton, { onClick: () => act(job, "retry", reread) }, "Retry") : null,
          job.content === "json" ? h(ActionButton, { onClick: () => runAgain(job) }, "Run again as new") : null,
          h(Copy, { text: job.id, label: "Copy id" }),
          h(Copy, { text: `jobsvc job ${job.id}`, label: "Copy CLI line" }),
          h(Copy, { text: `curl ${location.origin}${job.links.self}`, label: "Copy curl line" }),
          job.running?.actor_id ? h(RayLink, { path: `#/actors/${encodeURIComponent(job.running.actor_id)}`, text: "Its actor in Ray" }) : h(RayLink, { path: "#/actors", text: "Actors in Ray" }),
        ),
        h(Waiting, { job }),
        h(Failure, { job }),
        h(Timeline, { job }),
        h(Facts, { job }),
        h("h2", null, "Attempts"),
        h(Attempts, { job }),
        h("h2", null, "Log"),
        h(Logs, { job }),
        h("h2", null, "Payload"),
        h(Content, { key: "payload", name: "payload", path: `v1/jobs/${job.id}/payload`, file: `${job.id}-payload`, size: job.payload_bytes }),
        h("h2", null, "Result"),
        job.result
          ? h(Content, { key: "result", name: "result", path: `v1/jobs/${job.id}/result`, file: `${job.id}-result`, size: job.result.bytes })
          : h("p", { class: "empty" }, ENDED.includes(job.state) ? "It has none." : "Not yet."),
      ),
    );
  }
}
