// The rows of one namespace, in order: a head, and chunks of rows. A chunk that is out of sight is neither laid out nor
// painted (content-visibility in page.css), whatever changes in it. Were each row contained by itself, a frame of
// scrolling would cost the more the more rows there are: measured in Chromium, 66 ms of a core with 5,000, here 5 ms.

import { element, setText } from "./dom.js";

const COLUMNS = 6;
const MOST = 100; // rows of a chunk; it is divided then

/** Before, after or equal, as `sort` wants it; what is null (it has no time yet) comes last. */
export function compare(a, b) {
  if (a === b) return 0;
  if (a === null || b === null) return a === null ? 1 : -1;
  return a < b ? -1 : 1;
}

export class Group {
  #chunks;

  /** A new group in a table, before the head of another; null for the last. */
  constructor(name, table, before) {
    this.name = name;
    this.items = [];
    this.shown = 0;
    this.told = element("span", { class: "told" });
    const wide = { role: "rowheader", scope: "rowgroup", colspan: COLUMNS };
    const title = element("th", wide, name || "here", " ", this.told);
    this.head = element("tbody", { role: "rowgroup", class: "head" }, element("tr", { role: "row" }, title));
    const first = newChunk();
    this.#chunks = [first];
    table.insertBefore(this.head, before);
    this.head.after(first.body);
  }

  /** Put an item where it belongs. */
  add(item, order) {
    let low = 0;
    let high = this.items.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (order(this.items[middle].row, item.row) <= 0) low = middle + 1;
      else high = middle;
    }
    const chunk = this.items[low - 1]?.chunk ?? this.#chunks[0];
    const next = this.items[low];
    chunk.body.insertBefore(item.element, next?.chunk === chunk ? next.element : null);
    item.chunk = chunk;
    chunk.size += 1;
    this.items.splice(low, 0, item);
    if (chunk.size > MOST) this.#divide(chunk);
  }

  remove(item) {
    item.element.remove();
    item.chunk.size -= 1;
    this.items.splice(this.items.indexOf(item), 1);
  }

  /** One more (or less) item is shown. */
  count(item, by) {
    this.shown += by;
    item.chunk.shown += by;
  }

  sort(order) {
    this.items.sort((a, b) => order(a.row, b.row));
    this.#chunks.slice(1).forEach((chunk) => chunk.body.remove());
    const [first] = this.#chunks;
    this.#chunks = [first];
    this.#move(this.items, first);
    for (let chunk = first; chunk.size > MOST; chunk = this.#chunks.at(-1)) this.#divide(chunk, MOST / 2);
  }

  /** After changes: the head is there if there are several groups, and chunks have the height of what they show. */
  settle(several) {
    this.head.hidden = this.shown === 0 || !several;
    setText(this.told, this.shown.toLocaleString("en"));
    for (const chunk of this.#chunks) {
      if (chunk.told === chunk.shown) continue;
      chunk.told = chunk.shown;
      chunk.body.hidden = chunk.shown === 0;
      chunk.body.style.setProperty("--shown", chunk.shown);
    }
  }

  leave() {
    this.head.remove();
    this.#chunks.forEach((chunk) => chunk.body.remove());
  }

  /** Let a chunk keep its first rows, and the others go into one of their own after it. */
  #divide(chunk, kept = chunk.size / 2) {
    const focused = document.activeElement;
    const fresh = newChunk();
    chunk.body.after(fresh.body);
    this.#chunks.splice(this.#chunks.indexOf(chunk) + 1, 0, fresh);
    this.#move(this.items.filter((item) => item.chunk === chunk).slice(Math.floor(kept)), fresh);
    if (fresh.body.contains(focused)) focused.focus({ preventScroll: true });
  }

  #move(items, chunk) {
    for (const item of items) {
      item.chunk.size -= 1;
      item.chunk.shown -= item.shown ? 1 : 0;
      item.chunk = chunk;
      chunk.size += 1;
      chunk.shown += item.shown ? 1 : 0;
    }
    chunk.body.append(...items.map((item) => item.element));
  }
}

function newChunk() {
  return { body: element("tbody", { role: "rowgroup", class: "chunk" }), size: 0, shown: 0, told: null };
}
