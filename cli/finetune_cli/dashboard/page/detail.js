// One object in full: where it stands and why, how far it is, curves, attempts, conditions, its specification.

import { linkTo } from "./address.js";
import { element, morph } from "./dom.js";
import { curve, intervals, point } from "./plot.js";
import { clock, whole } from "./times.js";

const MOST_DRAWN = 16; // variants; more of them are read better in the table
const BUDGETS = "Each cause with the budget that a newer checkpoint makes whole again.";
const LINK = /^https?:\/\/[^\s]+$/;

/** Draws an object into an element, in place: what the reader has focused, opened or scrolled stays so. */
export class Detail {
  #shown = null;

  constructor(home) {
    this.home = home;
    new ResizeObserver(() => this.#redraw()).observe(home);
    home.addEventListener("pointermove", (event) => this.#point(event));
    home.addEventListener("pointerleave", () => this.#point(null));
  }

  /**
   * @param {object} object As the server gives it (finetune_cli/dashboard/details.py).
   * @param {{back: string, place: string}} around The address of the list, and what objects are grouped by.
   */
  show(object, around) {
    this.#shown = { object, around };
    this.#draw();
  }

  clear() {
    this.#shown = null;
    this.home.replaceChildren();
  }

  #redraw() {
    if (this.#shown && this.#width() !== this.width) this.#draw();
  }

  #draw() {
    const { object, around } = this.#shown;
    this.width = this.#width();
    const fresh = element("div", {}, top(object, around), ...parts(object, this.width, around.place));
    morph(this.home, fresh);
    // A width cannot be written into the markup: the page allows no styles in it.
    for (const bar of this.home.querySelectorAll(".bar > span")) bar.style.width = `${bar.parentNode.dataset.percent}%`;
  }

  #width() {
    const style = getComputedStyle(this.home);
    const inner = this.home.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
    return Math.max(240, Math.floor(inner));
  }

  #point(event) {
    const plot = event?.target.closest?.("svg.plot");
    for (const one of this.home.querySelectorAll("svg.plot")) if (one !== plot) point(one, null);
    if (plot) point(plot, event);
  }
}

function top(object, { back, place }) {
  const kind = object.kind === "FineTuneExperiment" ? "Experiment" : "Job";
  const where = object.namespace ? ` in ${place} ${object.namespace}` : "";
  const parent = object.experiment;
  return element("div", { class: "top", "data-key": "top" },
    element("a", { class: "close", href: back },
      element("span", { class: "all" }, "← All jobs"), element("span", { class: "this" }, "Close")),
    element("p", { class: "muted" }, `${kind}${where}`, object.task ? ` · ${object.task}` : "",
      parent ? [" · trial of ", linked("FineTuneExperiment", parent.namespace, parent.name)] : null),
    element("h2", { id: "name", tabindex: -1 }, object.name),
    object.gone ? element("p", { class: "gone" }, object.gone) : null,
    object.headline ? element("p", { class: `headline state ${object.phase}` }, object.headline) : null,
    object.next && object.tone !== "good"
      ? element("p", { class: "next" }, element("strong", {}, "What to do: "), object.next) : null);
}

function parts(object, width, place) {
  return [
    progress(object),
    facts(object.facts ?? [], "facts"),
    part("Variants", variants(object, width)),
    part("Curves", curves(object, width, place)),
    part("Attempts", attempts(object)),
    part("Restarts", facts(object.budgets ?? []), BUDGETS),
    part("Trials", trials(object)),
    part("Conditions", conditions(object)),
    part("Specification", specification(object)),
  ].filter(Boolean);
}

function part(title, content, note = "") {
  const filled = [content].flat().filter(Boolean);
  if (!filled.length) return null;
  const told = note ? element("p", { class: "muted" }, note) : null;
  return element("section", { "data-key": title }, element("h3", {}, title), told, ...filled);
}

