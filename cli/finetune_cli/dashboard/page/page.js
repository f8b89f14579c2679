// The page: what the server tells goes into the list, what is asked for stands in the address, one object may be open.

import { read, written } from "./address.js";
import * as around from "./around.js";
import { Detail } from "./detail.js";
import { setText } from "./dom.js";
import { keyOf, List } from "./list.js";
import { follow } from "./live.js";

const FRAME_MILLISECONDS = 8; // of a frame's 16 are spent on changes, at most: the rest is the reader's
const LOADING_MILLISECONDS = 24; // while more is to come than there is to read
const TICK_MILLISECONDS = 20_000;
const DELETED = "It was deleted; this is how it was.";
const WIDE = matchMedia("(min-width: 1080px)"); // as in page.css: list and object stand side by side

const { page } = around;
const filter = page.filter.elements;
const list = new List(page.list);
const detail = new Detail(page.detail);
const pending = new Map(); // what is still to be shown: key → row, null for what is gone
let unseen = null; // during a reset: what was there before and has not been told of again
let isLoading = true;
let place = "namespace";
let state = read();
let opened = null; // key of the object in the detail
let shown = null; // what is known of it
let placeInList = 0; // where the reader was before

// --- what the server tells

function take({ reset, more, rows, gone, problems, loading, title, place: by }) {
  if (reset) {
    place = by;
    around.showTitle(title, by);
    unseen = new Set([...list.keys(), ...pending.keys()]);
  }
  for (const row of rows) later(keyOf(row.kind, row.namespace, row.name), row);
  for (const parts of gone) later(keyOf(...parts), null);
  if (unseen && !more) {
    for (const key of unseen) later(key, null);
    unseen = null;
  }
  isLoading = loading || more;
  around.showProblems(problems);
  schedule();
}

function later(key, row) {
  unseen?.delete(key);
  pending.set(key, row);
}

let isScheduled = false;

function schedule() {
  if (isScheduled) return;
  isScheduled = true;
  requestAnimationFrame(flush);
}

/** Show what has changed, as much as a frame has time for. */
function flush() {
  isScheduled = false;
  const until = performance.now() + (pending.size > list.size ? LOADING_MILLISECONDS : FRAME_MILLISECONDS);
  for (const [key, row] of pending) {
    pending.delete(key);
    const before = list.row(key);
    if (row) list.put(row);
    else list.drop(key);
    if (key === opened) tellOfOpen(before, row);
    if (performance.now() > until) break;
  }
  settle();
  if (pending.size) schedule();
}

function settle() {
  list.settle();
  page.list.hidden = list.shown === 0;
  around.showPlaces(list.places, state.namespace);
  around.showPhases(list.phases, state.phase);
  around.showNothing(list, pending.size ? "" : isLoading ? "Reading what there is …" : null);
}

// --- the address

function arrive() {
  state = read();
  around.showFilter(state);
  list.filter(state);
  settle();
  const key = state.open && keyOf(...state.open);
  if (key !== opened) open(key);
  else if (shown) show();
}

function go(change, { replace = false } = {}) {
  history[replace ? "replaceState" : "pushState"](null, "", written({ ...state, ...change }));
  arrive();
}

function open(key) {
  if (!opened) placeInList = scrollY;
  opened = key;
  shown = null;
  list.mark(key);
  detail.clear();
  page.detail.hidden = !key;
  document.body.classList.toggle("open", Boolean(key));
  if (!WIDE.matches) scrollTo(0, key ? 0 : placeInList);
  if (key) refresh();
  else document.title = "Fine-tuning";
}

// --- the object that is open

let isAsking = false;
let isOutdated = false;

/** Ask for what is open; one question at a time, and once more if something has changed meanwhile. */
async function refresh() {
  isOutdated = true;
  if (isAsking) return;
  isAsking = true;
  while (isOutdated && opened) {
    isOutdated = false;
    const key = opened;
    const object = await ask(...state.open);
    if (key !== opened) isOutdated = true;
    else if (object) receive(object);
  }
  isAsking = false;
}

/** The object as the server knows it; null if it is only that the server does not answer. */
async function ask(kind, namespace, name) {
  try {
    const answer = await fetch(`object?${new URLSearchParams({ kind, namespace, name })}`);
    const object = await answer.json();
    if (answer.ok) return object;
    return shown?.uid ? { ...shown, gone: DELETED } : { kind, namespace, name, gone: object.message };
  } catch {
    return shown ? null : { kind, namespace, name, gone: "The server does not answer." };
  }
}

function receive(object) {
  const isFirst = !shown;
  shown = object;
  show();
  if (isFirst && hasActed) document.getElementById("name").focus({ preventScroll: WIDE.matches });
}

function show() {
  document.title = `${shown.name}: ${shown.phase ?? "not there"}`;
  const full = { percent: null, phase: "Unknown", tone: "plain", headline: "", gone: "", ...shown };
  detail.show(full, { back: written({ ...state, open: null }), place });
}

function tellOfOpen(before, row) {
  if (!row) {
    say(`${state.open[2]} was deleted`);
    if (shown) receive({ ...shown, gone: DELETED });
    return;
  }
  if (before && before.phase !== row.phase) say(`${row.name}: ${row.phase}`);
  if (!before || before.version !== row.version) refresh();
}

/** To those who do not see it. */
function say(text) {
  setText(page.news, text);
}

// --- the reader

let hasActed = false; // a page that was just loaded leaves the focus where it is
let saying = 0;

page.filter.addEventListener("submit", (event) => event.preventDefault());
page.filter.addEventListener("input", () => {
  const { text, namespace, show: kinds, order } = Object.fromEntries(new FormData(page.filter));
  go({ text, namespace, show: kinds, order, phase: filter.phase.value }, { replace: true });
  clearTimeout(saying);
  saying = setTimeout(() => say(`${list.shown} shown`), 600);
});

document.addEventListener("click", (event) => {
  hasActed = true;
  const link = event.target.closest?.("a[href^='#']");
  if (!link || event.button || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
  event.preventDefault();
  if (link.classList.contains("close")) leave();
  else go({ open: read(link.hash).open });
});

document.addEventListener("keydown", (event) => {
  hasActed = true;
  const isWriting = event.target.matches?.("input[type=search], select");
  if (event.key === "/" && !isWriting && !event.ctrlKey && !event.metaKey) {
    event.preventDefault();
    filter.text.focus();
  } else if (event.key === "Escape" && state.open && !isWriting) leave();
});

function leave() {
  const key = opened;
  go({ open: null });
  if (!list.focus(key)) filter.text.focus();
}

addEventListener("popstate", arrive);
addEventListener("hashchange", arrive);
setInterval(() => list.tick(), TICK_MILLISECONDS);

arrive();
follow(take, around.showConnection);
