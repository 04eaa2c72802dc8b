// The tables, a change at R@1 also as a dot with its interval.

function showTables(section, tables) {
  section.append(element("h2", {}, "Tables"));
  for (const table of tables) {
    section.append(
      element("h3", {}, table.title),
      element("p", { class: "source" }, table.source),
      element("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": table.title }, tableElement(table)),
    );
  }
}

function tableElement({ columns, numeric, rows, intervals }) {
  const classes = numeric.map((isNumeric) => (isNumeric ? "number" : null));
  const reach = Math.max(1, ...intervals.filter(Boolean).flat().map(Math.abs));
  const hasIntervals = intervals.some(Boolean);
  return element(
    "table",
    {},
    element("thead", {}, element("tr", {}, ...columns.map((name, i) => element("th", { scope: "col", class: classes[i] }, name)),
      hasIntervals ? element("th", { scope: "col" }, "interval") : null)),
    element(
      "tbody",
      {},
      ...rows.map((row, r) =>
        element(
          "tr",
          { class: columns[0] === "folder" && columns[1] === "ranking" && r > 0 && row[0] !== rows[r - 1][0] ? "next" : null },
          ...row.map((text, i) => element("td", { class: classes[i] }, text)),
          hasIntervals ? element("td", {}, intervals[r] ? whisker(intervals[r], reach) : "") : null,
        ),
      ),
    ),
  );
}

function whisker([points, low, high], reach) {
  const x = (value) => 60 + (56 * value) / reach;
  return shape(
    "svg",
    { width: 120, height: 14, viewBox: "0 0 120 14", "aria-hidden": "true", class: points < 0 ? "s1" : "s2" },
    shape("line", { x1: 60, x2: 60, y1: 0, y2: 14, class: "guide" }),
    shape("path", { d: `M${x(low)} 7H${x(high)}M${x(low)} 3V11M${x(high)} 3V11`, class: "curve" }),
    shape("circle", { cx: x(points), cy: 7, r: 3.5, class: "dot" }),
  );
}
