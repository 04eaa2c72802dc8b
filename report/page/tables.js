// The tables.

const LONG_TEXT = 50; // characters; a longer one is wrapped

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

function tableElement({ columns, numeric, rows }) {
  const classes = numeric.map((isNumeric) => (isNumeric ? "number" : null));
  return element(
    "table",
    {},
    element("thead", {}, element("tr", {}, ...columns.map((name, i) => element("th", { scope: "col", class: classes[i] }, name)))),
    element(
      "tbody",
      {},
      ...rows.map((row) => element("tr", {}, ...row.map((text, i) => element("td", { class: text.length > LONG_TEXT ? "long" : classes[i] }, text)))),
    ),
  );
}
