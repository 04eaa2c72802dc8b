// One chart of curves; a guide, moved by pointer or arrow keys, reads their values.

function chart({ title, unit, curves }) {
  const readout = element("output", {}, "");
  const drawing = element("div");
  const figure = element("figure", { class: "chart" }, element("figcaption", {}, title), drawing, readout);
  let drawnWidth = 0;
  new ResizeObserver(() => {
    const width = Math.round(drawing.clientWidth);
    if (width && width !== drawnWidth) {
      drawnWidth = width;
      drawing.replaceChildren(drawn(width));
    }
  }).observe(drawing);

  function drawn(width) {
    const height = 260, left = 46, right = 10, top = 10, bottom = 36;
    const points = curves.flatMap((curve) => curve.points);
    if (!points.length) return element("p", { class: "faint" }, "Nothing was logged by the runs that are chosen.");
    const spread = points.flatMap(([, y, deviation = 0]) => [y - deviation, y + deviation]);
    const xs = scale(points.map(([x]) => x), left, width - right, true);
    const ys = scale(spread, height - bottom, top);
    const line = (curve) => curve.points.map(([x, y], i) => `${i ? "L" : "M"}${xs.at(x).toFixed(1)} ${ys.at(y).toFixed(1)}`).join("");
    const guide = shape("line", { class: "guide", y1: top, y2: height - bottom, visibility: "hidden" });
    const svg = shape(
      "svg",
      { width, height, viewBox: `0 0 ${width} ${height}`, tabindex: 0, role: "img", "aria-label": `${title}; arrow keys read values` },
      ...ys.ticks.flatMap((y) => [
        shape("line", { class: "grid", x1: left, x2: width - right, y1: ys.at(y), y2: ys.at(y) }),
        shape("text", { x: left - 7, y: ys.at(y) + 4, "text-anchor": "end" }, shortNumber(y)),
      ]),
      ...xs.ticks.map((x) => shape("text", { x: xs.at(x), y: height - bottom + 17, "text-anchor": "middle" }, shortNumber(x))),
      shape("text", { x: (left + width - right) / 2, y: height - 4, "text-anchor": "middle" }, "epochs trained"),
      ...curves.filter(({ points: [first] }) => first?.length === 3).map((curve) => {
        const upper = curve.points.map(([x, y, d]) => `${xs.at(x)},${ys.at(y + d)}`);
        const lower = curve.points.map(([x, y, d]) => `${xs.at(x)},${ys.at(y - d)}`).reverse();
        return shape("polygon", { class: `band s${curve.colour}`, points: [...upper, ...lower].join(" ") });
      }),
      ...curves.map((curve) => shape("path", { class: `curve s${curve.colour}${curve.thin ? " thin" : curve.points[0].length === 3 ? " mean" : ""}`, "stroke-dasharray": curve.dash, d: line(curve) })),
      ...curves.filter((curve) => curve.points.length === 1).map((curve) =>
        shape("circle", { class: `dot s${curve.colour}`, cx: xs.at(curve.points[0][0]), cy: ys.at(curve.points[0][1]), r: 3.5 }),
      ),
      guide,
    );
    const stops = [...new Set(curves.filter((curve) => !curve.thin).flatMap((curve) => curve.points.map(([x]) => x)))].sort((a, b) => a - b);
    let stop = stops.length - 1;
    const read = (next) => {
      stop = Math.max(0, Math.min(stops.length - 1, next));
      const x = xs.at(stops[stop]);
      for (const end of ["x1", "x2"]) guide.setAttribute(end, x);
      guide.setAttribute("visibility", "visible");
      const values = curves.filter((curve) => !curve.thin).flatMap(({ name, points: own }) => {
        const point = own.find(([at]) => at === stops[stop]);
        return point ? [`${name} ${point[1].toFixed(2)}${point.length === 3 ? ` ± ${point[2].toFixed(2)}` : ""}${unit}`] : [];
      });
      readout.textContent = `epoch ${shortNumber(stops[stop])}: ${values.join(", ")}`;
    };
    svg.addEventListener("pointermove", (event) => {
      const at = xs.from(event.clientX - svg.getBoundingClientRect().left);
      read(stops.reduce((best, x, i) => (Math.abs(x - at) < Math.abs(stops[best] - at) ? i : best), 0));
    });
    svg.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (step) {
        event.preventDefault();
        read(stop + step);
      }
    });
    return svg;
  }

  return figure;
}

// Round ticks over the values; the scale ends at ticks, or when it is tight at 0 and the last value.
function scale(values, start, end, tight = false) {
  let low = tight ? 0 : Math.min(...values), high = Math.max(...values);
  const least = Math.max(1e-6, 1e-6 * Math.abs(high)); // finer steps would be lost to rounding
  if (high - low < least) [low, high] = [low - 1e3 * least, high + 1e3 * least];
  const rough = (high - low) / 4, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((factor) => factor * power >= rough) * power;
  const first = Math.floor(low / step), last = tight ? Math.floor(high / step) : Math.ceil(high / step);
  if (!tight) [low, high] = [first * step, last * step];
  return {
    ticks: Array.from({ length: last - first + 1 }, (_, i) => (first + i) * step),
    at: (value) => start + ((end - start) * (value - low)) / (high - low),
    from: (position) => low + ((high - low) * (position - start)) / (end - start),
  };
}

function shortNumber(value) {
  return Number(value.toPrecision(4)).toString();
}
