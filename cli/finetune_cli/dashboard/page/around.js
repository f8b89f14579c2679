// What stands around the list: title, connection, problems, the filter with its counts, the word for an empty list.

import { element, setText } from "./dom.js";
import { clock } from "./times.js";

const PHASES = ["Pending", "Suspended", "Starting", "Running", "Restarting", "Succeeded", "Failed", "Unknown"];

/** The page's own elements, by their id. */
export const page = Object.fromEntries([...document.querySelectorAll("[id]")].map((one) => [one.id, one]));
const filter = page.filter.elements;
const choices = new Map(["", ...PHASES].map((phase) => [phase, newChoice(phase)]));

function newChoice(phase) {
  const input = element("input", { type: "radio", name: "phase", value: phase });
  const count = element("b", {});
  const kind = phase ? `state ${phase}` : null;
  const label = element("label", { class: kind }, input, element("span", {}, phase || "All"), " ", count);
  page.phases.append(label);
  return { input, label, count };
}

/** What is shown, and what it is grouped by. */
export function showTitle(title, place) {
  setText(page.title, title);
  setText(page.place, place[0].toUpperCase() + place.slice(1));
}

let isBehind = false; // the server is there, and cannot read something
let lostSince; // when the server was last heard, if it is lost: null for never; undefined while it is there

/** @param {number | null | undefined} since As `lostSince`. */
export function showConnection(since) {
  lostSince = since;
  const [kind, text] = connection();
  page.connection.className = kind;
  setText(page.connection, text);
}

function connection() {
  if (lostSince === undefined) return isBehind ? ["behind", "Not up to date"] : ["live", "Live"];
  if (lostSince === null) return ["lost", "The server does not answer; trying again"];
  return ["lost", `Connection lost; what is shown is of ${clock(lostSince)}. Trying again`];
}

/** What the server cannot read. */
export function showProblems(problems) {
  const told = problems.map(({ what, message, since }) => {
    const age = since ? `What is shown is of ${clock(since)}.` : "Nothing could be read so far.";
    return element("p", {}, element("strong", {}, `${what} cannot be read: `), `${message}. ${age}`);
  });
  isBehind = told.length > 0;
  showConnection(lostSince);
  const isNew = page.problems.textContent !== told.map((one) => one.textContent).join("");
  if (isNew) page.problems.replaceChildren(...told);
}

/** The filter's fields, as the address has them. */
export function showFilter(state) {
  for (const name of ["text", "namespace", "show", "order"]) {
    if (filter[name].value !== state[name]) filter[name].value = state[name];
  }
  (choices.get(state.phase) ?? choices.get("")).input.checked = true;
}

/** The namespaces to choose from; the chosen one is among them, whether anything is in it or not. */
export function showPlaces(places, chosen) {
  const known = ["", ...new Set([...places, chosen].filter(Boolean))].sort();
  const { options } = filter.namespace;
  if (known.length === options.length && known.every((name, at) => options[at].value === name)) return;
  filter.namespace.replaceChildren(...known.map((name) => element("option", { value: name }, name || "all")));
  filter.namespace.value = chosen;
}

/** How many there are in each phase, of those that there are. */
export function showPhases(counts, chosen) {
  const all = [...counts.values()].reduce((sum, count) => sum + count, 0);
  for (const [phase, { label, count }] of choices) {
    const counted = phase ? counts.get(phase) ?? 0 : all;
    setText(count, counted.toLocaleString("en"));
    label.hidden = Boolean(phase) && !counted && phase !== chosen;
  }
}

/** Why no row is shown; `reason` is one beside those that the list itself tells. */
export function showNothing({ size, shown }, reason) {
  const filtered = `None of ${size.toLocaleString("en")} objects matches the filter.`;
  const told = reason ?? (size ? filtered : "There is no job and no experiment here yet.");
  setText(page.nothing, shown ? "" : told);
}
