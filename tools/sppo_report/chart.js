// One chart: curves over optimizer steps or iterations. All charts share one cursor.

const HEIGHT = 176, MARGIN = {left: 50, right: 12, top: 10, bottom: 24};
const FEW_POINTS = 40; // up to here points are marked, and nothing is smoothed or cut off

const view = {axis: "step", smooth: true, hiddenRuns: new Set(), charts: []};

function setCursor(x) {
  for (const chart of view.charts) chart.moveCursor(x);
}

// One run: a colour for each metric. Several: a colour for each run, a dash for each metric.
function seriesOf(panel, runs) {
  const found = [];
  panel.metrics.forEach((metric, m) => runs.forEach((run, r) => {
    const curve = run.curves[metric], [colour, dash] = runs.length > 1 ? [r, m] : [m, 0];
    if (curve) found.push({run, metric, curve, colour: `colour-${colour % 6}`, dash: `dash-${dash % 4}`});
  }));
  return found;
}

function toggle(label, title, change) {
  const button = element("button", {type: "button", class: "small", "aria-pressed": "false", title, onclick: () => {
    const isOn = button.getAttribute("aria-pressed") === "false";
    button.setAttribute("aria-pressed", isOn);
    change(isOn);
  }}, label);
  return button;
}

class Chart {
  constructor(panel, runs) {
    this.panel = panel;
    this.series = seriesOf(panel, runs);
    const arrays = this.series.map(({curve}) => curve.values), [low, high] = extent(arrays);
    this.isLog = this.isWhole = false;
    const log = toggle("log", "Logarithmic axis", (isOn) => { this.isLog = isOn; this.draw(); });
    const whole = toggle("full range", "Show outliers, which are cut off at the frame", (isOn) => {
      this.isWhole = isOn;
      this.draw();
    });
    this.svg = element("svg", {
      class: "plot", height: HEIGHT, tabindex: 0, role: "img", "aria-label": `${panel.title}. ${panel.meaning}`,
      onpointermove: (event) => setCursor(this.dataX(event)),
      onpointerleave: () => setCursor(null),
      onblur: () => setCursor(null),
      onkeydown: (event) => this.onKey(event),
    });
    this.cursor = element("line", {class: "cursor", y1: MARGIN.top, y2: HEIGHT - MARGIN.bottom});
    this.place = element("text", {class: "cursor", y: HEIGHT - 8, "text-anchor": "middle"});
    this.node = element("article", {class: "card chart", id: `chart-${panel.metrics[0]}`},
      element("div", {class: "chart-head"},
        element("h4", {}, panel.title, panel.unit ? element("span", {class: "unit"}, ` ${panel.unit}`) : null),
        low > 0 && high >= 10 * low ? log : null, innerExtent(arrays) ? whole : null),
      this.svg, this.legend(runs.length), element("p", {class: "note"}, panel.meaning));
  }

  // Every series with its value. If runs and metrics are many, a line for each metric, in the order of the runs.
  legend(numRuns) {
    const swatch = (style) => element("svg", {class: `swatch ${style}`, width: 18, height: 8, "aria-hidden": "true"},
      element("path", {class: "line", d: "M0 4H18"}));
    for (const series of this.series) series.value = element("b", {});
    const metrics = [...new Set(this.series.map(({metric}) => metric))];
    if (numRuns === 1 || metrics.length === 1) {
      return element("ul", {class: "legend"}, this.series.map(({run, metric, colour, dash, value}) => element("li", {},
        swatch(`${colour} ${dash}`), element("span", {}, numRuns === 1 ? metric : run.name), value)));
    }
    return element("ul", {class: "legend lines"}, metrics.map((metric) => {
      const own = this.series.filter((series) => series.metric === metric);
      return element("li", {}, swatch(own[0].dash), element("span", {}, metric), own.map(({run, colour, value}) =>
        element("span", {class: colour, title: run.name}, element("i", {class: "dot"}),
          element("span", {class: "unseen"}, run.name), value)));
    }));
  }

  // What is shown of each series.
  prepare() {
    this.shown = this.series.filter(({run}) => !view.hiddenRuns.has(run));
    for (const series of this.shown) {
      const {steps, values, means} = series.curve;
      series.xs = view.axis === "step" ? steps : steps.map((step) => iterationOf(series.run, step));
      series.raw = values;
      series.isSmooth = view.smooth && steps.length > FEW_POINTS;
      series.ys = series.isSmooth ? smoothed(means || values) : values;
    }
    const groups = new Map();
    for (const series of this.shown) {
      const key = `${series.run.seed_group} ${series.metric}`;
      groups.set(key, [...(groups.get(key) || []), series]);
    }
    this.bands = [...groups.values()].filter((group) => group.length > 1);
    this.alone = this.shown.filter((series) => !this.bands.flat().includes(series));
  }

  // From data to pixels. Values outside the frame are drawn on its edge.
  scale() {
    const raws = this.shown.map(({raw}) => raw);
    let [low, high] = (!this.isWhole && innerExtent(raws)) || extent(raws);
    if (low === high) {
      const pad = Math.abs(low) / 10 || 1;
      [low, high] = this.isLog ? [low / 2, high * 2] : [low - pad, high + pad];
    }
    const height = this.isLog ? Math.log : (y) => y, pad = 0.05 * (height(high) - height(low));
    const bottom = height(low) - pad, top = height(high) + pad;
    const [left, right] = extent(this.shown.map(({xs}) => xs)), span = right - left || 1;
    const inner = {x: this.svg.clientWidth - MARGIN.left - MARGIN.right, y: HEIGHT - MARGIN.top - MARGIN.bottom};
    this.x = (x) => MARGIN.left + (x - left) / span * inner.x;
    this.y = (y) => MARGIN.top + Math.min(Math.max((top - height(y)) / (top - bottom), 0), 1) * inner.y;
    this.invertX = (pixel) => left + (pixel - MARGIN.left) / inner.x * span;
    this.xTicks = ticks(left, left + span, Math.max(2, inner.x / 70)).filter(Number.isInteger);
    this.yTicks = this.isLog ? logTicks(low, high) : ticks(low, high, 5);
  }

