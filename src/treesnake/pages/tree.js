"use strict";
// Draws the tree of a step into an SVG element: drawTree(element, {tokens, parents, path, emitted, probs}).
const drawTree = (() => {
  const SVG = "http://www.w3.org/2000/svg";

  const visible = (token) =>
    token.replace(/ /g, "\u00b7").replace(/\n/g, "\u21b5").replace(/\t/g, "\u2192") || "\u2205";

  function svg(name, attributes, parent, content) {
    const element = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (content !== undefined) element.textContent = content;
    parent.append(element);
    return element;
  }

  // Leaves take rows from top to bottom, an inner node is in the middle of its children.
  function layOut(step) {
    const children = step.parents.map(() => []);
    step.parents.forEach((parent, node) => parent >= 0 && children[parent].push(node));
    const rows = [];
    const depths = [];
    let numLeaves = 0;
    (function place(node, depth) {
      depths[node] = depth;
      children[node].forEach((child) => place(child, depth + 1));
      rows[node] = children[node].length
        ? children[node].reduce((sum, child) => sum + rows[child], 0) / children[node].length
        : numLeaves++;
    })(0, 0);
    return { rows, depths, numLeaves };
  }

  return (tree, step) => {
    const { rows, depths, numLeaves } = layOut(step);
    const last = step.path[step.path.length - 1];
    const hasOwn = step.emitted.length === step.path.length;
    const labels = step.tokens.map(visible);
    const widest = Math.max(...labels.map((label) => Math.min(label.length, 14)), 4);
    const gap = Math.max(...depths) > 6 ? 36 : 62;
    const [column, row] = [widest * 7.7 + gap, 38];
    const place = (node) => [12 + depths[node] * column, 12 + rows[node] * row];
    const width = 24 + (Math.max(...depths) + (hasOwn ? 2 : 1)) * column;
    const height = 24 + (numLeaves + (hasOwn ? 1 : 0)) * row;
    tree.replaceChildren();
    tree.setAttribute("viewBox", `0 0 ${width} ${height}`);
    tree.style.width = `${width}px`;
    tree.style.minWidth = "0";
    const edge = (from, to, kind) => {
      const middle = (from[0] + to[0]) / 2;
      svg("path", { d: `M${from}C${middle},${from[1]} ${middle},${to[1]} ${to}`, class: kind }, tree);
    };
    const box = (label) => Math.min(label.length, 14) * 7.7 + 16;
    const exit = (node) => [place(node)[0] + box(labels[node]), place(node)[1] + 13];
    const entry = ([x, y]) => [x, y + 13];
    const accepted = new Set(step.path);
    const order = step.tokens.map((_, node) => node).sort((a, b) => accepted.has(a) - accepted.has(b));
    for (const node of order) {
      if (node) edge(exit(step.parents[node]), entry(place(node)), accepted.has(node) ? "accepted" : "");
    }
    const draw = (at, label, kind, note, whole) => {
      const group = svg("g", { class: kind, transform: `translate(${at})` }, tree);
      svg("title", {}, group, whole);
      svg("rect", { width: box(label), height: 26, rx: 5 }, group);
      svg("text", { x: 8, y: 17 }, group, label.length > 14 ? `${label.slice(0, 13)}\u2026` : label);
      if (note) svg("text", { x: box(label) + 4, y: 9, class: "prob" }, group, note);
    };
    step.tokens.forEach((token, node) => {
      const kind = node === 0 ? "anchor" : accepted.has(node) ? "accepted" : "rejected";
      const prob = step.probs[node];
      const before = node ? step.probs[step.parents[node]] : -1;
      const isKnown = node && prob >= 0 && before > 0;
      const note = isKnown ? `${Math.round((100 * prob) / before)}%` : "";
      draw(place(node), labels[node], kind, note, `${token}${note && `, ${note} by the drafter`}`);
    });
    if (hasOwn) {
      const token = step.emitted[step.emitted.length - 1];
      const free = last === 0 && step.tokens.length > 1 || step.parents.includes(last);
      const at = [12 + (depths[last] + 1) * column, free ? 12 + numLeaves * row : place(last)[1]];
      edge(exit(last), entry(at), "own");
      draw(at, visible(token), "own", "", `${token}, the target's own`);
      tree.setAttribute("viewBox", `0 0 ${width} ${free ? height : height - row}`);
    }
  };
})();
