// The list: a row an object, in groups by namespace. Every row is in the page, so that the browser finds text in it and
// the keyboard and screen readers reach it.

import { compare, Group } from "./group.js";
import { draw, drawAge, newItem } from "./row.js";

const ORDERS = {
  "": (a, b) => compare(b.created, a.created) || compare(a.name, b.name),
  oldest: (a, b) => compare(a.created, b.created) || compare(a.name, b.name),
  name: (a, b) => compare(a.name, b.name),
};
const SHOWN = {
  "": (row) => !row.experiment,
  jobs: (row) => row.kind === "FineTuneJob" && !row.experiment,
  experiments: (row) => row.kind === "FineTuneExperiment",
  trials: (row) => row.experiment,
};

export function keyOf(kind, place, name) {
  return [kind, place, name].join("\n");
}

/** What is shown of the objects that there are. It changes the page only where something is other than before. */
export class List {
  #items = new Map();
  #groups = new Map();
  #filter = { text: [], namespace: "", isShown: SHOWN[""], phase: "" };
  #order = ORDERS[""];
  #current = null; // the row that Tab leads to
  #open = null;

  /** @param {HTMLTableElement} table With a head and no rows. */
  constructor(table) {
    this.table = table;
    /** Objects by phase that the filter, but for its phase, lets through. */
    this.phases = new Map();
    this.shown = 0;
    table.addEventListener("focusin", ({ target }) => this.#settleOn(this.#itemOf(target)));
    table.addEventListener("focusout", ({ target }) => queueMicrotask(() => this.#judge(this.#itemOf(target))));
    table.addEventListener("keydown", (event) => this.#move(event));
  }

  get size() {
    return this.#items.size;
  }

  get places() {
    return [...this.#groups.keys()];
  }

  keys() {
    return this.#items.keys();
  }

  row(key) {
    return this.#items.get(key)?.row;
  }

  /** An object is new, or has changed. */
  put(row) {
    const key = keyOf(row.kind, row.namespace, row.name);
    let item = this.#items.get(key);
    if (item && item.row.created !== row.created) {
      this.drop(key); // another of the same name, which stands elsewhere
      item = undefined;
    }
    if (!item) {
      item = newItem(key, row);
      this.#items.set(key, item);
      this.#group(row.namespace).add(item, this.#order);
    }
    item.row = row;
    item.text = [row.name, row.namespace, row.phase, row.message, row.best].join("\n").toLowerCase();
    draw(item, key === this.#open);
    this.#judge(item);
  }

  /** An object is gone. */
  drop(key) {
    const item = this.#items.get(key);
    if (!item) return;
    const hadFocus = item.element.contains(document.activeElement);
    const next = hadFocus ? this.#beside(item, 1) ?? this.#beside(item, -1) : null;
    this.#count(item, null, false);
    this.#items.delete(key);
    const group = this.#groups.get(item.row.namespace);
    group.remove(item);
    if (!group.items.length) {
      group.leave();
      this.#groups.delete(group.name);
    }
    if (this.#current === item) this.#current = null;
    next?.link.focus();
  }

  /** Show only what these let through; see `address.read`. */
  filter({ text, namespace, show, phase, order }) {
    const words = text.toLowerCase().split(/\s+/).filter(Boolean);
    this.#filter = { text: words, namespace, isShown: SHOWN[show] ?? SHOWN[""], phase };
    for (const item of this.#items.values()) this.#judge(item);
    const wanted = ORDERS[order] ?? ORDERS[""];
    if (wanted !== this.#order) {
      this.#order = wanted;
      for (const group of this.#groups.values()) group.sort(this.#order);
    }
    this.settle();
  }

  /** Mark the row of what is open, null for nothing. */
  mark(key) {
    const [before, after] = [this.#items.get(this.#open), this.#items.get(key)];
    this.#open = key;
    if (before) draw(before, false);
    if (after) draw(after, true);
  }

  /** Focus a row; false if it is not shown. */
  focus(key) {
    const item = this.#items.get(key);
    if (!item?.shown) return false;
    item.link.focus();
    return true;
  }

  /** After changes: heads of groups, and where Tab leads to. */
  settle() {
    for (const group of this.#groups.values()) group.settle(this.#groups.size > 1);
    if (!this.#current?.shown) this.#settleOn(this.#all().find((item) => item.shown));
  }

  /** Time has passed. */
  tick() {
    const now = Date.now();
    for (const item of this.#items.values()) drawAge(item, now);
  }

  #judge(item) {
    if (!item) return;
    const { text, namespace, isShown, phase } = this.#filter;
    const { row } = item;
    const isInPlace = !namespace || row.namespace === namespace;
    const counted = isInPlace && isShown(row) && text.every((word) => item.text.includes(word));
    const kept = item.shown && item.element.contains(document.activeElement);
    this.#count(item, counted ? row.phase : null, (counted && (!phase || row.phase === phase)) || kept);
  }

  #count(item, phase, shown) {
    if (item.phase !== phase) {
      for (const [name, by] of [[item.phase, -1], [phase, 1]]) {
        if (name) this.phases.set(name, (this.phases.get(name) ?? 0) + by);
      }
      item.phase = phase;
    }
    if (item.shown !== shown) {
      item.shown = shown;
      item.element.hidden = !shown;
      this.shown += shown ? 1 : -1;
      this.#groups.get(item.row.namespace).count(item, shown ? 1 : -1);
    }
  }

  #group(name) {
    let group = this.#groups.get(name);
    if (!group) {
      const after = this.#sorted().find((one) => one.name > name);
      group = new Group(name, this.table, after?.head ?? null);
      this.#groups.set(name, group);
    }
    return group;
  }

  #sorted() {
    return [...this.#groups.values()].sort((a, b) => compare(a.name, b.name));
  }

  /** Items as they stand below each other. */
  #all() {
    return this.#sorted().flatMap((group) => group.items);
  }

  #itemOf(node) {
    return this.#items.get(node.closest?.("tr")?.key);
  }

  #settleOn(item) {
    if (!item || item === this.#current) return;
    if (this.#current) this.#current.link.tabIndex = -1;
    this.#current = item;
    item.link.tabIndex = 0;
  }

  /** The next row that is shown, `by` 1 down or -1 up; null at the end. */
  #beside(item, by) {
    const rows = this.#all();
    for (let at = rows.indexOf(item) + by; rows[at]; at += by) if (rows[at].shown) return rows[at];
    return null;
  }

  #move(event) {
    const item = this.#itemOf(event.target);
    if (!item || event.ctrlKey || event.altKey || event.metaKey) return;
    const rows = () => this.#all().filter((one) => one.shown);
    const wanted = {
      ArrowDown: () => this.#beside(item, 1),
      ArrowUp: () => this.#beside(item, -1),
      Home: () => rows()[0],
      End: () => rows().at(-1),
    }[event.key]?.();
    if (!wanted) return;
    event.preventDefault();
    wanted.link.focus();
  }
}
