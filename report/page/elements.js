// Elements of the page. Texts of the data become text nodes, never markup.

function element(tag, attributes = {}, ...children) {
  return withContent(document.createElement(tag), attributes, children);
}

function shape(tag, attributes = {}, ...children) {
  return withContent(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function withContent(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

function selection(label, options, chosen, change) {
  const select = element(
    "select",
    { change: () => change(select.value) },
    ...options.map(([value, text]) => element("option", { value, selected: value === chosen }, text)),
  );
  return element("label", {}, label, select);
}
