// The page, from the data that it holds.

const data = JSON.parse(document.getElementById("data").textContent);

showSummary(document.getElementById("summary"));
showStatus(document.getElementById("status"));
showTables(document.getElementById("tables"), data.tables);
for (const [i, { title, svg }] of data.curves.entries()) {
  showFigure("curves", svg, i ? null : "Training curves", title,
    "From metrics.json and cout.txt in each run's folder; cout.txt completes the recalls of metrics.json. Faint: the loss of each iteration. Thick: means over seeds, in a band of one sample standard deviation.",
    `Loss and validation recalls over epochs, a line for each run of ${title}`);
}
showFigure("reliability", data.reliability, "Are the probabilities right?", null,
  "From info.json (matches) of evaluations with a checkpoint’s own weights: pairs of query and candidate, of classes that the probabilities were not fitted on. On the diagonal they are right; dots grow with the number of pairs.",
  "Observed proportion of pairs of one product over the predicted probability, a line for each evaluation");
showGallery(document.getElementById("gallery"), data.galleries);
showSources(document.getElementById("sources"));
showNavigation(document.querySelector("nav"));

function showSummary(header) {
  document.title = data.title;
  const facts = data.facts.flatMap(([name, text]) => [element("dt", {}, name), element("dd", { class: "path" }, text)]);
  header.append(element("h1", { class: "path" }, data.title), element("p", { class: "result path" }, data.result), element("dl", { class: "facts" }, ...facts));
}

function showStatus(section) {
  section.append(element("h2", {}, "Status"));
  if (data.problems.length) section.append(element("ul", { class: "problems" }, ...data.problems.map((line) => element("li", {}, line))));
  else section.append(element("p", {}, "All runs have completed, and all that they did is shown."));
}

function showNavigation(nav) {
  const shown = [...document.querySelectorAll("main > section")].filter((section) => section.hasChildNodes());
  nav.append(...shown.map((section) => element("a", { href: `#${section.id}` }, section.getAttribute("aria-label"))));
}

function showFigure(id, svg, title, kind, source, alt) {
  if (!svg) return;
  document.getElementById(id).append(
    ...(title ? [element("h2", {}, title), element("p", { class: "source" }, source)] : []),
    element("figure", {}, kind && element("h3", { class: "path" }, kind), element("img", { class: "curves", src: `data:image/svg+xml;base64,${svg}`, alt })),
  );
}

function showSources(section) {
  section.append(
    element("h2", {}, "Sources"),
    element("p", { class: "faint" }, "This page was made from these run folders, and from the files below."),
    element("ul", {}, ...data.folders.map((folder) => element("li", { class: "path" }, folder))),
  );
  for (const { folder, files } of data.galleries) {
    section.append(
      element("h3", { class: "path" }, `Gallery of ${folder}`),
      element("ul", {}, ...files.map(({ path, md5 }) => element("li", { class: "path" }, path, element("span", { class: "faint" }, `, MD5 ${md5}`)))),
    );
  }
}
