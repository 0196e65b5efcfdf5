// Responses of one iteration at a time, every token coloured by its log-ratio or its log-prob.

const COLOURINGS = {
  // The scale fits the iteration that is shown.
  differences: {label: "old − rollout log-prob", ends: ["the trainer finds it less likely", "more likely"],
    bound: (values) => values.reduce((most, value) => Math.max(most, Math.abs(value)), 0) || 1},
  log_probs: {label: "rollout log-prob", ends: ["unlikely when sampled", "certain"], bound: () => 5},
};

const ROUNDING = 0.01; // nats a token, in bf16

class SampleBrowser {
  constructor(runs) {
    this.runs = runs.filter((run) => run.iterations.length);
    this.run = this.runs[0];
    this.list = element("div", {class: "samples"});
    this.totals = element("p", {class: "totals"});
    this.key = element("div", {class: "key"});
    this.node = element("div", {}, this.controls(), this.totals, this.key, this.list);
    this.setRun();
  }

  controls() {
    this.slider = element("input", {type: "range", min: 0, step: 1, id: "iteration-slider", oninput: () => this.show()});
    this.output = element("output", {for: "iteration-slider"});
    this.colouring = element("select", {id: "colouring", onchange: () => this.show()});
    const step = (by, label, sign) => element("button", {type: "button", "aria-label": label, onclick: () => {
      this.slider.value = Number(this.slider.value) + by;
      this.show();
    }}, sign);
    return element("div", {class: "controls"},
      this.runs.length > 1 ? this.runSelect() : null,
      element("div", {class: "iteration"}, element("label", {for: "iteration-slider"}, "Iteration"),
        step(-1, "Previous iteration", "‹"), this.slider, step(1, "Next iteration", "›"), this.output),
      element("label", {}, "Colour ", this.colouring));
  }

  runSelect() {
    const select = element("select", {onchange: () => {
      this.run = this.runs[select.value];
      this.setRun();
    }}, this.runs.map((run, i) => element("option", {value: i}, run.name)));
    return element("label", {}, "Run ", select);
  }

  setRun() {
    this.slider.max = this.run.iterations.length - 1;
    this.slider.value = this.slider.max;
    const samples = this.run.iterations.flatMap(({samples}) => samples);
    this.colouring.replaceChildren(...Object.entries(COLOURINGS)
      .filter(([name]) => samples.some((sample) => sample[name]))
      .map(([name, {label}]) => element("option", {value: name}, label)));
    this.show();
  }

  show() {
    const iteration = this.run.iterations[this.slider.value], name = this.colouring.value;
    this.output.textContent = iteration.iteration;
    this.slider.setAttribute("aria-valuetext", `iteration ${iteration.iteration}`);
    this.totals.replaceChildren(...totals(iteration));
    const values = iteration.samples.flatMap((sample) => sample[name] || []);
    const bound = name ? COLOURINGS[name].bound(values) : 0;
    this.key.replaceChildren(...(name ? colourKey(name, bound) : []));
    this.list.replaceChildren(...iteration.samples.map((sample) => sampleCard(sample, name, bound)));
  }
}

function totals(iteration) {
  const same = iteration.degenerate.reduce((sum, [, count]) => sum + count, 0);
  const levels = iteration.degenerate.slice(0, 4).map(([score, count]) => `${count} at ${written(score, 3)}`).join(", ");
  const more = iteration.degenerate.length > 4 ? ", …" : "";
  return [
    `${many(iteration.responses, "response")} in ${many(iteration.groups, "group")} (${iteration.file}). Mean score `,
    element("b", {}, written(iteration.score_mean)), ". ",
    element("b", {}, `${same} degenerate`), same ? ` (all responses of a group alike: ${levels}${more}). ` : ". ",
    element("b", {}, `${iteration.truncated} cut off`), ". ",
    element("b", {}, `${iteration.failed} failed`), " in scoring.",
  ];
}

function colourKey(name, bound) {
  const ends = name === "differences" ? [-bound, bound] : [-bound, 0];
  const isRounding = name === "differences" && bound < ROUNDING;
  return [element("span", {}, COLOURINGS[name].ends[0], " ", element("b", {}, written(ends[0], 3))),
    element("span", {class: `ramp ${name}`, "aria-hidden": "true"}),
    element("span", {}, element("b", {}, signed(ends[1])), " ", COLOURINGS[name].ends[1]),
    element("span", {class: "unit"}, isRounding ? "nats: no more than rounding" : "nats")];
}

