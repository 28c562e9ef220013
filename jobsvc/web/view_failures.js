// Failures: failed jobs by what went wrong.

import { Fragment, h } from "./preact.mjs";
import { openBulk } from "./bulk.js";
import { count } from "./format.js";
import { ActionButton, JobLink, Live, When, jobsHref } from "./parts.js";

function Group({ group }) {
  const filter = { state: "failed", failure: group.fingerprint };
  return h(
    "article",
    { class: "group", "aria-labelledby": `g-${group.fingerprint}` },
    h(
      "div",
      { class: "group-head" },
      h("h2", { id: `g-${group.fingerprint}` }, h("span", { class: "count" }, count(group.count)), ` × ${group.type}`),
      h(
        "div",
        { class: "buttons" },
        h("a", { class: "button", href: jobsHref(filter) }, "Show the jobs"),
        h(ActionButton, { onClick: () => openBulk("retry", filter) }, "Retry all…"),
      ),
    ),
    h("p", { class: "message" }, group.message || h("span", { class: "dim" }, "no message")),
    h(
      "p",
      { class: "dim" },
      `task ${group.task} · ${group.place || "no traceback"} · first `,
      h(When, { at: group.first_at, relative: true }),
      ", latest ",
      h(When, { at: group.last_at, relative: true }),
      ": ",
      h(JobLink, { id: group.latest_id }),
    ),
  );
}

export function Failures() {
  return h(
    Fragment,
    null,
    h("h1", { tabIndex: -1 }, "Failures"),
    h(Live, { url: "v1/failures?limit=50" }, (failures) => {
      const shown = failures.groups.reduce((sum, group) => sum + group.count, 0);
      const rest = shown < failures.jobs ? ` ${count(shown)} of them are in the ${count(failures.groups.length)} kinds below.` : "";
      if (!failures.groups.length) return h("p", { class: "empty" }, "No job is failed. Jobs that wait for another attempt are under “scheduled”.");
      return h(
        Fragment,
        null,
        h("p", null, `${count(failures.jobs)} failed jobs of ${failures.groups_total === 1 ? "one kind" : `${count(failures.groups_total)} kinds`}, the largest first.${rest}`),
        failures.groups.map((group) => h(Group, { key: group.fingerprint, group })),
      );
    }),
  );
}
