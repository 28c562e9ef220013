// The frame: where we are, how the service is, the keyboard. Each view is a module of its own.

import { Component, Fragment, h, render } from "./preact.mjs";
import { forgetToken, hasToken, setToken } from "./api.js";
import { clock, count, duration } from "./format.js";
import { reconnect, runLive } from "./live.js";
import { AsOf, Dialog, GLYPHS, STATES, closeDialog, jobsHref, openDialog } from "./parts.js";
import { notify, onDraw, remember, store, update } from "./store.js";
import { verdict } from "./verdict.js";
import { Failures } from "./view_failures.js";
import { JobPage } from "./view_job.js";
import { Jobs } from "./view_jobs.js";
import { Overview } from "./view_overview.js";
import { Queues } from "./view_queues.js";
import { System } from "./view_system.js";
import { Workers } from "./view_workers.js";

const VIEWS = [
  ["", "Overview", Overview, "o"],
  ["jobs", "Jobs", Jobs, "j"],
  ["failures", "Failures", Failures, "f"],
  ["queues", "Queues", Queues, "q"],
  ["workers", "Workers", Workers, "w"],
  ["system", "System", System, "s"],
];
const TAKEOVER_SHOWN_MS = 30_000;
const SKEW_MS = 2_000;
const PROBLEMS_SHOWN = 5; // of each manager
const SPOKEN_MS = 10_000;

function readRoute() {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  const [view = "", id = null] = path.split("/");
  const moved = view !== store.route.view || decodeURIComponent(id ?? "") !== (store.route.id ?? "");
  update({ route: { view, id: id === null ? null : decodeURIComponent(id), query: new URLSearchParams(query) }, dialog: null });
  document.title = `${VIEWS.find(([name]) => name === view)?.[1] ?? "Not found"} · jobsvc`;
  if (moved) {
    requestAnimationFrame(() => {
      document.querySelector("h1")?.focus({ preventScroll: true });
      scrollTo(0, 0);
    });
  }
}

// --- the head ----------------------------------------------------------------------------------------

function LinkState() {
  const { link, summary, summaryAt } = store;
  if (!summary) return h("span", { class: "link" }, link === "lost" ? "not reachable" : "connecting…");
  const seconds = Math.max(0, (Date.now() - summaryAt) / 1000);
  const text = { live: "live", polling: "polling", lost: "disconnected", connecting: "connecting…" }[link];
  const standby = summary.managers.find((manager) => manager.role === "standby");
  const age = summary.commits.age_seconds;
  return h(
    Fragment,
    null,
    h(
      "span",
      { class: `link ${seconds > 5 ? "lost" : link}` },
      h("span", { "aria-hidden": "true" }, link === "lost" ? "○" : "●"),
      ` ${store.paused ? "paused" : text}`,
      h("span", { class: "dim" }, ` · ${duration(Math.floor(seconds))} old`),
    ),
    h(
      "span",
      { class: "dim facts" },
      summary.leader ? `leader ${summary.leader}, epoch ${summary.epoch}` : "no leader",
      standby ? ` · standby ${standby.lag === null ? "?" : count(standby.lag)} behind` : " · no standby",
      age === null ? null : ` · commit ${duration(age + seconds)} ago`,
    ),
  );
}

function Head() {
  const { route, theme, utc } = store;
  return h(
    "header",
    null,
    h("a", { class: "skip", href: "#main", onClick: skip }, "Skip to the content"),
    h(
      "div",
      { class: "bar" },
      h("a", { class: "brand", href: "#/" }, store.summary?.service ?? "jobsvc"),
      h("div", { class: "state" }, h(LinkState)),
      h(
        "div",
        { class: "tools" },
        h("button", { type: "button", class: "small", "aria-pressed": String(store.paused), onClick: togglePause }, store.paused ? "Resume lists" : "Pause lists"),
        h("button", { type: "button", class: "small", onClick: toggleUtc }, utc ? "UTC" : "local time"),
        h("button", { type: "button", class: "small", onClick: nextTheme }, `theme: ${theme}`),
        h("button", { type: "button", class: "small", "aria-label": "Keyboard help", onClick: help }, "?"),
      ),
    ),
    h(
      "nav",
      { "aria-label": "Views" },
      h(
        "ul",
        null,
        VIEWS.map(([name, title]) =>
          h("li", { key: name }, h("a", { href: `#/${name}`, "aria-current": route.view === name ? "page" : undefined }, title)),
        ),
      ),
    ),
  );
}

function skip(event) {
  event.preventDefault();
  document.querySelector("h1")?.focus();
}

