// Tables, bars and charts, made of plain elements; text goes in as text, never as HTML.

import { NONE, percent, plural, rate } from "./format.js";

const SVG = "http://www.w3.org/2000/svg";
const HIGH = 100;

export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

// Replaces text only where it changed: a selection or a screen reader's place survives the tick.
export function say(id, text) {
  const place = document.getElementById(id);
  if (place.textContent !== text) place.textContent = text;
}

export function share(part, whole) {
  return whole > 0 ? Math.min(1, part / whole) : 0;
}

export function meter(part, className = "") {
  const fill = element("span", { class: `fill ${className}` });
  fill.style.width = `${100 * part}%`;
  return element("span", { class: "meter", "aria-hidden": "true" }, fill);
}

// Columns: {name, text: row -> string or node, number: bool}. The first column names its row.
export function table(place, { label, columns, rows, empty, more = "" }) {
  const print = JSON.stringify([rows, more]);
  if (place.dataset.print === print) return;
  place.dataset.print = print;
  if (!rows.length) {
    place.replaceChildren(element("p", { class: "muted" }, empty));
    return;
  }
  const style = (column) => (column.number ? { class: "n" } : {});
  const head = columns.map((column) => element("th", { scope: "col", ...style(column) }, column.name));
  const body = rows.map((row) =>
    element("tr", {}, ...columns.map((column, index) =>
      element(index ? "td" : "th", { ...(index ? {} : { scope: "row" }), ...style(column) }, column.text(row)))));
  const caption = more ? [element("caption", { class: "muted" }, more)] : [];
  const made = element("table", {}, ...caption, element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...body));
  const box = place.querySelector(".scroll");
  // The box stays, and with it how far somebody has scrolled and where the focus is.
  if (box) box.replaceChildren(made);
  else place.replaceChildren(element("div", { class: "scroll", role: "region", tabindex: "0", "aria-label": label }, made));
}

export function facts(place, pairs) {
  if (place.children.length !== pairs.length) {
    place.replaceChildren(...pairs.map(([name]) => element("div", {}, element("dt", {}, name), element("dd"))));
  }
  pairs.forEach(([, value], index) => {
    const shown = place.children[index].lastChild;
    if (shown.textContent !== value) shown.textContent = value;
  });
}

export function batchBars(place, sizes) {
  const most = Math.max(...sizes.map((size) => size.batches), 1);
  place.replaceChildren(...sizes.map(({ first, last, batches }) => {
    const name = last === null ? `${first}+` : first === last ? `${first}` : `${first}\u2013${last}`;
    const bar = element("span", { class: "bar", "aria-hidden": "true" });
    bar.style.height = `${Math.max(batches ? 3 : 0, (100 * batches) / most)}%`;
    const told = element("span", { class: "hidden" }, `${name} images: ${plural(batches, "batch", "batches")}`);
    const label = element("span", { class: "label", "aria-hidden": "true" }, last === null ? `${first}+` : `${last}`);
    return element("li", { title: `${name} images: ${plural(batches, "batch", "batches")}` },
      element("span", { class: "well", "aria-hidden": "true" }, bar), label, told);
  }));
}

function path(className, d) {
  const made = document.createElementNS(SVG, "path");
  made.setAttribute("class", className);
  made.setAttribute("d", d);
  return made;
}

function area(tops, bottoms, { x, y }) {
  const there = tops.map((value, index) => `${x(index)},${y(value)}`);
  const back = bottoms.map((value, index) => `${x(index)},${y(value)}`).reverse();
  return there.length > 1 ? `M${there.join("L")}L${back.join("L")}Z` : "";
}

// A line with holes where nobody asked.
function line(values, { x, y }) {
  let pen = "M";
  let d = "";
  values.forEach((value, index) => {
    if (value === null) { pen = "M"; return; }
    // A lone point is drawn as a short dash.
    const alone = pen === "M" && (values[index + 1] ?? null) === null;
    d += alone ? `M${x(index) - 0.5},${y(value)}h1` : `${pen}${x(index)},${y(value)}`;
    pen = "L";
  });
  return d;
}

function niceTop(value) {
  const power = 10 ** Math.floor(Math.log10(Math.max(value, 1)));
  return [1, 1.5, 2, 3, 4, 5, 6, 8, 10].map((step) => step * power).find((top) => top >= value) ?? value;
}

export function rateCharts({ teacher, cache, interval_s: interval }) {
  const both = teacher.map((value, index) => value + cache[index]);
  const top = niceTop(Math.max(...both, 1));
  const x = (index) => 180 - (teacher.length - 1 - index) * interval;
  const y = (value) => HIGH - (HIGH * value) / top;
  const rates = document.getElementById("rates");
  const zero = teacher.map(() => 0);
  rates.replaceChildren(
    path("grid", `M0,${HIGH / 2}H180`),
    path("area teacher", area(teacher, zero, { x, y })),
    path("area cache", area(both, teacher, { x, y })),
  );
  const peak = Math.max(...both, 0);
  const last = both.at(-1) ?? 0;
  rates.setAttribute("aria-label", `Answers per second, last 3 minutes: ${rate(last)} now, ${rate(peak)} at most`);
  document.getElementById("rates-top").textContent = `${rate(top)}/s`;
  const shares = both.map((sum, index) => (sum > 0 ? cache[index] / sum : null));
  const hits = document.getElementById("hits");
  hits.replaceChildren(
    path("grid", `M0,${HIGH / 2}H180`),
    path("line cache", line(shares, { x, y: (value) => 96 - 92 * value })),
  );
  const asked = shares.filter((value) => value !== null);
  const told = asked.length ? `between ${percent(Math.min(...asked))} and ${percent(Math.max(...asked))}` : NONE;
  hits.setAttribute("aria-label", `Hit rate, last 3 minutes: ${told}`);
}
