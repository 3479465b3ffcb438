// Draws what status.json says, once a second. Times are the server's, in nanoseconds as text.
"use strict";

const SECONDS = 1e9;
const SVG = "http://www.w3.org/2000/svg";
const LEVELS = {
  GOOD: ["✓ good", "good"], STARTING: ["… starting", "starting"], WAITING: ["! waiting", "waiting"],
  STALLED: ["✕ stalled", "stalled"], FAILED: ["✕ failed", "failed"], DONE: ["✓ done", "done"],
};
const MOST_SOURCES = 24;
const shown = new Map(); // sections by run

const seconds = ns => Number(ns) / SECONDS;
const duration = s => s < 0.0995 ? `${(1000 * s).toFixed(0)} ms` : s < 100 ? `${s.toFixed(2)} s` : s < 5400 ? `${(s / 60).toFixed(0)} min` : `${(s / 3600).toFixed(1)} h`;
const percent = x => `${(100 * x).toFixed(1)} %`;

function setText(element, text) {
  // Only what has changed, so that a screen reader isn't told the same sentence every second.
  if (element.textContent !== text) element.textContent = text;
}

function make(name, attributes = {}, children = []) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

// One entry for each step: when it was selected, waited for and trained, in seconds.
function spans(detail) {
  let before = null;
  return detail.steps.map(step => {
    const t = step.times, began = seconds(t.started_unix_ns), ready = seconds(step.ready_unix_ns);
    const done = Number(step.last_completed_unix_ns) ? seconds(step.last_completed_unix_ns) : null;
    const load = began + t.load_seconds, score = load + t.draw_seconds + t.score_seconds, pick = score + t.pick_seconds;
    const known = before !== null && before.step + 1 === Number(step.step) ? before.done : null;
    const span = {
      step: Number(step.step), version: Number(step.weights_version), ready, done, known,
      parts: [["load", began, load], ["score", load, score], ["pick", score, pick], ["journal", pick, ready]],
      wait: known === null ? null : Math.max(0, ready - known), starts: known === null ? ready : Math.max(ready, known),
    };
    before = span;
    return span;
  });
}

function drawTimeline(place, run, all, now) {
  const width = Math.max(320, place.clientWidth || 900), left = 76, right = 10, lane = 30, top = 26, height = top + 2 * lane + 26;
  const step = Math.max(run.detail.verdict.step_seconds, 0.05), length = Math.max(2, Math.min(600, step * Math.max(4, width / 90)));
  const end = now, start = end - length, x = t => left + (width - left - right) * (t - start) / length;
  const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
  const pattern = `stripes-${[...shown.keys()].indexOf(run.run)}`;
  svg.append(make("defs", {}, [make("pattern", { id: pattern, class: "stripes", width: 8, height: 8, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" },
    [make("rect", { width: 8, height: 8 }), make("path", { d: "M1.5 0V8" })])]));
  const box = (from, to, y, kind, title, extra = {}) => {
    if (to < start || from > end) return;
    const a = x(Math.max(from, start)), b = x(Math.min(to, end));
    svg.append(make("rect", { x: a, y, width: Math.max(0.6, b - a), height: lane - 8, class: kind, ...extra }, [make("title", {}, [title])]));
  };
  const every = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120].find(s => length / s <= width / 80) ?? 300;
  for (let back = 0; back <= length; back += every) {
    svg.append(make("line", { x1: x(end - back), x2: x(end - back), y1: top - 4, y2: top + 2 * lane }));
    const mark = make("text", { x: x(end - back), y: height - 8, "text-anchor": back ? "middle" : "end" }, [back ? `−${+back.toFixed(1)} s` : "now"]);
    if (x(end - back) > left + 14) svg.append(mark);
  }
  svg.append(make("text", { x: 4, y: top + 15, class: "lane" }, ["selector"]), make("text", { x: 4, y: top + lane + 15, class: "lane" }, ["trainers"]));
  for (const span of all) {
    for (const [kind, from, to] of span.parts) box(from, to, top, kind, `step ${span.step}: ${kind} ${duration(to - from)}`);
    if (span.wait) box(span.known, span.ready, top + lane, "waited", `step ${span.step}: waited ${duration(span.wait)}`, { fill: `url(#${pattern})` });
    if (span.known === null && span.done === null) continue; // its training hasn't begun
    box(span.starts, span.done ?? end, top + lane, "train", `step ${span.step}: training`);
    const middle = (Math.max(span.starts, start) + (span.done ?? end)) / 2;
    if (span.starts > start && x(span.done ?? end) - x(span.starts) > 26)
      svg.append(make("text", { x: x(middle), y: 14, "text-anchor": "middle" }, [String(span.step)]));
  }
  const last = all.at(-1);
  if (last && last.done !== null && last.done < end && !run.closed && Number(run.next_step) < Number(run.num_steps))
    box(last.done, end, top + lane, "waited", "waiting", { fill: `url(#${pattern})` });
  place.replaceChildren(svg);
  place.setAttribute("aria-label", `Timeline of the last ${duration(length)}: the selector's work above, the trainers' training and waiting below. ${run.detail.verdict.headline}`);
}

