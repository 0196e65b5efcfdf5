// What each rank did when: one row a rank, one colour a stage. A row is read out as text.

// "optimizer step 3" and "optimizer step 4" are the same stage.
const stageOf = (name) => name.replace(/ \d+$/, "");

function timelineCard(run) {
  const {seconds, num_ranks: count, ranks} = run.timeline;
  const names = [...new Set(ranks.flatMap(({stages}) => stages.map(([name]) => stageOf(name))))];
  const colour = (name) => `colour-${names.indexOf(stageOf(name)) % 6}`;
  const legend = names.map((name) => element("li", {class: colour(name)}, element("i", {class: "dot"}), name));
  const rows = ranks.map(({rank, stages}) => {
    const text = stages.map(([name, start, length]) => `${name} from ${written(start, 3)} s for ${written(length, 3)} s`);
    const bars = stages.map(([name, start, length], i) => {
      const bar = element("span", {class: colour(name), title: text[i]});
      bar.style.left = `${100 * start / (seconds || 1)}%`;
      bar.style.width = `${100 * length / (seconds || 1)}%`;
      return bar;
    });
    return element("li", {}, element("b", {}, String(rank)),
      element("div", {class: "lane", role: "img", tabindex: 0, "aria-label": `Rank ${rank}: ${text.join("; ")}`}, bars));
  });
  const shown = ranks.length < count ? `${ranks.length} of ${count} ranks` : many(count, "rank");
  return element("div", {class: "card timeline"},
    element("h3", {}, "What each rank did when ", report.runs.length > 1 ? runChip(run, report.runs.indexOf(run)) : null),
    element("ul", {class: "legend"}, legend),
    element("ol", {}, rows),
    element("p", {class: "note"}, `${shown}, ${written(seconds, 3)} seconds from left to right, by the machines' own clocks. `,
      "What is empty belongs to none of these stages."));
}
