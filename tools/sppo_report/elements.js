"use strict";

// Elements, numbers and search. Text from the data becomes text nodes only, never markup.

const SVG = new Set(["svg", "path", "line", "circle", "text", "g"]);

// element("a", {href: "#x", class: "y", onclick: f}, "text", child, null)
function element(tag, attributes = {}, ...children) {
  const node = SVG.has(tag) ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null));
  return node;
}

const byId = (id) => document.getElementById(id);

// Three or four digits, with a true minus sign.
function written(value, digits = 4) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  let text = String(Number(value.toPrecision(digits)));
  if (size >= 1e3) text = Math.round(value).toLocaleString("en");
  if (size >= 1e7 || (size !== 0 && size < 1e-3)) text = value.toExponential(2).replace(/\.?0*e\+?/, "e");
  return text.replaceAll("-", "−");
}

const signed = (value) => (value > 0 ? "+" : "") + written(value, 3);

function bytes(count) {
  for (const [unit, size] of [["GB", 1e9], ["MB", 1e6], ["kB", 1e3]]) {
    if (count >= size) return `${Number((count / size).toPrecision(3))} ${unit}`;
  }
  return `${count} bytes`;
}

const many = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;

// How many entries of an ascending array are at most x.
function countUpTo(sorted, x) {
  let low = 0, high = sorted.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle] <= x) low = middle + 1;
    else high = middle;
  }
  return low;
}

function nearestIndex(sorted, x) {
  const after = countUpTo(sorted, x);
  if (after === 0) return 0;
  if (after === sorted.length) return after - 1;
  return x - sorted[after - 1] <= sorted[after] - x ? after - 1 : after;
}
