// Draws the text of a run, coloured by who wrote each token, and the tree of the step in view.
(() => {
  const runs = JSON.parse(document.getElementById("runs").textContent);
  if (!runs.length) return;
  const find = (id) => document.getElementById(id);
  const [question, method, text, tree, caption, asked] =
    ["question", "method", "text", "tree", "caption", "asked"].map(find);
  let run = runs[0];
  let here = 0;

  function fill(select, values) {
    select.replaceChildren(...values.map((value) => new Option(value, value)));
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
    showTree();
  }

  function drawText() {
    const pictures = run.pictures.map((src) => Object.assign(new Image(), { src, alt: "" }));
    asked.replaceChildren(...pictures, run.asked);
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
    showTree();
  }

  function showTree() {
    const step = run.steps[here];
    drawTree(tree, step);
    const taken = step.path.length - 1;
    const drafted = step.tokens.length - 1;
    const ms = (seconds) => `${(1000 * seconds).toFixed(1)} ms`;
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
