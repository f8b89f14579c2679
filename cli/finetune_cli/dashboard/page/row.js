// One row of the list: made once from a template, then only changed where it says something else.

import { linkTo } from "./address.js";
import { element, setAttribute, setText } from "./dom.js";
import { age } from "./times.js";

const TEMPLATE = element("tr", { role: "row", class: "row" },
  element("th", { role: "rowheader", scope: "row" },
    element("a", { tabindex: -1 }), " ",
    element("span", { class: "kind" }),
    element("span", { class: "message" })),
  element("td", { role: "cell", class: "phase" }, element("span", { class: "state" })),
  element("td", { role: "cell", class: "progress" },
    element("span", { class: "bar", "aria-hidden": "true" }, element("span")),
    element("span", { class: "told" })),
  element("td", { role: "cell", class: "best" }),
  element("td", { role: "cell", class: "restarts" }),
  element("td", { role: "cell", class: "age" }));
let made = 0;

/** What the list keeps of an object: its row, the element that shows it, and whether it is shown. */
export function newItem(key, row) {
  const one = TEMPLATE.cloneNode(true);
  const [name, phase, progress, best, restarts, since] = one.children;
  const [link, kind, message] = name.children;
  const [state] = phase.children;
  const [bar, told] = progress.children;
  // Whoever goes through the links alone is told of phase and message with each.
  const id = `row${++made}`;
  state.id = `${id}p`;
  message.id = `${id}m`;
  link.setAttribute("aria-describedby", `${state.id} ${message.id}`);
  one.key = key;
  one.hidden = true;
  const cells = { kind, message, phase: state, bar: bar.firstChild, told, best, restarts, age: since };
  return { key, row, element: one, link, cells, phase: null, shown: false, text: "" };
}

/** Show what an item's row says. */
export function draw({ row, link, cells, element: one }, isOpen) {
  const hasProgress = row.percent !== null;
  const classes = ["row", row.tone, row.phase, ...(hasProgress ? [] : ["bare"]), ...(isOpen ? ["open"] : [])];
  setAttribute(one, "class", classes.join(" "));
  setText(link, row.name);
  setAttribute(link, "href", linkTo(row.kind, row.namespace, row.name));
  setAttribute(link, "aria-current", isOpen ? "true" : null);
  setText(cells.kind, row.kind === "FineTuneExperiment" ? "experiment" : row.experiment ? "trial" : "");
  setText(cells.message, row.message);
  setText(cells.phase, row.phase);
  setText(cells.told, [hasProgress ? `${Math.floor(row.percent)} %` : "", row.told].filter(Boolean).join(", "));
  cells.bar.style.width = `${row.percent ?? 0}%`;
  cells.bar.parentNode.hidden = !hasProgress;
  setText(cells.best, row.best);
  setText(cells.restarts, row.restarts ? String(row.restarts) : "");
  setText(cells.age, age(row.created));
}

/** Show how old it is now. */
export function drawAge({ row, cells }, now) {
  setText(cells.age, age(row.created, now));
}
