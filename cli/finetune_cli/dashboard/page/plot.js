// Curves and intervals as SVG, drawn for the width that there is: letters stay as large as all others.

import { element, shape } from "./dom.js";

const HEIGHT = 200;
const MARGIN = { left: 56, right: 16, top: 12, bottom: 30 };
const ROW = 34;
const NAMES = 108;
const TICK_PIXELS = { across: 52, up: 42 };
const DOTS = 40; // points that are marked; more of them would be a thick line
const NAME_CHARACTERS = 14;

/** Four significant digits. */
export function number(value) {
  return String(Number(value.toPrecision(4)));
}

/**
 * A curve by step, with its values as a table for those who do not see it.
 * @param {string} name What is drawn.
 * @param {[number, number][]} points Step and value.
 * @param {{width: number, best?: number | null, note?: string}} options `best`: the step that is marked.
 */
export function curve(name, points, { width, best = null, note = "" }) {
  const values = points.map(([, value]) => value);
  const [least, most] = [Math.min(...values), Math.max(...values)];
  const x = axis(points[0][0], points.at(-1)[0], MARGIN.left, width - MARGIN.right, TICK_PIXELS.across, true);
  const y = axis(least, most, HEIGHT - MARGIN.bottom, MARGIN.top, TICK_PIXELS.up);
  const places = points.map(([step, value]) => [x.place(step), y.place(value)]);
  const marked = points.findIndex(([step]) => step === best);
  const drawn = picture(width, HEIGHT, `${name}: ${told(points, marked)}`, [
    grid(x, y),
    shape("path", { class: "curve", d: `M${places.map((place) => place.map(tenth).join(" ")).join("L")}` }),
    points.length <= DOTS ? places.map((place) => dot(place, 2.5, "dot")) : [],
    marked < 0 ? [] : dot(places[marked], 5, "best"),
  ]);
  drawn.dataset.points = JSON.stringify(points.map((point, at) => [...places[at].map(Math.round), ...point]));
  const caption = [told(points, marked), note].filter(Boolean).join("; ");
  return figure(name, caption, drawn, valuesOf(name, points));
}

function told(points, marked) {
  const [[first, from], [last, to]] = [points[0], points.at(-1)];
  const best = marked < 0 ? "" : `; best ${number(points[marked][1])} at step ${points[marked][0]}`;
  return `${number(from)} at step ${first} to ${number(to)} at step ${last}${best}`;
}

function valuesOf(name, points) {
  const cells = ([step, value]) => [String(step), number(value)].map((cell) => element("td", {}, cell));
  const label = `${name}, values`;
  const head = ["step", name].map((cell) => element("th", { scope: "col" }, cell));
  return element("details", { class: "values" }, element("summary", {}, `${points.length} values`),
    element("div", { class: "scroll", role: "region", tabindex: 0, "aria-label": label },
      element("table", { "aria-label": label },
        element("thead", {}, element("tr", {}, head)),
        element("tbody", {}, points.map((point) => element("tr", {}, cells(point)))))));
}

/**
 * Means with their 95 % intervals, a row each.
 * @param {string} metric What they are of.
 * @param {{name: string, mean: number, low: number | null, high: number | null, verdict: string | null}[]} rows
 */
export function intervals(metric, rows, width) {
  const ends = rows.flatMap((row) => [row.mean, row.low, row.high]).filter((value) => value !== null);
  const height = MARGIN.top + ROW * rows.length + MARGIN.bottom;
  const bottom = height - MARGIN.bottom;
  const x = axis(Math.min(...ends), Math.max(...ends), NAMES + 8, width - MARGIN.right, TICK_PIXELS.across);
  const ticks = x.ticks.map((tick) => [
    line(x.place(tick), MARGIN.top, x.place(tick), bottom, "grid"),
    text(x.place(tick), bottom + 18, number(tick), "middle", "tick"),
  ]);
  const drawn = rows.map((row, at) => interval(row, x, MARGIN.top + ROW * (at + 0.5)));
  const spoken = rows.map((row) => `${row.name} ${number(row.mean)}`).join("; ");
  const caption = "mean of each variant, with its 95 % interval";
  return figure(metric, caption, picture(width, height, `${metric}: ${spoken}`, [ticks, drawn]));
}

