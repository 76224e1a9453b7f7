// Keeps the page in step with the server: events where they come, questions where they do not.

import { drawCoverage, repaint } from "./coverage.js";
import { NONE, count, duration, percent, plural, rate, words } from "./format.js";
import { batchBars, element, facts, meter, rateCharts, say, share, table } from "./parts.js";

const POLL_MS = 2000;
const HIDDEN_POLL_MS = 15000;
const SILENCE_MS = 6000;
const NEWS_MS = 30000;
const FILLS_MS = 3000;
const REFUSED_MS = 20000;
const MOST_RUNS = 100;

const byId = (id) => document.getElementById(id);
const state = { source: null, timer: null, heard: 0, lost: null, news: 0, fills: 0, listenAt: 0 };

function show(status) {
  state.heard = Date.now();
  const { server, teacher, ledger } = status;
  setState(server.trouble ? "warn" : "good", server.trouble ? "Not ready" : "Ready");
  notice(server.trouble ? `The server is up but not ready: ${server.trouble}.` : null);
  say("teacher", teacher.arch);
  say("about", `${teacher.id} on ${teacher.device} \u00b7 ${plural(teacher.classes, "class", "classes")} \u00b7 up ${duration(Math.max(1, Math.floor(server.uptime_s)))}`);
  document.title = `${server.trouble ? "Not ready" : "Ready"} \u00b7 ${plural(ledger.teacher_calls, "call")} \u2013 teachonce`;
  byId("logout").hidden = !server.keys;
  say("foot", `teachonce ${server.version}`);
  showCalls(status);
  showLoad(status);
  showRuns(byId("runs"), "Runs", ledger.runs, "Run");
  const owners = Object.keys(ledger.owners ?? {});
  byId("owners-section").hidden = !server.keys && owners.join() === "local";
  showRuns(byId("owners"), "Key owners", ledger.owners ?? {}, "Owner");
  showRejected(status.rejected);
  drawCoverage(byId("coverage"), status.datasets).catch(() => {});
  if (server.fills) showFills();
  tellNews(status);
}

function showCalls({ ledger, saved, teacher }) {
  say("calls", count(ledger.teacher_calls));
  const lost = ledger.attempts - ledger.teacher_calls - ledger.reserved;
  const parts = [plural(ledger.attempts, "attempt")];
  if (ledger.reserved) parts.push(`${count(ledger.reserved)} under way`);
  if (lost > 0) parts.push(`${count(lost)} without an answer`);
  say("calls-note", parts.join(" \u00b7 "));
  showLeft(ledger);
  say("saved", count(saved.calls));
  say("saved-note", saved.share === null ? "nothing was asked yet"
    : `${percent(saved.share)} of all answers \u00b7 ${plural(ledger.hits, "hit")} \u00b7 ${count(ledger.joined)} joined`);
  say("time", duration(saved.seconds));
  say("time-note", saved.seconds_per_call === null ? "measured with the first call"
    : `at ${duration(saved.seconds_per_call)} per call, measured on ${teacher.device.split(" ")[0]}`);
}

function showLeft({ budget, remaining, runs }) {
  if (budget !== null) {
    say("left", count(remaining));
    say("left-note", `of ${count(budget)} for all runs together`);
    return;
  }
  const bounded = Object.values(runs).filter((run) => run.budget !== null);
  say("left", bounded.length ? count(bounded.reduce((sum, run) => sum + run.remaining, 0)) : "no limit");
  const open = Object.keys(runs).length - bounded.length;
  say("left-note", bounded.length
    ? `of ${count(bounded.reduce((sum, run) => sum + run.budget, 0))} in ${plural(bounded.length, "run")}${open ? ` \u00b7 ${count(open)} without limit` : ""}`
    : "give a run a budget to bound it");
}

function showLoad({ load, history }) {
  rateCharts(history);
  say("hits-now", load.hit_rate === null ? "nobody asks" : `${percent(load.hit_rate)} now`);
  facts(byId("now"), [
    ["Teacher", `${rate(load.teacher_per_second)} images/s`],
    ["Cache", `${rate(load.cache_per_second)} answers/s`],
    ["Requests", `${rate(load.requests_per_second)}/s`],
    ["Hit rate", percent(load.hit_rate)],
    ["Queue", plural(load.queue_images, "image")],
    ["In flight", plural(load.inflight_images, "image")],
    ["Median latency", load.p50_ms === null ? NONE : duration(load.p50_ms / 1000)],
    ["p99 latency", load.p99_ms === null ? NONE : duration(load.p99_ms / 1000)],
  ]);
  say("batches-note", load.mean_batch === null ? "No batch since the start."
    : `${rate(load.mean_batch)} images on average, since the start. Bars: up to so many images.`);
  batchBars(byId("batches"), load.batch_sizes);
}

