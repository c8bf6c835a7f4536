"use strict";
// A click on a heading sorts by it, another the other way. Numbers sort by their whole value, missing ones last.
function sortBy(heading) {
  const table = heading.closest("table"), body = table.tBodies[0];
  const at = heading.cellIndex, up = heading.getAttribute("aria-sort") !== "ascending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", up ? "ascending" : "descending");
  const key = row => {
    const cell = row.cells[at];
    if (cell.classList.contains("none")) return null;
    return cell.dataset.value === undefined ? cell.textContent : parseFloat(cell.dataset.value.replace("inf", "Infinity"));
  };
  const compare = (a, b) => typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
  const missing = value => value === null || Number.isNaN(value);
  const rows = [...body.rows].map(row => [key(row), row]);
  rows.sort(([a], [b]) => missing(a) || missing(b) ? missing(a) - missing(b) : (up ? 1 : -1) * compare(a, b));
  body.append(...rows.map(([, row]) => row));
}
document.addEventListener("click", event => {
  const heading = event.target.closest("table.sorts th");
  if (heading) sortBy(heading);
});
document.addEventListener("keydown", event => {
  if (event.key === "Enter" && event.target.matches("table.sorts th")) sortBy(event.target);
});
// The wheel zooms a figure around the pointer, dragging moves it, a double click brings it back.
for (const figure of document.querySelectorAll("figure.zooms")) {
  const svg = figure.querySelector("svg");
  if (!svg) continue;
  if (!svg.hasAttribute("viewBox"))
    svg.setAttribute("viewBox", `0 0 ${parseFloat(svg.getAttribute("width"))} ${parseFloat(svg.getAttribute("height"))}`);
  const whole = svg.getAttribute("viewBox").split(/[ ,]+/).map(Number);
  let view = [...whole], from = null;
  const show = () => svg.setAttribute("viewBox", view.join(" "));
  const place = event => {
    const box = svg.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  };
  svg.addEventListener("wheel", event => {
    event.preventDefault();
    const [x, y] = place(event), scale = Math.exp(event.deltaY * 0.0015);
    const width = Math.min(whole[2], Math.max(whole[2] / 50, view[2] * scale)), height = width * whole[3] / whole[2];
    view = [view[0] + x * (view[2] - width), view[1] + y * (view[3] - height), width, height];
    show();
  }, { passive: false });
  svg.addEventListener("pointerdown", event => { from = [place(event), [...view]]; svg.setPointerCapture(event.pointerId); });
  svg.addEventListener("pointermove", event => {
    if (!from) return;
    const [x, y] = place(event), [[x0, y0], was] = from;
    view = [was[0] - (x - x0) * was[2], was[1] - (y - y0) * was[3], was[2], was[3]];
    show();
  });
  svg.addEventListener("pointerup", () => { from = null; });
  svg.addEventListener("dblclick", () => { view = [...whole]; show(); });
}