function progress({ percent, progress: made, told, phase, name }) {
  if (percent === null) return null;
  const runs = phase === "Running";
  const said = made ? [made.told, runs ? made.pace : ""].filter(Boolean).join(", ") : told;
  const done = Math.floor(percent);
  const bar = {
    class: `bar wide ${phase}`, "data-percent": percent, role: "progressbar", "aria-label": `Progress of ${name}`,
    "aria-valuemin": 0, "aria-valuemax": 100, "aria-valuenow": done, "aria-valuetext": said,
  };
  return element("div", { class: "progress", "data-key": "progress" },
    element("p", {}, element("strong", {}, `${done} %`), ` ${said}`),
    element("div", bar, element("span")),
    made && runs ? element("p", { class: "muted" }, "reported ", time(made.time)) : null);
}

function facts(known, key = null) {
  if (!known.length) return null;
  const told = (text) => (LINK.test(text) ? leading(text) : text);
  return element("dl", { class: "facts", "data-key": key },
    known.flatMap(([name, text]) => [element("dt", {}, name), element("dd", {}, told(text))]));
}

function leading(address) {
  return element("a", { href: address, rel: "noopener noreferrer", target: "_blank" }, address);
}

/** Of two points on: one is told above. */
function curves({ course, trail, kind }, width, place) {
  if (kind !== "FineTuneJob") return [];
  const note = "on the validation set";
  const seen = place === "namespace" ? "as far as this page's server has seen it" : "";
  return [
    course?.points.length > 1 ? curve(course.metric, course.points, { width, best: course.best, note }) : null,
    trail?.length > 1 ? curve("training loss", trail, { width, note: seen }) : null,
  ];
}

function attempts({ attempts: made = [] }) {
  if (!made.length) return null;
  return element("ol", { class: "attempts" }, made.map(({ heading, tone, start, took, facts: known }) =>
    element("li", { class: tone },
      element("h4", {}, heading), element("p", { class: "muted" }, time(start), `, ${took}`), facts(known))));
}

function variants({ metric, variants: rows = [], table }, width) {
  if (!table?.rows.length) return null;
  const drawn = rows.length && rows.length <= MOST_DRAWN ? intervals(metric, rows, width) : null;
  return [drawn, scrollingTable("Variants", table.head, table.rows)];
}

function trials({ trials: rows = [] }) {
  if (!rows.length) return null;
  const head = ["trial", "variant", "seed", "phase", "step", "value", "took"];
  return scrollingTable("Trials", head, rows.map((row) => [
    linked("FineTuneJob", row.namespace, row.name), row.variant, String(row.seed),
    element("span", { class: `state ${row.phase}` }, row.phase), row.step, row.value, row.took,
  ]));
}

/** A message that stands above already is not told again. */
function conditions({ conditions: known = [], headline }) {
  if (!known.length) return null;
  return element("ul", { class: "conditions" }, known.map(({ type, status, reason, since, message }) =>
    element("li", {},
      element("strong", {}, type), ` ${status} `,
      element("span", { class: "muted" }, `${reason}, since `, time(since)),
      message && !headline.includes(message) ? element("p", {}, message) : null)));
}

function specification({ spec }) {
  if (!spec) return null;
  return element("details", {}, element("summary", {}, "As YAML, with its defaults"),
    element("pre", { tabindex: 0, role: "region", "aria-label": "Specification" }, spec));
}

/** A table, which scrolls by itself where it is wider than a phone; the keyboard reaches it. */
function scrollingTable(label, head, rows) {
  const named = (cell, at) => element(at ? "td" : "th", at ? {} : { scope: "row" }, cell);
  return element("div", { class: "scroll", role: "region", tabindex: 0, "aria-label": label },
    element("table", { "aria-label": label },
      element("thead", {}, element("tr", {}, head.map((cell) => element("th", { scope: "col" }, cell)))),
      element("tbody", {}, rows.map((row) => element("tr", {}, row.map(named))))));
}

function linked(kind, place, name) {
  return element("a", { href: linkTo(kind, place, name) }, name);
}

function time(moment) {
  return element("time", { datetime: moment, title: whole(moment) }, clock(moment));
}