// The most intense colour still lets the text be read.
function paint(node, name, value, bound) {
  const share = Math.min(1, Math.abs(value) / bound);
  const colour = name === "differences" && value < 0 ? "--less" : name === "differences" ? "--more" : "--unlikely";
  node.style.backgroundColor = `color-mix(in srgb, var(${colour}) ${Math.round(share * 60)}%, transparent)`;
}

function sampleCard(sample, name, bound) {
  const {scores, place, win_rates: rates} = sample;
  const fact = (label, value) => (value === null ? null : element("li", {}, `${label} `, element("b", {}, value)));
  return element("article", {class: "card sample"},
    element("div", {class: "sample-head"},
      element("h3", {}, sample.why.join(", ")),
      sample.correct === null ? null : element("span", {class: "badge"}, sample.correct ? "right" : "wrong"),
      sample.finish_reason === "length" ? element("span", {class: "badge"}, "cut off") : null,
      sample.degenerate ? element("span", {class: "badge"}, "degenerate group") : null),
    element("ul", {class: "facts"},
      fact("score", written(scores[place - 1])),
      rates ? fact("win rate", written(rates[place - 1])) : null,
      fact("length", many(sample.length, "token")),
      sample.mean_log_prob === null ? null : fact("mean log-prob", written(sample.mean_log_prob, 3)),
      sample.mismatch === null ? null : fact("|Σ (old − rollout)|", written(sample.mismatch, 3)),
      fact("policy version", sample.policy_version),
      fact("response", `${place} of group ${sample.group}`)),
    sample.error === null ? null : element("p", {class: "error"}, `Scoring failed: ${sample.error}`),
    promptText(sample),
    element("h4", {}, "Response"), tokenText(sample, name, bound),
    sample.answer === null ? null : [element("h4", {}, "Expected"), element("pre", {}, sample.answer)],
    element("h4", {}, "Scores of the group"),
    element("ul", {class: "scores"}, scores.map((score, i) =>
      element("li", {"aria-current": i === place - 1 ? "true" : null}, written(score, 3)))));
}

// One element a token; one of them at a time is read out, by pointer or by arrow keys.
function tokenText(sample, name, bound) {
  const texts = sample.token_texts || sample.token_ids, values = sample[name];
  const readout = element("p", {class: "token-readout"}, "Hover a token, or focus the response and use the arrow keys.");
  let current = -1;
  const nodes = texts.map((text, i) => {
    const node = element("span", {class: "token", "data-index": i}, text.replaceAll("\n", "↵\n") || "·");
    if (sample.sampled && !sample.sampled[i]) node.classList.add("given");
    else if (values) paint(node, name, values[i], bound);
    return node;
  });
  const read = (index, aloud) => {
    if (nodes[current]) nodes[current].classList.remove("current");
    current = index;
    nodes[current].classList.add("current");
    readout.textContent = tokenFacts(sample, index);
    if (aloud) byId("live").textContent = readout.textContent;
  };
  const box = element("div", {
    class: sample.token_texts ? "tokens" : "tokens ids",
    tabindex: 0, role: "group", "aria-label": "Response, token by token",
    onpointerover: (event) => {
      if (event.target.dataset.index) read(Number(event.target.dataset.index), false);
    },
    onkeydown: (event) => {
      const by = {ArrowLeft: -1, ArrowRight: 1}[event.key];
      if (!by || !nodes.length) return;
      event.preventDefault();
      read(Math.min(Math.max(current + by, 0), nodes.length - 1), true);
    },
  });
  const gap = sample.left_out ? element("em", {}, ` … ${many(sample.left_out, "token")} left out … `) : null;
  box.append(...[...nodes.slice(0, sample.head), gap, ...nodes.slice(sample.head)].filter((node) => node !== null));
  if (!nodes.length) box.append(element("em", {}, "no tokens"));
  const plain = !sample.token_texts && sample.text !== null ? element("pre", {}, sample.text) : null;
  return [plain, box, readout].filter((node) => node !== null);
}

function tokenFacts(sample, index) {
  const place = index < sample.head ? index + 1 : index + 1 + sample.left_out;
  const facts = [`token ${place} of ${sample.length}`];
  if (sample.token_texts) facts.push(JSON.stringify(sample.token_texts[index]));
  facts.push(`id ${sample.token_ids[index]}`);
  if (sample.sampled && !sample.sampled[index]) return [...facts, "given, not sampled"].join(" · ");
  if (sample.differences) facts.push(`old − rollout ${signed(sample.differences[index])}`);
  if (sample.log_probs) {
    const logProb = sample.log_probs[index];
    facts.push(`rollout log-prob ${written(logProb, 3)} (probability ${written(Math.exp(logProb), 3)})`);
  }
  return facts.join(" · ");
}