function interval({ name, mean, low, high, verdict }, x, y) {
  const isKnown = low !== null && high !== null;
  return [
    text(NAMES, y + 4, short(name), "end", "name"),
    isKnown ? line(x.place(low), y, x.place(high), y, `interval ${verdict ?? ""}`) : [],
    dot([x.place(mean), y], 5, `mean ${verdict ?? ""}`),
  ];
}

function picture(width, height, label, parts) {
  const attributes = { class: "plot", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label };
  return shape("svg", attributes, ...parts.flat(3));
}

function figure(name, caption, ...parts) {
  const told = element("span", { class: "muted" }, caption);
  return element("figure", {}, element("figcaption", {}, element("strong", {}, name), " ", told), ...parts);
}

/** Show the value of the point that is nearest to the pointer; `null` takes it away. */
export function point(plot, event) {
  plot.querySelector(".cursor")?.remove();
  if (!event || !plot.dataset.points) return;
  const box = plot.getBoundingClientRect();
  const { width } = plot.viewBox.baseVal;
  const at = ((event.clientX - box.left) / box.width) * width;
  const isNearer = (one, other) => Math.abs(one[0] - at) < Math.abs(other[0] - at);
  const points = JSON.parse(plot.dataset.points);
  const [x, y, step, value] = points.reduce((best, one) => (isNearer(one, best) ? one : best));
  const [away, anchor] = x > width / 2 ? [-10, "end"] : [10, "start"];
  plot.append(shape("g", { class: "cursor" },
    line(x, MARGIN.top, x, HEIGHT - MARGIN.bottom, "here"),
    dot([x, y], 4.5, "here"),
    text(x + away, MARGIN.top + 12, `step ${step}: ${number(value)}`, anchor, "here")));
}

function grid(x, y) {
  const [left, right, bottom] = [x.start, x.end, HEIGHT - MARGIN.bottom];
  return [
    y.ticks.map((tick) => [
      line(left, y.place(tick), right, y.place(tick), "grid"),
      text(left - 8, y.place(tick) + 4, number(tick), "end", "tick"),
    ]),
    x.ticks.map((tick) => text(x.place(tick), bottom + 18, number(tick), "middle", "tick")),
    line(left, bottom, right, bottom, "axis"),
  ];
}

/** Values → places, in pixels; where all are the same, they stand in the middle. */
function axis(low, high, start, end, pixels, isWhole = false) {
  const padding = isWhole ? 0 : (high - low || Math.abs(high) || 1) * 0.06;
  const [least, most] = [low - padding, high + padding];
  const share = (value) => (most > least ? (value - least) / (most - least) : 0.5);
  const about = (most - least) / Math.max(1, Math.abs(end - start) / pixels);
  const step = Math.max(roundStep(about), isWhole ? 1 : 0);
  const ticks = [];
  for (let at = Math.ceil(least / step - 1e-9); at <= most / step + 1e-9; at += 1) ticks.push(at * step);
  return { place: (value) => start + share(value) * (end - start), ticks, start, end };
}

/** 1, 2 or 5 times a power of ten, hardly below `about`. */
function roundStep(about) {
  if (!(about > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(about));
  return [1, 2, 5, 10].find((factor) => factor * power >= about * 0.8) * power;
}

function line(x1, y1, x2, y2, kind) {
  return shape("line", { class: kind, x1: tenth(x1), y1: tenth(y1), x2: tenth(x2), y2: tenth(y2) });
}

function dot([x, y], r, kind) {
  return shape("circle", { class: kind, cx: tenth(x), cy: tenth(y), r });
}

function text(x, y, content, anchor, kind) {
  return shape("text", { class: kind, x: tenth(x), y: tenth(y), "text-anchor": anchor }, content);
}

function tenth(value) {
  return Math.round(value * 10) / 10;
}

function short(name) {
  return name.length <= NAME_CHARACTERS ? name : `${name.slice(0, NAME_CHARACTERS - 1)}…`;
}
