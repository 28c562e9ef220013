// Actions on all that match: counted first, confirmed, then done in slices with progress.

import { Component, Fragment, h } from "./preact.mjs";
import { change } from "./api.js";
import { count } from "./format.js";
import { ActionButton, Dialog, JobLink, closeDialog, openDialog } from "./parts.js";
import { notify } from "./store.js";

const TYPED_ABOVE = 100;
const WORDS = {
  cancel: ["Cancel", "cancelled", "Jobs that wait end at once; those that run are killed. Jobs that have ended are left alone."],
  retry: ["Retry", "put back", "Failed and cancelled jobs are queued again under the same ids, with their attempts unspent."],
};

export function describe(filter) {
  const parts = Object.entries(filter).map(([name, value]) => `${name} ${value}`);
  return parts.length ? parts.join(", ") : "everything";
}

class Bulk extends Component {
  constructor(props) {
    super(props);
    this.state = { counted: null, problem: null, typed: "", done: null, working: false };
  }

  componentDidMount() {
    const { action, filter } = this.props;
    change("POST", `v1/jobs:${action}`, { ...filter, dry_run: true }).then(
      (counted) => this.setState({ counted }),
      (problem) => this.setState({ problem }),
    );
  }

  componentWillUnmount() {
    this.stopped = true;
  }

  async go() {
    const { action, filter } = this.props;
    let cursor = this.state.counted.top; // what came after the count is left alone
    let done = 0;
    this.setState({ working: true, done });
    try {
      while (cursor !== null && !this.stopped) {
        const slice = await change("POST", `v1/jobs:${action}`, { ...filter, cursor });
        done += slice.count;
        cursor = slice.cursor;
        this.setState({ done });
      }
      notify(`${count(done)} jobs ${WORDS[action][1]}${cursor === null ? "." : "; stopped before the end."}`);
      if (!this.stopped) closeDialog();
      this.props.onDone?.();
    } catch (problem) {
      this.setState({ problem, working: false });
    }
  }

  render({ action, filter }, { counted, problem, typed, done, working }) {
    const [verb, , text] = WORDS[action];
    const number = counted?.count ?? 0;
    const needsTyping = number > TYPED_ABOVE;
    const ready = counted && number > 0 && (!needsTyping || typed.replace(/\D/g, "") === String(number));
    return h(
      Dialog,
      { title: `${verb} all that match` },
      h("p", null, "Filter: ", h("strong", null, describe(filter))),
      counted
        ? h(
            Fragment,
            null,
            h("p", { class: "big" }, `${count(number)} jobs`),
            counted.ids.length ? h("p", { class: "dim" }, "The newest: ", counted.ids.map((id) => h(Fragment, { key: id }, h(JobLink, { id }), " "))) : null,
          )
        : problem
          ? null
          : h("p", { class: "dim" }, "Counting…"),
      h("p", null, text, " Jobs that come from now on are left alone."),
      problem ? h("p", { class: "problem", role: "alert" }, problem.message) : null,
      needsTyping && !working
        ? h(
            "p",
            null,
            h("label", { for: "typed" }, `Type ${number} to confirm `),
            h("input", { id: "typed", inputmode: "numeric", autocomplete: "off", value: typed, onInput: (event) => this.setState({ typed: event.target.value }) }),
          )
        : null,
      working
        ? h("p", null, h("progress", { max: Math.max(1, number), value: done, "aria-label": "progress" }), ` ${count(done)} of ${count(number)}`)
        : null,
      h(
        "div",
        { class: "buttons" },
        h("button", { type: "button", onClick: closeDialog }, working ? "Stop here" : "Leave them"),
        working ? null : h(ActionButton, { danger: action === "cancel", disabled: !ready, onClick: () => this.go() }, counted ? `${verb} ${count(number)} jobs` : verb),
      ),
    );
  }
}

export function openBulk(action, filter, onDone) {
  openDialog(() => h(Bulk, { action, filter, onDone }));
}
