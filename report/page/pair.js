// A query and one of its neighbours: classes, ranks, scores, and the matcher's attention.

const FULL = 65535, SIDE = 224, GAP = 28;

function showPair(dialog, gallery, query, neighbour, opener) {
  const path = (photo) => data.photos[photo].path;
  dialog.replaceChildren(
    element(
      "header",
      {},
      element("h2", {}, neighbour.hit ? "✓ Hit: of the query’s class" : "✕ Miss: of another class"),
      element("button", { class: "close", type: "button", click: () => dialog.close() }, "Close"),
    ),
    element(
      "dl",
      { class: "facts" },
      ...[
        ["Query", `${path(query.photo)}, class ${query.class}`],
        ["Neighbour", `${path(neighbour.photo)}, class ${neighbour.class}`],
        ["Rank", gallery.rankings.map(({ title }, i) => `${neighbour.ranks[i]} by ${title}`).join("; ")],
        ["Scores", [["logit", neighbour.logits], ["cosine", neighbour.cosines], ["chamfer", neighbour.chamfer]]
          .map(([name, value]) => (value === undefined ? `no ${name}` : `${name} ${value.toFixed(3)}`)).join(", ")],
      ].flatMap(([name, text]) => [element("dt", {}, name), element("dd", { class: "path" }, text)]),
    ),
    neighbour.attention ? attentionView(gallery, neighbour.attention) : withoutAttention(query, neighbour),
  );
  dialog.addEventListener("close", () => opener.focus(), { once: true });
  dialog.showModal();
}

function withoutAttention(query, neighbour) {
  return element(
    "div",
    { class: "bar" },
    photoTile(element("div", { class: "tile is-query", role: "img", "aria-label": "query" }), query.photo, "Q"),
    photoTile(element("div", { class: `tile ${neighbour.hit ? "hit" : "miss"}`, role: "img", "aria-label": "neighbour" }), neighbour.photo, neighbour.hit ? "✓" : "✕"),
    element("p", { class: "faint" }, "The page has no attention for this pair; it has for photos marked ◉."),
  );
}

function attentionView(gallery, attention) {
  const bytes = Uint8Array.from(atob(attention.weights), (character) => character.charCodeAt(0));
  const values = new DataView(bytes.buffer);
  const [n, m] = attention.grids.map(([height, width]) => height * width);
  const length = n + m + 2;
  const state = { layer: attention.layers - 1, head: 0 };
  const body = element("div");
  const draw = () => {
    const start = (state.layer * (attention.heads + 1) + state.head) * length;
    const row = Array.from({ length }, (_, i) => values.getUint16(2 * (start + i), true) / FULL);
    const links = attention.pairs[state.layer]?.[state.head]; // the last layer has none
    body.replaceChildren(
      element("div", { class: "names" }, element("span", {}, "query"), element("span", {}, "neighbour")),
      pairPhotos(gallery, attention, row, links ?? attention.matches),
      ...readoutSums(row, n),
      element("p", { class: "faint" }, links
        ? "Photos are as the network sees them, squared and cut at their edges. Lines join the patches of both photos that attend most to each other in this layer (by the smaller weight of the two directions)."
        : "Photos are as the network sees them, squared and cut at their edges. In the last layer only the readout’s own row counts towards the logit: here lines join the patches that match best, those that add most to the Chamfer similarity."),
    );
  };
  const layers = Array.from({ length: attention.layers }, (_, i) => [String(i), `${i + 1}${i + 1 === attention.layers ? " (last)" : ""}`]);
  const heads = [["0", "mean of all"], ...Array.from({ length: attention.heads }, (_, i) => [String(i + 1), String(i + 1)])];
  draw();
  return element(
    "div",
    {},
    element(
      "div",
      { class: "bar" },
      selection("Layer", layers, String(state.layer), (layer) => { state.layer = Number(layer); draw(); }),
      selection("Head", heads, "0", (head) => { state.head = Number(head); draw(); }),
    ),
    body,
  );
}

function percent(weight) {
  return `${(100 * weight).toFixed(1)} %`;
}

function pairPhotos(gallery, attention, row, links) {
  const [n] = attention.grids.map(([height, width]) => height * width);
  const sides = [row.slice(1, n + 1), row.slice(n + 2)];
  const maximum = Math.max(...sides.flat(), 1e-9);
  const centre = (side, patch) => {
    const [height, width] = attention.grids[side];
    return [side * (SIDE + GAP) + ((patch % width) + 0.5) * (SIDE / width), (Math.floor(patch / width) + 0.5) * (SIDE / height)];
  };
  const photos = sides.flatMap((weights, side) => {
    const [height, width] = attention.grids[side], left = side * (SIDE + GAP);
    return [
      shape("image", { href: `data:image/jpeg;base64,${gallery.views[attention.views[side]]}`, x: left, y: 0, width: SIDE, height: SIDE, preserveAspectRatio: "none" }),
      ...weights.flatMap((weight, i) => {
        const box = { x: left + ((i % width) * SIDE) / width, y: (Math.floor(i / width) * SIDE) / height, width: SIDE / width, height: SIDE / height };
        return [
          shape("rect", { ...box, class: "mask", "fill-opacity": (0.85 * (1 - weight / maximum)).toFixed(3) }),
          shape("rect", { ...box, class: "cell" }, shape("title", {}, percent(weight))),
        ];
      }),
    ];
  });
  const lines = links.flatMap(([i, j], k) => {
    const [x1, y1] = centre(0, i), [x2, y2] = centre(1, j);
    const bend = (y1 + y2) / 2 + 12 * (k - (links.length - 1) / 2); // lines between the same rows part
    const d = `M${x1} ${y1}Q${(x1 + x2) / 2} ${bend} ${x2} ${y2}`;
    return [shape("path", { d, class: "link-back" }), shape("path", { d, class: `link l${k % 6}` })];
  });
  return shape(
    "svg",
    { class: "pair-photos", viewBox: `0 0 ${2 * SIDE + GAP} ${SIDE}`, role: "img", "aria-label": "The readout’s attention over both photos: the brighter a patch, the more it is attended to" },
    ...photos, ...lines,
  );
}

// The largest weight, and how much of the readout's attention goes to either photo, [SEP] and [CLS].
function readoutSums(row, n) {
  const sum = (weights) => weights.reduce((total, weight) => total + weight, 0);
  const maximum = Math.max(...row.slice(1, n + 1), ...row.slice(n + 2));
  const parts = [["the query’s patches", sum(row.slice(1, n + 1))], ["the neighbour’s patches", sum(row.slice(n + 2))], ["[SEP]", row[n + 1]], ["itself, [CLS]", row[0]]];
  return [
    element("div", { class: "key" }, element("span", {}, element("span", { class: "nowrap" }, "0 %"), element("span", { class: "scale" }), `${percent(maximum)} of the readout’s attention on one patch`)),
    element("p", {}, `The readout takes ${parts.map(([name, weight]) => `${percent(weight)} from ${name}`).join(", ")}.`),
  ];
}
