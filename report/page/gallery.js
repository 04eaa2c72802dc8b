// Queries with their first neighbours before and after reranking, and what of them is shown.

const OUTCOMES = ["gained", "lost", "still wrong", "still right"];
const SIGNS = { gained: "▲ gained", lost: "▼ lost", "still wrong": "✕ still wrong", "still right": "✓ still right" };
const NEIGHBOURS = 10, AT_A_TIME = 20;

function showGallery(section, galleries) {
  section.append(element("h2", {}, "Gallery: neighbours before and after reranking"));
  if (!galleries.length) {
    section.append(element("p", { class: "faint" }, "There is none; the sources below say why."));
    return;
  }
  const body = element("div");
  const show = (gallery) => body.replaceChildren(...galleryElements(gallery));
  if (galleries.length > 1) {
    const options = galleries.map(({ folder }, i) => [String(i), folder]);
    section.append(element("div", { class: "bar" }, selection("Evaluation", options, "0", (i) => show(galleries[Number(i)]))));
  }
  section.append(body);
  show(galleries[0]);
}

function galleryElements(gallery) {
  const state = { ranking: gallery.rankings.findIndex(({ name }) => name === gallery.best), outcome: null, class: "", text: "", shown: AT_A_TIME };
  const list = element("div", { class: "queries" });
  const count = element("p", { class: "faint", role: "status" });
  const more = element("button", { class: "more", type: "button", click: () => { state.shown += AT_A_TIME; draw(); } });
  const buttons = [null, ...OUTCOMES].map((outcome) => element("button", { type: "button", click: () => choose({ outcome }) }));
  const choose = (changes) => {
    Object.assign(state, { shown: AT_A_TIME }, changes);
    draw();
  };
  const fits = (query) => (!state.class || String(query.class) === state.class) && searched(query).includes(state.text.toLowerCase());
  const draw = () => {
    const fitting = gallery.queries.filter(fits);
    const found = fitting.filter((query) => !state.outcome || outcomeOf(query, state.ranking) === state.outcome);
    const totals = gallery.counts[gallery.rankings[state.ranking].name];
    [null, ...OUTCOMES].forEach((outcome, i) => {
      const here = outcome ? fitting.filter((query) => outcomeOf(query, state.ranking) === outcome).length : fitting.length;
      buttons[i].setAttribute("aria-pressed", String(state.outcome === outcome));
      buttons[i].replaceChildren(outcome ? SIGNS[outcome] : "all", " ", element("small", {}, String(here)));
    });
    const among = OUTCOMES.map((outcome, i) => `${totals[i].toLocaleString("en")} ${outcome}`).join(", ");
    count.textContent = `${found.length} of ${gallery.queries.length} queries here fit. Among all queries of the evaluation: ${among}.`;
    const drawn = found.slice(0, state.shown);
    list.replaceChildren(...drawn.map((query) => queryCard(gallery, query, state.ranking)));
    more.hidden = drawn.length === found.length;
    more.textContent = `Show more (${found.length - drawn.length})`;
  };
  const classes = [...new Set(gallery.queries.map((query) => query.class))].sort((a, b) => a - b);
  const search = element("input", { type: "search", placeholder: "part of a path or class", input: () => choose({ text: search.value }) });
  const elements = [
    element("p", { class: "source path" }, `${gallery.folder}: ${gallery.sample}`),
    ...gallery.notes.map((note) => element("p", { class: "source path" }, note)),
    element(
      "div",
      { class: "bar" },
      selection("After: ranked by", gallery.rankings.slice(1).map(({ title }, i) => [String(i + 1), title]), String(state.ranking), (i) => choose({ ranking: Number(i) })),
      selection("Class", [["", "all classes"], ...classes.map((number) => [String(number), String(number)])], "", (number) => choose({ class: number })),
      element("label", {}, "Search", search),
    ),
    element("div", { class: "choices", role: "group", "aria-label": "Outcome at rank 1" }, ...buttons),
    count,
    element(
      "div",
      { class: "key" },
      ...[["is-query", "Q", "query"], ["hit", "✓", "hit: of its class"], ["miss", "✕", "miss: of another class"]].map(([kind, sign, text]) =>
        element("span", {}, element("span", { class: `tile ${kind}`, "aria-hidden": "true" }, element("span", { class: "sign" }, sign)), text)),
      element("span", {}, "◉ attention is kept; every photo opens its pair; arrow keys move between photos"),
    ),
    list,
    more,
  ];
  list.addEventListener("keydown", moveBetweenTiles);
  draw();
  return elements;
}

function outcomeOf(query, ranking) {
  const before = query.ranks[0] === 1, after = query.ranks[ranking] === 1;
  return OUTCOMES[before ? (after ? 3 : 1) : after ? 0 : 2];
}

function searched(query) {
  return `${data.photos[query.photo].path} ${query.class}`.toLowerCase();
}

function queryCard(gallery, query, ranking) {
  const outcome = outcomeOf(query, ranking);
  const rank = (i) => query.ranks[i] ?? `none in the first ${gallery.columns}`;
  return element(
    "article",
    { class: `query ${outcome.replace("still ", "")}` },
    element(
      "header",
      {},
      element("span", { class: "badge" }, SIGNS[outcome]),
      element("h4", { class: "path" }, data.photos[query.photo].path),
      element("span", { class: "faint" }, `class ${query.class} · rank of the first match: ${rank(0)} before, ${rank(ranking)} after`),
    ),
    element(
      "div",
      { class: "compared" },
      photoTile(element("div", { class: "tile is-query", role: "img", "aria-label": "query" }), query.photo, "Q"),
      element("div", { class: "rows" }, tileRow(gallery, query, 0, "before: global descriptor"), tileRow(gallery, query, ranking, `after: ${gallery.rankings[ranking].title}`)),
    ),
  );
}

function tileRow(gallery, query, ranking, label) {
  const first = query.neighbours.filter(({ ranks }) => ranks[ranking] <= NEIGHBOURS).sort((a, b) => a.ranks[ranking] - b.ranks[ranking]);
  const tiles = first.map((neighbour, i) => {
    const kind = neighbour.hit ? "hit" : "miss";
    const tile = element("button", {
      class: `tile ${kind}`,
      type: "button",
      tabindex: i ? -1 : 0,
      "aria-label": `${label}, rank ${i + 1}: ${kind}, ${data.photos[neighbour.photo].path}${neighbour.attention ? ", with attention" : ""}`,
      click: () => showPair(document.getElementById("pair"), gallery, query, neighbour, tile),
    });
    photoTile(tile, neighbour.photo, neighbour.hit ? "✓" : "✕");
    if (neighbour.attention) tile.append(element("span", { class: "eye", "aria-hidden": "true" }, "◉"));
    return tile;
  });
  return element("div", { class: "row" }, element("span", { class: "faint" }, label), element("div", { class: "tiles" }, ...tiles));
}

function photoTile(tile, number, sign) {
  const { path, jpeg, problem } = data.photos[number];
  tile.setAttribute("title", problem ?? path);
  tile.append(
    jpeg ? element("img", { src: `data:image/jpeg;base64,${jpeg}`, alt: "" }) : element("span", { class: "grey" }, path),
    element("span", { class: "sign", "aria-hidden": "true" }, sign),
  );
  return tile;
}

function moveBetweenTiles(event) {
  const row = event.target.closest(".tiles");
  const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
  if (!row || !step) return;
  event.preventDefault();
  const rows = [...event.currentTarget.querySelectorAll(".tiles")];
  const column = [...row.children].indexOf(event.target) + step[1];
  rows[rows.indexOf(row) + step[0]]?.children[column]?.focus();
}
