// The gallery: queries with their first neighbours before and after reranking, and its filters.

const OUTCOMES = ["gained", "lost", "still wrong", "still right"];
const SIGNS = { gained: "▲ gained", lost: "▼ lost", "still wrong": "✕ still wrong", "still right": "✓ still right" };
const NEIGHBOURS = 10, PAGE_SIZE = 20;

function showGallery(section, galleries) {
  section.append(element("h2", {}, "Gallery: neighbours before and after reranking"));
  if (!galleries.length) {
    section.append(element("p", { class: "faint" }, "There is no gallery; the status above says why."));
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
  const state = { ranking: gallery.rankings.findIndex(({ name }) => name === gallery.best), outcome: null, class: "", text: "", shown: PAGE_SIZE };
  const list = element("div", { class: "queries" });
  const status = element("p", { class: "faint", role: "status" });
  const more = element("button", { class: "more", type: "button", click: () => { state.shown += PAGE_SIZE; draw(); } });
  const buttons = [null, ...OUTCOMES].map((outcome) => element("button", { type: "button", click: () => choose({ outcome }) }));
  const choose = (changes) => {
    Object.assign(state, { shown: PAGE_SIZE }, changes);
    draw();
  };
  const matches = (query) => (!state.class || String(query.class) === state.class) && searchText(query).includes(state.text.toLowerCase());
  const draw = () => {
    const matching = gallery.queries.filter(matches);
    const withOutcome = (outcome) => matching.filter((query) => !outcome || outcomeOf(query, state.ranking) === outcome);
    [null, ...OUTCOMES].forEach((outcome, i) => {
      buttons[i].setAttribute("aria-pressed", String(state.outcome === outcome));
      buttons[i].replaceChildren(outcome ? SIGNS[outcome] : "all", " ", element("small", {}, String(withOutcome(outcome).length)));
    });
    const counts = gallery.counts[gallery.rankings[state.ranking].name];
    const overall = OUTCOMES.map((outcome, i) => `${counts[i].toLocaleString("en")} ${outcome}`).join(", ");
    const selected = withOutcome(state.outcome), drawn = selected.slice(0, state.shown);
    status.textContent = `${selected.length} of ${gallery.queries.length} queries here match. All queries of the evaluation: ${overall}.`;
    list.replaceChildren(...drawn.map((query) => queryCard(gallery, query, state.ranking)));
    more.hidden = drawn.length === selected.length;
    more.textContent = `Show more (${selected.length - drawn.length})`;
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
    status,
    element(
      "div",
      { class: "key" },
      ...[["is-query", "Q", "query"], ["hit", "✓", "hit: of its class"], ["miss", "✕", "miss: of another class"]].map(([kind, sign, text]) =>
        element("span", {}, element("span", { class: `tile ${kind}`, "aria-hidden": "true" }, element("span", { class: "sign" }, sign)), text)),
      element("span", {}, "◉ attention is shown; every photo opens its pair"),
    ),
    list,
    more,
  ];
  draw();
  return elements;
}

function outcomeOf(query, ranking) {
  const before = query.ranks[0] === 1, after = query.ranks[ranking] === 1;
  return OUTCOMES[before ? (after ? 3 : 1) : after ? 0 : 2];
}

function searchText(query) {
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
      element("div", { class: "rows" }, tileRow(gallery, query, 0, "before: global"), tileRow(gallery, query, ranking, `after: ${gallery.rankings[ranking].title}`)),
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
      "aria-label": `${label}, rank ${i + 1}: ${kind}, ${data.photos[neighbour.photo].path}${neighbour.attention ? ", with attention" : ""}`,
      click: () => showPair(document.getElementById("pair"), gallery, query, neighbour, tile),
    });
    photoTile(tile, neighbour.photo, neighbour.hit ? "✓" : "✕");
    if (neighbour.attention) tile.append(element("span", { class: "eye", "aria-hidden": "true" }, "◉"));
    return tile;
  });
  return element("div", { class: "row" }, element("span", { class: "faint" }, label), element("div", { class: "tiles" }, ...tiles));
}

function photoTile(tile, index, sign) {
  const { path, jpeg, problem } = data.photos[index];
  tile.setAttribute("title", problem ?? path);
  tile.append(
    jpeg ? element("img", { src: `data:image/jpeg;base64,${jpeg}`, alt: "" }) : element("span", { class: "grey" }, path),
    element("span", { class: "sign", "aria-hidden": "true" }, sign),
  );
  return tile;
}
