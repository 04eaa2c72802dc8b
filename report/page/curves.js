// Loss and recall of the trainings, side by side, and the list of runs that are drawn.

const DASHES = [null, "7 4", "2 3", "10 3 2 3", "1 5"];

function showCurves(section, runs) {
  if (!runs.length) return;
  const ks = [...new Set(runs.flatMap((run) => Object.keys(run.recalls)))].sort((a, b) => a - b);
  const state = { k: ks[0], hidden: new Set() };
  const charts = element("div", { class: "charts" });
  const styles = runs.map((_, i) => ({ colour: i % 8, dash: DASHES[Math.floor(i / 8) % DASHES.length] }));
  const draw = () => {
    const drawn = runs.map((run, i) => ({ run, style: styles[i], name: shortName(run) })).filter(({ run }) => !state.hidden.has(run));
    const curves = (pick, thin = false) => drawn.map(({ run, style, name }) => ({ ...style, name, thin, points: pick(run) ?? [] })).filter(({ points }) => points.length);
    charts.replaceChildren(
      chart({ title: "Training loss, and its mean over each epoch", unit: "", curves: [...curves((run) => run.iterations, true), ...curves((run) => run.loss)] }),
      chart({ title: `Validation recall at ${state.k ?? "K"}, in %`, unit: " %", curves: curves((run) => run.recalls[state.k]) }),
    );
  };
  const legend = runs.map((run, i) => {
    const box = element("input", { type: "checkbox", checked: true, change: () => {
      if (box.checked) state.hidden.delete(run);
      else state.hidden.add(run);
      draw();
    } });
    const swatch = shape("svg", { class: `swatch s${styles[i].colour}`, width: 34, height: 10, "aria-hidden": "true" },
      shape("line", { x1: 0, x2: 34, y1: 5, y2: 5, "stroke-width": 3, "stroke-dasharray": styles[i].dash }));
    return element("li", {}, element("label", {}, box, swatch, element("span", { class: "path" }, run.name),
      element("span", { class: "source path" }, `seed ${run.seed}, from ${run.files.join(", ")}`)));
  });
  section.append(
    element("h2", {}, "Training curves"),
    element("p", { class: "source" }, "Faint: the loss of each iteration, thinned where there are many. Thick: means over seeds, in a band of one sample standard deviation."),
    element("div", { class: "bar" }, ks.length > 1 ? selection("Recall at", ks.map((k) => [k, k]), state.k, (k) => { state.k = k; draw(); }) : null),
    charts,
    element("ul", { class: "legend" }, ...legend),
  );
  draw();
}

function shortName(run) {
  return run.files.length > 1 ? run.name : run.name.split("/").slice(-3).join("/");
}
