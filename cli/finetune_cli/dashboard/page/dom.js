// Elements made and changed in place. Text is only ever set as text: nothing that a cluster says becomes markup.

const SVG = "http://www.w3.org/2000/svg";

/** An element with attributes (those that are null, undefined or false are left out) and children, nodes or text. */
export function element(tag, attributes, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** As `element`, of a drawing. */
export function shape(tag, attributes, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(made, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== ""));
  return made;
}

/** Set a text, if it is another one: an equal text would be laid out anew. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Set an attribute; null takes it away. */
export function setAttribute(node, name, value) {
  if (value === null) node.removeAttribute(name);
  else if (node.getAttribute(name) !== value) node.setAttribute(name, value);
}

/**
 * Make the children of `old` like those of `fresh`. Nodes of one kind at one place stay, and with them focus, scroll
 * and what is open; those with a `data-key` are told apart by it, and never moved.
 */
export function morph(old, fresh) {
  const wanted = [...fresh.childNodes];
  const keys = new Set(wanted.map(keyOf));
  const isOver = (node) => node && keyOf(node) && !keys.has(keyOf(node));
  wanted.forEach((node, at) => {
    while (isOver(old.childNodes[at])) old.childNodes[at].remove();
    const there = old.childNodes[at];
    if (!there || keyOf(there) !== keyOf(node)) old.insertBefore(node, there ?? null);
    else if (there.nodeName !== node.nodeName) there.replaceWith(node);
    else if (node.nodeType === Node.TEXT_NODE) setText(there, node.data);
    else {
      morphAttributes(there, node);
      morph(there, node);
    }
  });
  while (old.childNodes.length > wanted.length) old.lastChild.remove();
}

function keyOf(node) {
  return node.dataset?.key ?? "";
}

function morphAttributes(old, fresh) {
  for (const { name } of [...old.attributes]) {
    // What the reader has opened stays open.
    if (!fresh.hasAttribute(name) && name !== "open") old.removeAttribute(name);
  }
  for (const { name, value } of fresh.attributes) setAttribute(old, name, value);
}