function Rail() {
  const counts = store.summary?.counts;
  const { route } = store;
  const chosen = route.view === "jobs" && !route.id ? route.query.get("state") : null;
  return h(
    "nav",
    { class: "rail", "aria-label": "Jobs by state" },
    h(
      "ul",
      null,
      STATES.map((state) =>
        h(
          "li",
          { key: state },
          h(
            "a",
            { href: jobsHref({ state }), "aria-current": chosen === state ? "true" : undefined },
            h("span", { class: `mark ${state}` }, h("span", { "aria-hidden": "true" }, GLYPHS[state]), ` ${state}`),
            h("span", { class: "number" }, counts ? count(counts[state]) : "–"),
          ),
        ),
      ),
      h(
        "li",
        { class: "sum" },
        h(
          "a",
          { href: "#/jobs" },
          h("span", null, "all held"),
          h("span", { class: "number" }, counts ? count(Object.values(counts).reduce((sum, each) => sum + each, 0)) : "–"),
        ),
      ),
      counts ? h("li", null, h(AsOf, { at: store.knownAt })) : null,
    ),
  );
}

// --- what must be said -------------------------------------------------------------------------------

function Banners() {
  const { summary, link, linkSince, leaderlessSince, takeover, skew } = store;
  const found = [];
  if (link === "lost") {
    const from = summary ? `Data from ${clock(store.summaryAt + skew)} (${duration(Math.floor((Date.now() - store.summaryAt) / 1000))} old). ` : "";
    found.push(["bad", "lost", `Disconnected since ${clock(linkSince)}. ${from}Trying again; actions are off until then.`]);
  } else if (summary && !summary.ready) {
    const since = leaderlessSince ? ` since ${clock(leaderlessSince)}` : "";
    found.push(["bad", "failover", `Failover${since}: ${summary.problem}. Nothing acknowledged is lost, running jobs go on; callers wait. Trying again by itself.`]);
  } else if (takeover && Date.now() - takeover.at < TAKEOVER_SHOWN_MS) {
    const seconds = Math.floor((Date.now() - takeover.at) / 1000);
    found.push(["good", "takeover", `${takeover.leader} took over ${seconds} s ago (epoch ${takeover.epoch}). Nothing acknowledged was lost.`]);
  }
  for (const manager of summary?.managers ?? []) {
    for (const { part, text, since, times } of (manager.problems ?? []).slice(0, PROBLEMS_SHOWN)) {
      found.push(["warn", `${manager.name} ${part}`, `${manager.name}: ${part} failed ${count(times)} times since ${clock(Date.parse(since))}: ${text}. The rest goes on, and it is tried again.`]);
    }
  }
  for (const warning of summary?.warnings ?? []) {
    found.push(["warn", warning, `${warning[0].toUpperCase()}${warning.slice(1)}.`]);
  }
  if (Math.abs(skew) > SKEW_MS) {
    found.push(["warn", "skew", `The service's time is ${duration(Math.abs(skew) / 1000)} ${skew < 0 ? "behind" : "ahead of"} your clock; ages use the service's.`]);
  }
  if (summary && store.version && store.version !== summary.version) {
    found.push(["warn", "version", "The service has a new version: reload this page."]);
  }
  return h("div", { class: "banners" }, found.map(([tone, key, text]) => h("p", { key, class: `banner ${tone}`, role: "status" }, text)));
}

// One quiet sentence for screen readers, not oftener than every ten seconds.
class Spoken extends Component {
  constructor(props) {
    super(props);
    this.at = 0;
    this.text = "";
  }

  render() {
    if (store.summary && Date.now() - this.at > SPOKEN_MS) {
      const [, word, text] = verdict(store.summary);
      this.at = Date.now();
      this.text = `${word}. ${text}`;
    }
    return h("p", { class: "spoken", role: "status", "aria-live": "polite" }, this.text);
  }
}

class TokenBox extends Component {
  render() {
    const send = (event) => {
      event.preventDefault();
      const token = new FormData(event.target).get("token").trim();
      if (!token) return;
      setToken(token);
      reconnect();
    };
    return h(
      "main",
      { class: "token", id: "main" },
      h("h1", { tabIndex: -1 }, "This service needs a token"),
      h("p", null, "It is the value of ", h("code", null, "JOBSVC_TOKEN"), ". It is kept in this tab until you close it."),
      h(
        "form",
        { onSubmit: send },
        h("label", { for: "token" }, "Token"),
        h("input", { id: "token", name: "token", type: "password", autocomplete: "off", required: true, autofocus: true }),
        h("button", { type: "submit" }, "Enter"),
      ),
      store.tokenWrong ? h("p", { class: "problem", role: "alert" }, "That token is not the right one.") : null,
    );
  }
}

