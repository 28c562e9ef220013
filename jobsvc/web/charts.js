// Charts as SVG: a line for each series, over time. The numbers behind each are one click away, as a table.

import { Component, h } from "./preact.mjs";
import { clock, count, rate } from "./format.js";

const WIDTH = 640;
const HEIGHT = 150;
const LEFT = 52;
const BOTTOM = 18;
const TOP = 8;
const TABLE_ROWS = 30;

function roundUp(value) {
  if (value <= 0) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 2.5, 5, 10].map((step) => step * power).find((step) => step >= value);
}

// A gap in time is a gap in the line: nobody looked then.
function path(times, values, x, y, gap) {
  let text = "";
  let pen = false;
  values.forEach((value, place) => {
    if (value === null) {
      pen = false;
      return;
    }
    if (place > 0 && times[place] - times[place - 1] > gap) pen = false;
    text += `${pen ? "L" : "M"}${x(times[place]).toFixed(1)} ${y(value).toFixed(1)}`;
    pen = true;
  });
  return text;
}

export class Chart extends Component {
  constructor(props) {
    super(props);
    this.state = { asTable: false, at: null };
  }

  hover(event, times) {
    const box = event.currentTarget.getBoundingClientRect();
    const place = ((event.clientX - box.left) / box.width) * WIDTH;
    const first = times[0];
    const last = times[times.length - 1];
    const moment = first + ((place - LEFT) / (WIDTH - LEFT - 6)) * (last - first);
    let nearest = 0;
    times.forEach((time, index) => {
      if (Math.abs(time - moment) < Math.abs(times[nearest] - moment)) nearest = index;
    });
    this.setState({ at: nearest });
  }

  render({ title, times, series, step, format = rate, marks = [] }, { asTable, at }) {
    const ready = times.length > 1;
    const latest = series
      .map(({ name, values }) => `${name} ${format(values[at ?? values.length - 1] ?? null)}`)
      .join(", ");
    const id = title.replace(/\W+/g, "-").toLowerCase();
    return h(
      "section",
      { class: "chart", "aria-labelledby": id },
      h(
        "div",
        { class: "chart-head" },
        h("h2", { id }, title),
        h(
          "button",
          { type: "button", class: "small", "aria-pressed": String(asTable), onClick: () => this.setState({ asTable: !asTable }) },
          asTable ? "As chart" : "As table",
        ),
      ),
      h(
        "p",
        { class: "legend" },
        series.map(({ name, values }, index) =>
          h(
            "span",
            { key: name },
            h("span", { class: `swatch line${index}`, "aria-hidden": "true" }),
            `${name} `,
            h("strong", null, format(values[at ?? values.length - 1] ?? null)),
          ),
        ),
        at !== null && ready ? h("span", { class: "dim" }, `at ${clock(times[at] * 1000)}`) : null,
      ),
      !ready
        ? h("p", { class: "empty" }, "The history begins now; the line follows in a few seconds.")
        : asTable
          ? this.table(times, series, format)
          : this.drawing(title, times, series, step, format, marks, latest),
    );
  }

  table(times, series, format) {
    const every = Math.max(1, Math.ceil(times.length / TABLE_ROWS));
    const places = times.map((_, place) => place).filter((place) => (times.length - 1 - place) % every === 0);
    return h(
      "div",
      { class: "scroll", tabIndex: 0, role: "region", "aria-label": "values" },
      h(
        "table",
        null,
        h("thead", null, h("tr", null, h("th", { scope: "col" }, "time"), series.map(({ name }) => h("th", { scope: "col", class: "number" }, name)))),
        h(
          "tbody",
          null,
          places.reverse().map((place) =>
            h(
              "tr",
              { key: times[place] },
              h("th", { scope: "row" }, clock(times[place] * 1000)),
              series.map(({ values }) => h("td", { class: "number" }, format(values[place]))),
            ),
          ),
        ),
      ),
    );
  }

  drawing(title, times, series, step, format, marks, latest) {
    const first = times[0];
    const last = times[times.length - 1];
    const least = format === count ? 2 : 0; // half a job is no label
    const highest = roundUp(Math.max(least, ...series.flatMap(({ values }) => values.map((value) => value ?? 0))));
    const x = (time) => LEFT + ((time - first) / Math.max(1, last - first)) * (WIDTH - LEFT - 6);
    const y = (value) => TOP + (1 - value / highest) * (HEIGHT - TOP - BOTTOM);
    const at = this.state.at;
    return h(
      "svg",
      {
        viewBox: `0 0 ${WIDTH} ${HEIGHT}`,
        role: "img",
        "aria-label": `${title}, latest: ${latest}`,
        onPointerMove: (event) => this.hover(event, times),
        onPointerLeave: () => this.setState({ at: null }),
      },
      [0, 0.5, 1].map((share) =>
        h(
          "g",
          { key: share },
          h("line", { class: "grid", x1: LEFT, x2: WIDTH - 6, y1: y(share * highest), y2: y(share * highest) }),
          h("text", { x: LEFT - 6, y: y(share * highest) + 4, "text-anchor": "end" }, share ? format(share * highest) : "0"),
        ),
      ),
      marks
        .filter((mark) => mark.at >= first && mark.at <= last)
        .map((mark) =>
          h(
            "g",
            { key: mark.at },
            h("line", { class: "takeover", x1: x(mark.at), x2: x(mark.at), y1: TOP, y2: HEIGHT - BOTTOM }),
            h("text", { class: "takeover", x: Math.min(x(mark.at) + 3, WIDTH - 70), y: TOP + 8 }, mark.text),
          ),
        ),
      h("text", { x: LEFT, y: HEIGHT - 4 }, clock(first * 1000)),
      h("text", { x: WIDTH - 6, y: HEIGHT - 4, "text-anchor": "end" }, clock(last * 1000)),
      series.map(({ name, values }, index) => h("path", { key: name, class: `series line${index}`, d: path(times, values, x, y, step * 3) })),
      at !== null && at < times.length
        ? h("line", { class: "cursor", x1: x(times[at]), x2: x(times[at]), y1: TOP, y2: HEIGHT - BOTTOM })
        : null,
    );
  }
}