function rows(body, cells) {
  body.replaceChildren(...cells.map(([head, ...rest]) => {
    const row = document.createElement("tr"), first = document.createElement("th");
    first.scope = "row";
    first.textContent = head;
    row.append(first, ...rest.map(value => {
      const cell = document.createElement("td");
      cell.append(value);
      return cell;
    }));
    return row;
  }));
}

function bars(drawn, picked) {
  const cell = document.createDocumentFragment();
  for (const [kind, share] of [["drawn", drawn], ["picked", picked]]) {
    const bar = document.createElement("span");
    bar.className = `bar ${kind}`;
    bar.style.width = percent(share).replace(" ", "");
    cell.append(bar);
  }
  return cell;
}

function drawSources(section, sources) {
  const total = { drawn: 0, picked: 0 };
  const all = Object.entries(sources).map(([name, rows]) => ({ name, drawn: Number(rows.drawn), picked: Number(rows.picked) }));
  for (const source of all) { total.drawn += source.drawn; total.picked += source.picked; }
  all.sort((a, b) => b.drawn - a.drawn || a.name.localeCompare(b.name));
  const most = Math.max(0.01, ...all.map(s => Math.max(s.drawn / (total.drawn || 1), s.picked / (total.picked || 1))));
  const named = all.slice(0, MOST_SOURCES), others = all.slice(MOST_SOURCES);
  if (others.length) named.push({ name: `${others.length} others`, drawn: others.reduce((n, s) => n + s.drawn, 0), picked: others.reduce((n, s) => n + s.picked, 0) });
  rows(section.querySelector(".sources tbody"), named.map(s => {
    const drawn = s.drawn / (total.drawn || 1), picked = s.picked / (total.picked || 1);
    return [s.name, percent(drawn), percent(picked), bars(Math.min(1, drawn / most), Math.min(1, picked / most))];
  }));
}

function ranksInWords(run) {
  const done = Object.entries(run.completed).map(([rank, steps]) => [Number(rank), Number(steps)]);
  const most = Math.max(...done.map(([, steps]) => steps)), gone = run.gone_ranks.map(Number);
  const parts = [`${done.length - gone.length} of ${done.length} here`];
  const behind = done.filter(([rank, steps]) => steps < most && !gone.includes(rank)).map(([rank]) => rank);
  if (behind.length) parts.push(`behind the furthest: ${behind.slice(0, 12).join(", ")}${behind.length > 12 ? ` and ${behind.length - 12} more` : ""}`);
  for (const rank of gone.slice(0, 12)) parts.push(`rank ${rank} gone for ${duration(run.silent_seconds[rank] ?? 0)}, with ${run.completed[rank]} steps completed`);
  return parts.join(" · ");
}