function Page() {
  const { route, summary, dialog } = store;
  if (store.tokenAsked) return h(TokenBox);
  const [, , View] = VIEWS.find(([name]) => name === route.view) ?? [];
  const old = store.link === "lost" || (summary && !summary.ready);
  return h(
    Fragment,
    null,
    h(Head),
    h(Banners),
    h(
      "div",
      { class: old ? "body old" : "body" },
      h(Rail),
      h(
        "main",
        { id: "main" },
        !View
          ? h(Fragment, null, h("h1", { tabIndex: -1 }, "No such view"), h("a", { href: "#/" }, "To the overview"))
          : route.view === "jobs" && route.id
            ? h(JobPage, { key: route.id, id: route.id })
            : h(View, { key: route.view, query: route.query }),
      ),
    ),
    h(
      "footer",
      null,
      h("span", null, `jobsvc ${summary?.version ?? ""}`),
      hasToken() ? null : h("a", { href: "docs" }, "API"),
      hasToken() ? h("button", { type: "button", class: "small", onClick: forgetToken }, "Forget the token") : null,
      h("span", { class: "dim" }, store.utc ? "times in UTC" : "times in local time"),
    ),
    h("div", { class: "toasts", role: "status" }, store.notice ? h("p", null, store.notice) : null),
    h(Spoken),
    dialog ? dialog() : null,
  );
}

// --- switches ----------------------------------------------------------------------------------------

function applyTheme() {
  document.documentElement.dataset.theme = store.theme;
}

function nextTheme() {
  const order = ["auto", "light", "dark"];
  const theme = order[(order.indexOf(store.theme) + 1) % order.length];
  remember("theme", theme);
  update({ theme });
  applyTheme();
}

function toggleUtc() {
  remember("utc", store.utc ? "0" : "1");
  update({ utc: !store.utc });
}

function togglePause() {
  remember("paused", store.paused ? "0" : "1");
  update({ paused: !store.paused });
}

// --- keyboard ----------------------------------------------------------------------------------------

const KEYS = [
  ["g then o j f q w s", "go to Overview, Jobs, Failures, Queues, Workers, System"],
  ["/", "to the filter"],
  ["j  k", "next, previous row"],
  ["Enter", "open the row"],
  ["x", "select the row"],
  [".", "show the newest"],
  ["[  ]", "newer page, older page"],
  ["p", "pause the lists"],
  ["t  u", "theme; UTC or local time"],
  ["Esc", "close"],
];

function help() {
  openDialog(() =>
    h(
      Dialog,
      { title: "Keyboard" },
      h("table", null, h("tbody", null, KEYS.map(([key, text]) => h("tr", { key }, h("th", { scope: "row" }, h("kbd", null, key)), h("td", null, text))))),
      h(
        "p",
        null,
        h("label", null, h("input", { type: "checkbox", checked: keysOn(), onChange: (event) => remember("keys", event.target.checked ? "1" : "0") }), " single keys are on"),
      ),
      h("div", { class: "buttons" }, h("button", { type: "button", onClick: closeDialog }, "Close")),
    ),
  );
}

const keysOn = () => localStorage.getItem("jobsvc.keys") !== "0";
let going = 0;

function moveRow(step) {
  const rows = [...document.querySelectorAll("tr[data-row]")];
  if (!rows.length) return;
  const place = rows.indexOf(document.activeElement?.closest("tr[data-row]"));
  rows[Math.min(rows.length - 1, Math.max(0, place < 0 ? 0 : place + step))].focus();
}

function press(name) {
  document.querySelector(`[data-key="${name}"]`)?.click();
}

const ACTIONS = {
  "/": () => document.querySelector("[data-filter]")?.focus(),
  j: () => moveRow(1),
  k: () => moveRow(-1),
  x: () => document.activeElement?.closest("tr[data-row]")?.querySelector("input[type=checkbox]")?.click(),
  Enter: () => document.activeElement?.matches("tr[data-row]") && document.activeElement.querySelector("a")?.click(),
  ".": () => press("."),
  "[": () => press("["),
  "]": () => press("]"),
  p: togglePause,
  t: nextTheme,
  u: toggleUtc,
  "?": help,
};

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || store.dialog || store.tokenAsked) return;
  if (event.target.closest("input:not([type=checkbox]), textarea, select")) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  if (!keysOn() && event.key !== "Enter") return;
  if (Date.now() - going < 1500) {
    going = 0;
    const view = VIEWS.find(([, , , key]) => key === event.key);
    if (view) location.hash = `#/${view[0]}`;
    return;
  }
  if (event.key === "g") {
    going = Date.now();
    return;
  }
  const action = ACTIONS[event.key];
  if (!action) return;
  if (event.key !== "Enter") event.preventDefault();
  action();
}

// --- begin -------------------------------------------------------------------------------------------

applyTheme();
const root = document.getElementById("page");
root.textContent = "";
onDraw(() => {
  if (store.summary && !store.version) store.version = store.summary.version;
  render(h(Page), root);
});
addEventListener("hashchange", readRoute);
addEventListener("keydown", onKey);
addEventListener("unhandledrejection", (event) => notify(`A defect of this page: ${event.reason?.message ?? event.reason}`));
setInterval(() => document.hidden || update(), 1000); // ages grow
readRoute();
runLive();
