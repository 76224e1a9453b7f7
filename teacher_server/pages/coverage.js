// A picture per data set: one line per view, one column per block of rows, the shade says how much is cached.

import { count, percent, plural } from "./format.js";
import { element } from "./parts.js";

const BLOCKS = 128;
const FEW_VIEWS = 12;
const MOST_TABLE_LINES = 40;
const REST_MS = 2000;
const shown = new Map();

export async function drawCoverage(place, datasets) {
  if (datasets.length) place.querySelector(":scope > p")?.remove();
  for (const dataset of datasets) {
    const block = shown.get(dataset.name) ?? addBlock(place, dataset);
    if (block.slots === dataset.slots || block.busy || Date.now() < block.next) continue;
    block.busy = true;
    const began = Date.now();
    try {
      await update(block, dataset);
    } finally {
      block.busy = false;
      // A picture that is dear to make is made less often.
      block.next = Date.now() + Math.max(REST_MS, 10 * (Date.now() - began));
    }
  }
}

export function repaint() {
  for (const block of shown.values()) if (block.answer) paint(block);
}

function addBlock(place, dataset) {
  const block = { slots: null, busy: false, next: 0, answer: null };
  block.note = element("p", { class: "muted" });
  block.root = element("article", { class: "card dataset" }, element("h3", {}, dataset.name), block.note);
  if (dataset.rows !== null) {
    block.canvas = element("canvas", { role: "img", "aria-label": `Coverage of ${dataset.name}` });
    block.axis = element("div", { class: "views", "aria-hidden": "true" });
    block.ends = element("p", { class: "axis", "aria-hidden": "true" });
    block.table = element("div", { class: "scroll", role: "region", tabindex: "0", "aria-label": `Coverage of ${dataset.name}, by view` });
    const details = element("details", {}, element("summary", {}, "As a table"), block.table);
    block.root.append(element("div", { class: "picture" }, block.axis, block.canvas), block.ends, details);
    block.canvas.addEventListener("mousemove", (event) => point(block, event));
  }
  place.append(block.root);
  shown.set(dataset.name, block);
  return block;
}

async function update(block, dataset) {
  if (dataset.rows === null) {
    block.note.textContent = `${plural(dataset.slots, "image")} sent by callers; they have no rows`;
    block.slots = dataset.slots;
    return;
  }
  const reply = await fetch(`/v1/cache/${dataset.name}/coverage?blocks=${BLOCKS}`);
  if (!reply.ok) return;
  block.answer = await reply.json();
  block.slots = dataset.slots;
  tell(block, dataset);
  paint(block);
}

function tell(block, dataset) {
  const { rows, views, cached, more_views: more } = block.answer;
  const sum = cached.reduce((a, b) => a + b, 0);
  const all = sum / (rows * views.length);
  const parts = [
    plural(rows, "row"), `${plural(dataset.slots, "answer")} under ${plural(views.length + more, "view")}`,
    views.length > 1 ? `view 0: ${percent(cached[0] / rows)} of the rows, these views together: ${percent(all)}`
      : `${percent(all)} of the rows`,
    dataset.outputs.join(", "),
  ];
  block.note.textContent = parts.join(" \u00b7 ") + (more ? ` \u00b7 ${plural(more, "view")} not drawn` : "");
  block.canvas.setAttribute("aria-label", `Coverage of ${dataset.name}: ${lines(block.answer, 6)
    .map((line) => `${line.name}: ${percent(line.share)} of ${count(rows)} rows`).join("; ")}`);
  const body = lines(block.answer, MOST_TABLE_LINES).map((line) => element("tr", {},
    element("th", { scope: "row" }, line.name),
    element("td", { class: "n" }, count(line.cached)), element("td", { class: "n" }, percent(line.share))));
  const head = element("tr", {}, element("th", { scope: "col" }, "View"),
    element("th", { scope: "col", class: "n" }, "Rows cached"), element("th", { scope: "col", class: "n" }, "Share"));
  block.table.replaceChildren(element("table", {}, element("thead", {}, head), element("tbody", {}, ...body)));
  block.ends.replaceChildren(element("span", {}, "row 0"), element("span", {}, count(rows - 1)));
}

// At most so many lines: views that follow each other are told together.
function lines({ rows, views, cached }, most) {
  const step = Math.ceil(views.length / most);
  const told = [];
  for (let at = 0; at < views.length; at += step) {
    const group = cached.slice(at, at + step);
    const last = views[Math.min(at + step, views.length) - 1];
    const sum = group.reduce((a, b) => a + b, 0);
    const name = group.length === 1 ? `view ${views[at]}` : `views ${views[at]} to ${last}`;
    told.push({ name, cached: sum, share: sum / (rows * group.length) });
  }
  return told;
}

function paint({ answer, canvas, axis }) {
  const { blocks, views, present } = answer;
  const few = views.length <= FEW_VIEWS;
  const high = few ? 8 : 1;
  canvas.width = blocks;
  canvas.height = views.length * high;
  const lineHeight = few ? 18 : Math.max(2, Math.min(6, Math.floor(330 / views.length)));
  canvas.style.height = `${views.length * lineHeight}px`;
  const style = getComputedStyle(canvas);
  const [empty, full] = ["--empty", "--cache"].map((name) => color(style.getPropertyValue(name)));
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(canvas.width, canvas.height);
  present.forEach((shares, line) => {
    // Between lines of few views a gap stays clear.
    for (let y = line * high; y < (line + 1) * high - (few && views.length > 1 ? 1 : 0); y += 1) {
      shares.forEach((part, x) => {
        const strength = part === 0 ? 0 : part === 1 ? 1 : 0.2 + 0.65 * part;
        const mixed = empty.map((from, channel) => from + strength * (full[channel] - from));
        pixels.data.set([...mixed, 255], 4 * (y * canvas.width + x));
      });
    }
  });
  context.putImageData(pixels, 0, 0);
  label(axis, { views, lineHeight, few });
}

function label(axis, { views, lineHeight, few }) {
  const step = few ? 1 : [5, 10, 20].find((lines) => lines * lineHeight >= 20);
  axis.replaceChildren(...views.flatMap((view, line) => {
    if (line % step) return [];
    const made = element("span", {}, few || line === 0 ? `view ${view}` : `${view}`);
    made.style.top = `${line * lineHeight + (few ? lineHeight / 2 - 1 : lineHeight / 2)}px`;
    return [made];
  }));
}

function point({ answer, canvas }, event) {
  if (!answer) return;
  const box = canvas.getBoundingClientRect();
  const column = Math.min(answer.blocks - 1, Math.floor(((event.clientX - box.left) / box.width) * answer.blocks));
  const line = Math.min(answer.views.length - 1, Math.floor(((event.clientY - box.top) / box.height) * answer.views.length));
  if (line < 0 || column < 0) return;
  const edge = (block) => Math.floor((block * answer.rows) / answer.blocks);
  canvas.title = `view ${answer.views[line]}, rows ${count(edge(column))} to ${count(edge(column + 1) - 1)}: ${percent(answer.present[line][column])}`;
}

function color(text) {
  const hex = text.trim().slice(1);
  return [0, 2, 4].map((at) => parseInt(hex.slice(at, at + 2), 16));
}