  draw() {
    this.prepare();
    this.svg.replaceChildren();
    if (this.shown.length) {
      this.scale();
      this.drawAxes();
      this.bands.forEach((group) => this.drawBand(group));
      this.alone.forEach((series) => this.drawSeries(series));
      this.shown.forEach((series) => this.drawMarker(series));
      this.svg.append(this.cursor, this.place);
    }
    this.moveCursor(null);
  }

  drawAxes() {
    const ends = {x1: MARGIN.left, x2: this.svg.clientWidth - MARGIN.right};
    for (const tick of this.yTicks) {
      const y = this.y(tick);
      this.svg.append(element("line", {class: "grid", y1: y, y2: y, ...ends}),
        element("text", {x: MARGIN.left - 6, y: y + 4, "text-anchor": "end"}, written(tick, 3)));
    }
    for (const tick of this.xTicks) {
      this.svg.append(element("text", {class: "tick", x: this.x(tick), y: HEIGHT - 8, "text-anchor": "middle"},
        tick.toLocaleString("en")));
    }
  }

  drawSeries(series) {
    const {isSmooth, raw, xs, ys} = series, style = `${series.colour} ${series.dash}`;
    if (isSmooth) this.svg.append(element("path", {class: `line raw ${style}`, d: this.path(xs, raw)}));
    this.svg.append(element("path", {class: `line ${style}`, d: this.path(xs, ys)}));
    if (xs.length <= FEW_POINTS) {
      this.svg.append(...xs.map((x, i) => element("circle", {class: style, cx: this.x(x), cy: this.y(ys[i]), r: 2.5})));
    }
  }

  // Of runs that differ in their seeds alone: each faintly, all from the lowest to the highest, and their mean.
  drawBand(group) {
    const [{colour, dash}] = group, end = Math.min(...group.map(({xs}) => xs[xs.length - 1]));
    const xs = group[0].xs.filter((x) => x <= end);
    const columns = xs.map((x) => group.map((series) => series.ys[nearestIndex(series.xs, x)]));
    const low = this.path(xs, columns.map((values) => Math.min(...values)));
    const high = this.path([...xs].reverse(), columns.map((values) => Math.max(...values)).reverse());
    const mean = columns.map((values) => values.reduce((a, b) => a + b, 0) / values.length);
    this.svg.append(element("path", {class: `band ${colour}`, d: `${low}L${high.slice(1)}Z`}),
      ...group.map((series) => element("path", {class: `line raw ${series.colour}`, d: this.path(series.xs, series.ys)})),
      element("path", {class: `line ${colour} ${dash}`, d: this.path(xs, mean)}));
  }

  drawMarker(series) {
    series.marker = element("circle", {class: `cursor ${series.colour} ${series.dash}`, r: 4});
    this.svg.append(series.marker);
  }

  path(xs, ys) {
    return "M" + xs.map((x, i) => `${this.x(x).toFixed(1)} ${this.y(ys[i]).toFixed(1)}`).join("L");
  }

  dataX(event) {
    return this.invertX(event.clientX - this.svg.getBoundingClientRect().left);
  }

  // x: in the data, null for none. The legend then has the last values.
  moveCursor(x) {
    this.cursorX = x;
    this.svg.classList.toggle("has-cursor", x !== null);
    for (const series of this.series) series.value.textContent = "";
    for (const series of this.shown) {
      const place = x === null ? series.xs.length - 1 : nearestIndex(series.xs, x);
      series.value.textContent = written(series.raw[place], 3);
      series.marker.setAttribute("cx", this.x(series.xs[place]));
      series.marker.setAttribute("cy", this.y(series.ys[place]));
    }
    if (x === null || !this.shown.length) return;
    const snapped = this.snap(x), pixel = this.x(snapped);
    for (const end of ["x1", "x2"]) this.cursor.setAttribute(end, pixel);
    this.place.setAttribute("x", Math.min(Math.max(pixel, MARGIN.left + 20), this.svg.clientWidth - 40));
    this.place.textContent = `${view.axis} ${written(snapped)}`;
  }

  longest() {
    return this.shown.reduce((a, b) => (b.xs.length > a.xs.length ? b : a));
  }

  snap(x) {
    const {xs} = this.longest();
    return xs[nearestIndex(xs, x)];
  }

  onKey(event) {
    const moves = {ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -Infinity, End: Infinity};
    if (!(event.key in moves) || !this.shown.length) return;
    event.preventDefault();
    const {xs} = this.longest(), last = xs.length - 1;
    const from = this.cursorX === null ? last : nearestIndex(xs, this.cursorX);
    setCursor(xs[Math.min(Math.max(from + moves[event.key], 0), last)]);
    const values = this.shown.map(({run, metric, value}) => `${run.name} ${metric} ${value.textContent}`);
    byId("live").textContent = `${this.place.textContent}: ${values.join(", ")}`;
  }
}
