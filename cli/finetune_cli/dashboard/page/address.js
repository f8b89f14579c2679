// What the part of the address after # says: which object is open, and what is filtered. So all of it can be linked to,
// and the browser's Back works.

const FIELDS = ["text", "namespace", "show", "order", "phase"];

/** {text, namespace, show, order, phase, open}: empty texts for what is not said, `open` a key or null. */
export function read(hash = location.hash) {
  const said = new URLSearchParams(hash.slice(1));
  const state = Object.fromEntries(FIELDS.map((name) => [name, said.get(name) ?? ""]));
  const parts = said.has("name") ? ["kind", "in", "name"].map((name) => said.get(name) ?? "") : null;
  return { ...state, open: parts };
}

/** The address of a state. */
export function written(state) {
  const said = new URLSearchParams();
  for (const name of FIELDS) if (state[name]) said.set(name, state[name]);
  if (state.open) ["kind", "in", "name"].forEach((name, at) => said.set(name, state.open[at]));
  return `#${said}`;
}

/** Links lead to the object alone; whoever follows one on this page keeps the filter (see page.js). */
export function linkTo(kind, place, name) {
  return written({ open: [kind, place, name] });
}