function drawRun(run) {
  let section = shown.get(run.run);
  if (!section) {
    section = document.getElementById("run").content.cloneNode(true).firstElementChild;
    section.setAttribute("aria-label", `run ${run.run}`);
    shown.set(run.run, section);
    document.getElementById("runs").append(section);
  }
  const find = selector => section.querySelector(selector);
  const { detail } = run, { verdict } = detail, [level, style] = LEVELS[verdict.level] ?? [verdict.level, ""];
  const here = Object.entries(run.completed).filter(([rank]) => !run.gone_ranks.map(Number).includes(Number(rank))).map(([, steps]) => Number(steps));
  const trained = here.length ? Math.min(...here) : Math.max(...Object.values(run.completed).map(Number));
  setText(find("h2"), run.run);
  find(".verdict").className = `verdict ${style}`;
  setText(find(".level"), level);
  setText(find(".headline"), verdict.headline);
  setText(find(".remedy"), verdict.remedy ? `What helps: ${verdict.remedy}.` : "");
  const bar = find("progress");
  [bar.max, bar.value] = [Number(run.num_steps), trained];
  bar.setAttribute("aria-label", "steps trained");
  const rest = verdict.step_seconds * (Number(run.num_steps) - trained);
  setText(find(".steps"), `${trained} of ${run.num_steps} steps trained${rest > 0 && !run.closed ? `, ${duration(rest)} to go` : ""}`);
  const figures = {
    "steps ahead, of at most": `${Math.max(0, Number(run.next_step) - trained - 1)} / ${detail.lookahead}`,
    "of the time waited": percent(verdict.wait_fraction),
    "a step": duration(verdict.step_seconds),
    "training it": duration(verdict.training_seconds),
    "a selection": duration(verdict.selection_seconds),
    "rows picked, of drawn": `${detail.sub_batch_size} / ${detail.large_batch_size}`,
    "rows trained per second": verdict.step_seconds ? (Number(detail.sub_batch_size) / verdict.step_seconds).toFixed(1) : "–",
    "steps old are its weights": detail.staleness,
    "steps without a selection": run.num_fallback,
  };
  const list = find(".figures");
  if (!list.children.length) list.append(...Object.keys(figures).map(name => {
    const group = document.createElement("div"), term = document.createElement("dt");
    term.textContent = name;
    group.append(term, document.createElement("dd"));
    return group;
  }));
  Object.values(figures).forEach((value, n) => setText(list.children[n].lastElementChild, String(value)));
  const all = spans(detail);
  drawTimeline(find(".timeline"), run, all, seconds(detail.unix_ns));
  rows(find(".steps-table tbody"), all.slice(-50).reverse().map(s => [
    String(s.step), String(s.version), (s.ready - s.parts[0][1]).toFixed(3), s.wait === null ? "–" : s.wait.toFixed(3),
    s.done === null ? "–" : (s.done - s.starts).toFixed(3),
  ]));
  drawSources(section, detail.sources);
  setText(find(".ranks"), ranksInWords(run));
}

function draw(status) {
  setText(document.getElementById("server"), `${status.address} · ${status.scoring_processes} scoring process${status.scoring_processes > 1 ? "es" : ""} · ${Number(status.num_rows).toLocaleString("en")} rows of ${status.num_sources} sources`);
  const main = document.getElementById("runs");
  for (const [name, section] of shown) if (!status.runs.some(run => run.run === name)) { section.remove(); shown.delete(name); }
  status.runs.forEach(drawRun);
  let empty = document.getElementById("empty");
  if (!status.runs.length && !empty) {
    empty = document.createElement("p");
    empty.id = "empty";
    empty.textContent = "No run yet: start a trainer.";
    main.append(empty);
  } else if (status.runs.length && empty) empty.remove();
}

const live = document.getElementById("live"), form = document.getElementById("token");
const EVERY_MS = 1000, TOKEN = "subbatch-token";
let answered = null;

function say(state, text) {
  live.className = state;
  setText(live, text);
}

async function look() {
  const token = sessionStorage.getItem(TOKEN);
  let response;
  try {
    response = await fetch("status.json", { cache: "no-store", headers: token ? { Authorization: `Bearer ${token}` } : {} });
  } catch {
    const since = answered ? ` since ${answered.toLocaleTimeString()}; what is shown is as old` : "";
    return say("off", `the server doesn’t answer${since}`);
  }
  form.hidden = response.status !== 401;
  if (response.status === 401) return say("off", token ? "this token may not read metrics" : "a token that may read metrics is needed");
  if (!response.ok) return say("off", `the server answers ${response.status}: ${(await response.text()).trim()}`);
  draw(await response.json());
  answered = new Date();
  say("on", "live");
}

async function keepLooking() {
  if (!document.hidden) await look();
  setTimeout(keepLooking, EVERY_MS);
}

form.addEventListener("submit", event => {
  event.preventDefault();
  sessionStorage.setItem(TOKEN, form.elements.token.value.trim());
  look();
});
keepLooking();
