"use strict";
// Asks every second; what changed is drawn. Everything is set as text, never as HTML.
const token = new URLSearchParams(location.search).get("token");
const filter = document.getElementById("filter"), state = document.getElementById("state");
const table = document.getElementById("runs");
let shown = "";
function cell(row, value, isNumber) {
  const td = row.insertCell();
  if (value === null || value === undefined) { td.className = "none"; td.textContent = "–"; return; }
  td.textContent = isNumber && typeof value === "number" ? Number(value.toPrecision(5)).toLocaleString("en") : value;
  if (isNumber) { td.className = "number"; td.dataset.value = value; }
}
function draw(found) {
  const head = table.tHead.rows[0], sorted = [...head.cells].find(th => th.hasAttribute("aria-sort"));
  const way = sorted && [sorted.textContent, sorted.getAttribute("aria-sort")];
  head.replaceChildren();
  for (const name of ["run", "started (UTC)", "model", "command", "status", ...found.metrics]) {
    const th = document.createElement("th");
    th.tabIndex = 0; th.textContent = name; head.append(th);
  }
  const body = table.tBodies[0];
  body.replaceChildren();
  for (const run of found.runs) {
    const row = body.insertRow();
    cell(row, run.id, true);
    for (const text of [run.started, run.model, run.command, run.status]) cell(row, text, false);
    for (const value of run.values) cell(row, value, true);
  }
  const again = way && [...head.cells].find(th => th.textContent === way[0]);
  if (again) { sortBy(again); if (way[1] === "descending") sortBy(again); }
}
async function look() {
  try {
    const answer = await fetch(`/runs?token=${token}&filter=${encodeURIComponent(filter.value)}`);
    const text = await answer.text();
    if (!answer.ok) { state.textContent = text; return; }
    const found = JSON.parse(text);
    state.textContent = `${found.count} runs, ${found.runs.length} shown`;
    if (text !== shown) { shown = text; draw(found); }
  } catch (error) {
    state.textContent = `the dashboard has ended (${error.message})`;
  }
}
filter.addEventListener("input", look);
setInterval(look, 1000);
addEventListener("load", look);
