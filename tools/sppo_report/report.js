// The page, from its data.

const report = JSON.parse(byId("data").textContent);

function redraw() {
  for (const chart of view.charts) chart.draw();
}

function showRuns() {
  byId("runs").append(...report.runs.map((run, i) => {
    if (report.runs.length === 1) return runChip(run, i);
    const box = element("input", {type: "checkbox", checked: true, onchange: () => {
      if (box.checked) view.hiddenRuns.delete(run);
      else view.hiddenRuns.add(run);
      redraw();
    }});
    return element("label", {}, box, runChip(run, i));
  }));
}

// Returns the id of the chart that shows each metric.
function showCharts() {
  const chartIds = new Map(), sections = new Map();
  for (const panel of report.panels) {
    const chart = new Chart(panel, report.runs);
    view.charts.push(chart);
    for (const metric of panel.metrics) chartIds.set(metric, chart.node.id);
    if (!sections.has(panel.section)) sections.set(panel.section, element("div", {class: "grid"}));
    sections.get(panel.section).append(chart.node);
  }
  for (const [title, grid] of sections) byId("charts").append(element("h3", {}, title), grid);
  if (!sections.size) byId("charts").append(element("p", {class: "card"}, "No metrics were found."));
  const axis = element("select", {id: "axis", onchange: () => {
    view.axis = axis.value;
    redraw();
  }}, element("option", {value: "step"}, "optimizer step"), element("option", {value: "iteration"}, "iteration"));
  const smooth = element("input", {type: "checkbox", checked: true, onchange: () => {
    view.smooth = smooth.checked;
    redraw();
  }});
  byId("curve-controls").append(element("label", {}, "Over ", axis), element("label", {}, smooth, " smooth"));
  return chartIds;
}

function showResponses() {
  const place = byId("response-browser");
  if (report.runs.some((run) => run.iterations.length)) place.append(new SampleBrowser(report.runs).node);
  else place.append(element("p", {class: "card"}, "No rollout files were found."));
}

document.title = `SPPO report: ${report.runs.map((run) => run.name).join(", ")}`;
showRuns();
showWarnings(showCharts());
showOverview();
showResponses();
showConfig();
showFiles();
redraw();

// Charts are as wide as there is room.
let width = 0;
new ResizeObserver(([entry]) => {
  if (Math.round(entry.contentRect.width) === width) return;
  width = Math.round(entry.contentRect.width);
  requestAnimationFrame(redraw);
}).observe(byId("charts"));
