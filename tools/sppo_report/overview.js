// Warnings, numbers and tables: one column for each run.

function runChip(run, index) {
  const dot = element("i", {class: "dot", "aria-hidden": "true"});
  return element("span", {class: `chip colour-${index % 6}`}, dot, run.name);
}

function warningCard(warning, run, index, chartIds) {
  const chart = chartIds.get(warning.metric);
  return element("article", {class: `card warning ${warning.is_now ? "now" : "earlier"}`},
    element("h3", {}, warning.title, " ",
      element("span", {class: "badge"}, warning.is_now ? "at the end" : "earlier"),
      report.runs.length > 1 ? runChip(run, index) : null),
    element("p", {}, element("b", {}, "Seen: "), warning.seen),
    element("p", {}, element("b", {}, "Meaning: "), warning.meaning),
    element("p", {}, element("b", {}, "Try: "), warning.advice),
    chart ? element("p", {}, element("a", {href: `#${chart}`}, "Show the curve")) : null);
}

function showWarnings(chartIds) {
  const cards = report.runs.flatMap((run, i) => run.warnings.map((warning) => warningCard(warning, run, i, chartIds)));
  const calm = element("p", {class: "card"}, "Nothing stands out: log-ratios, R², KL, entropy, gradient norms, reward, ",
    "evaluation, degenerate groups, truncation and the mismatch between sampler and trainer are within their bounds.");
  byId("warning-list").append(...(cards.length ? cards : [calm]));
}

// rows: {label, values}. The first column stays in view when the others scroll.
function table(rows, caption) {
  return element("div", {class: "scroll card", tabindex: 0, role: "region", "aria-label": caption}, element("table", {},
    element("thead", {}, element("tr", {}, element("td", {}),
      report.runs.map((run, i) => element("th", {scope: "col"}, runChip(run, i))))),
    element("tbody", {}, rows.map(({label, values}) => element("tr", {},
      element("th", {scope: "row"}, label), values.map((value) => element("td", {}, value || "–")))))));
}

function tiles(rows) {
  return element("dl", {class: "tiles"}, rows.map(({label, values}) => element("div", {class: "card"},
    element("dt", {}, label), element("dd", {}, values[0]))));
}

function showOverview() {
  const {summary, config, runs} = report;
  const note = element("p", {class: "note"}, "An arrow goes from the mean of the first iterations to that of the last, ",
    "five each if there are that many; in the evaluation, from before training to after it.");
  byId("summary").append(runs.length > 1 ? table(summary, "Numbers of the runs") : tiles(summary), note);
  const headlines = config.filter(({headline, values}) => headline && values[0] !== "null");
  if (runs.length === 1 && headlines.length) {
    byId("summary").append(element("ul", {class: "facts"}, headlines.map(({label, values}) => element("li", {},
      label, " ", element("b", {}, values[0])))));
  }
  byId("stages").append(stageCard() || "", ...runs.filter((run) => run.timeline).map(timelineCard));
}

// Where the time of each run went, every stage in one shade.
function stageCard() {
  const runs = report.runs.filter((run) => Object.keys(run.stage_seconds).length);
  const names = [...new Set(runs.flatMap((run) => Object.keys(run.stage_seconds)))];
  if (!names.length) return null;
  return element("div", {class: "card stages"}, element("h3", {}, "Time by stage"), runs.map((run) => {
    const seconds = names.map((name) => run.stage_seconds[name] || 0), total = seconds.reduce((a, b) => a + b, 0);
    const parts = names.map((name, i) => {
      const part = element("span", {class: `shade-${i % 5}`});
      part.style.flexGrow = seconds[i] / total;
      return part;
    });
    const entries = names.map((name, i) => element("li", {}, element("i", {class: `dot shade-${i % 5}`}),
      `${name} `, element("b", {}, `${Math.round(100 * seconds[i] / total)}%`)));
    const chip = report.runs.length > 1 ? runChip(run, report.runs.indexOf(run)) : null;
    return [element("div", {class: "stage-head"}, chip, element("ul", {class: "legend"}, entries)),
      element("div", {class: "bar", "aria-hidden": "true"}, parts)];
  }).flat());
}

function showConfig() {
  const rows = report.config, different = rows.filter(({differs}) => differs);
  if (!rows.length) byId("config").append(element("p", {class: "card"}, "No config.yaml was found."));
  if (report.runs.length > 1 && rows.length) {
    byId("config").append(element("h3", {}, "What differs"), different.length
      ? table(different, "Keys that differ") : element("p", {class: "card"}, "Nothing but the output folder."));
  }
  if (rows.length) {
    const heading = element("summary", {}, `All ${rows.length} keys`);
    byId("config").append(element("details", {}, heading, table(rows, "All keys")));
  }
}

function showFiles() {
  byId("file-list").append(...report.runs.map((run, i) => element("div", {class: "card"},
    element("h3", {}, runChip(run, i)),
    element("p", {}, element("code", {}, run.folder), ` · ${bytes(run.num_bytes)} read · `,
      `${many(run.num_iterations, "iteration")} in metrics.jsonl · ${many(run.num_rollout_files, "rollout file")}`),
    run.problems.length
      ? element("ul", {class: "problems"}, run.problems.map((problem) => element("li", {}, problem)))
      : element("p", {class: "note"}, "Everything could be read."))));
}
