"use strict";
// Draws the text of a run, coloured by who wrote each token, and the tree of the step in view.
(() => {
  const runs = JSON.parse(document.getElementById("runs").textContent);
  if (!runs.length) return;
  const find = (id) => document.getElementById(id);
  const [question, method, text, tree, caption, asked] =
    ["question", "method", "text", "tree", "caption", "asked"].map(find);
  const SVG = "http://www.w3.org/2000/svg";
  let run = runs[0];
  let here = 0;

  const visible = (token) =>
    token.replace(/ /g, "\u00b7").replace(/\n/g, "\u21b5").replace(/\t/g, "\u2192") || "\u2205";

  function fill(select, values) {
    select.replaceChildren(...values.map((value) => new Option(value, value)));
  }

  function svg(name, attributes, parent, content) {
    const element = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (content !== undefined) element.textContent = content;
    parent.append(element);
    return element;
  }

  // What is worth seeing first: a tree with branches of which several tokens were accepted.
  function interest(step) {
    const isBranched = new Set(step.parents).size < step.parents.length;
    return (isBranched ? 100 : 0) + 10 * Math.min(step.path.length, 4) + Math.min(step.parents.length, 20);
  }

  function chooseQuestion() {
    const wanted = method.value;
    const methods = runs.filter((one) => one.question === question.value).map((one) => one.method);
    fill(method, methods);
    if (methods.includes(wanted)) method.value = wanted;
    chooseMethod();
  }

  function chooseMethod() {
    run = runs.find((one) => one.question === question.value && one.method === method.value);
    here = run.steps.reduce((best, step, number) =>
      interest(step) > interest(run.steps[best]) ? number : best, 0);
    drawText();
    drawTree();
  }

  function drawText() {
    asked.textContent = run.asked;
    text.replaceChildren();
    run.steps.forEach((step, number) => {
      if (number && step.turn !== run.steps[number - 1].turn) {
        text.append(document.createElement("hr"));
      }
      step.emitted.forEach((token, index) => {
        const span = document.createElement("span");
        const isDrafted = index < step.path.length - 1;
        span.className = isDrafted ? "by-drafter" : "by-target";
        if (index === 0) span.classList.add("first");
        if (number === here) span.classList.add("here");
        span.dataset.step = number;
        span.title = `step ${number + 1}: ${isDrafted ? "drafted and accepted" : "the target's own"}`;
        span.textContent = token;
        text.append(span);
      });
    });
  }

  function go(number) {
    here = Math.min(Math.max(number, 0), run.steps.length - 1);
    for (const span of text.children) {
      span.classList.toggle("here", Number(span.dataset.step) === here);
    }
    const first = text.querySelector(".here");
    if (first) {
      const [box, outer] = [first.getBoundingClientRect(), text.getBoundingClientRect()];
      if (box.bottom > outer.bottom || box.top < outer.top) text.scrollTop += box.top - outer.top - 40;
    }
    drawTree();
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

  function drawTree() {
    const step = run.steps[here];
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
    const ms = (seconds) => `${(1000 * seconds).toFixed(1)} ms`;
    const [drafted, taken] = [step.tokens.length - 1, step.path.length - 1];
    caption.replaceChildren();
    const bold = document.createElement("b");
    bold.textContent = `Step ${here + 1} of ${run.steps.length}: ${step.shape}. `;
    const outcome = drafted
      ? `${drafted} drafted, ${taken} accepted, ${step.emitted.length} emitted.`
      : "Nothing was drafted.";
    caption.append(bold, `${outcome} Draft ${ms(step.draft_s)}, score ${ms(step.score_s)}. ${step.why}`);
  }

  fill(question, [...new Set(runs.map((one) => one.question))]);
  question.addEventListener("change", chooseQuestion);
  method.addEventListener("change", chooseMethod);
  text.addEventListener("click", (event) => {
    if (event.target.dataset.step !== undefined) go(Number(event.target.dataset.step));
  });
  find("before").addEventListener("click", () => go(here - 1));
  find("after").addEventListener("click", () => go(here + 1));
  document.addEventListener("keydown", (event) => {
    if (event.target instanceof HTMLSelectElement) return;
    if (event.key === "ArrowLeft") go(here - 1);
    if (event.key === "ArrowRight") go(here + 1);
  });
  const most = (one) => Math.max(...one.steps.map(interest));
  const first = runs.reduce((best, one) => (most(one) > most(best) ? one : best));
  question.value = first.question;
  chooseQuestion();
  method.value = first.method;
  chooseMethod();
})();