function showRuns(place, label, runs, first) {
  const all = Object.entries(runs).map(([name, run]) => ({ name, ...run }));
  const rows = all.length > MOST_RUNS ? all.sort((a, b) => b.attempts - a.attempts).slice(0, MOST_RUNS) : all;
  const used = (row) => (row.budget === null ? (row.remaining === null ? "no limit" : "no limit of its own")
    : element("span", { class: "used" }, meter(share(row.attempts, row.budget), row.remaining ? "" : "spent"), `${count(row.attempts)} of ${count(row.budget)}`));
  table(place, {
    label, rows, empty: "None yet.",
    more: all.length > rows.length ? `The ${count(rows.length)} that called most, of ${count(all.length)}; the ledger lists all.` : "",
    columns: [
      { name: first, text: (row) => row.name },
      { name: "Left", number: true, text: (row) => (row.remaining === null ? NONE : count(row.remaining)) },
      { name: "Budget used", text: used },
      { name: "Attempts", number: true, text: (row) => count(row.attempts) },
      { name: "Calls", number: true, text: (row) => count(row.teacher_calls) },
      { name: "Charged", number: true, text: (row) => count(row.charged) },
    ],
  });
}

function showRejected(rows) {
  table(byId("rejected"), {
    label: "Errors and refusals", rows, empty: "None since the start.",
    columns: [
      { name: "Reason", text: (row) => words(row.reason) },
      { name: "Last minute", number: true, text: (row) => count(row.last_minute) },
      { name: "In all", number: true, text: (row) => count(row.count) },
    ],
  });
}

async function showFills() {
  if (Date.now() - state.fills < FILLS_MS) return;
  state.fills = Date.now();
  const reply = await fetch("/v1/fills").catch(() => null);
  if (!reply?.ok) return;
  const { fills } = await reply.json();
  byId("fills-section").hidden = !fills.length;
  table(byId("fills"), {
    label: "Fills", rows: fills, empty: "None.",
    columns: [
      { name: "Data set", text: (row) => `${row.dataset}, views ${row.views.length > 40 ? `${row.views.slice(0, 40)}\u2026` : row.views}` },
      { name: "Done", text: (row) => element("span", { class: "used" }, meter(share(row.done, row.total), "cache"), `${count(row.done)} of ${count(row.total)}`) },
      { name: "State", text: (row) => words(row.state) },
      { name: "Time left", number: true, text: (row) => duration(row.eta_s) },
      { name: "Images/s", number: true, text: (row) => rate(row.images_per_s) },
      { name: "Calls", number: true, text: (row) => count(row.teacher_calls) },
      { name: "Run", text: (row) => row.run ?? NONE },
      { name: "Fill", text: (row) => `${row.id}` },
    ],
  });
}

// What a screen reader is told without being asked: rarely, and when the server comes or goes.
function tellNews({ ledger, saved }, now = Date.now()) {
  if (now - state.news < NEWS_MS) return;
  state.news = now;
  say("news", `${plural(ledger.teacher_calls, "teacher call")} paid, ${plural(saved.calls, "call")} saved.`);
}

function setState(kind, text) {
  byId("state").className = `state ${kind}`;
  say("state", text);
}

function notice(text) {
  const place = byId("notice");
  if (place.textContent !== (text ?? "")) place.textContent = text ?? "";
  place.hidden = text === null;
}

function hear(status) {
  if (state.lost) {
    state.lost = null;
    state.news = 0;
    document.body.classList.remove("stale");
  }
  show(status);
}

function lose(why) {
  state.lost ??= new Date();
  const since = state.lost.toLocaleTimeString("en", { hour12: false });
  document.body.classList.add("stale");
  setState("bad", "No answer");
  notice(`${why} since ${since}. The figures are from before; trying again.`);
  document.title = "No answer \u2013 teachonce";
}

async function poll() {
  try {
    const reply = await fetch("/v1/status", { signal: AbortSignal.timeout(SILENCE_MS) });
    if (reply.status === 401) { location.assign("/login"); return; }
    if (!reply.ok) throw new Error(`status ${reply.status}`);
    hear(await reply.json());
    if (!document.hidden) listen();
  } catch {
    lose("The server has not answered");
  }
}

function listen() {
  if (state.source || Date.now() < state.listenAt) return;
  const source = new EventSource("/v1/status/events");
  state.source = source;
  let opened = false;
  source.onopen = () => { opened = true; };
  source.onmessage = (event) => hear(JSON.parse(event.data));
  source.addEventListener("stopping", () => { stop(); lose("The server has been stopping"); });
  // Not left to the browser: what the server says in place of events (a full house, a login) is asked for.
  source.onerror = () => {
    stop();
    if (!opened) state.listenAt = Date.now() + REFUSED_MS;
  };
}

function stop() {
  state.source?.close();
  state.source = null;
}

function tick() {
  const silent = Date.now() - state.heard > SILENCE_MS;
  if (state.source && silent) stop();
  if (!state.source) poll();
}

function restart() {
  clearInterval(state.timer);
  // A browser opens six connections per server: pages that nobody looks at hold none.
  if (document.hidden) stop();
  state.timer = setInterval(tick, document.hidden ? HIDDEN_POLL_MS : POLL_MS);
  tick();
}

document.addEventListener("visibilitychange", restart);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
state.heard = Date.now();
listen();
restart();
