// A chat with this server; shows who wrote each token, and the tree of each step.
(() => {
  const facts = JSON.parse(document.getElementById("facts").textContent);
  const find = (id) => document.getElementById(id);
  const [log, form, asked, send, stop, clear, tree, caption] =
    ["log", "form", "asked", "send", "stop", "clear", "tree", "caption"].map(find);
  let messages = [];
  let steps = [];
  let here = -1;
  let running = null;

  find("model").textContent = facts.model;
  find("key").value = sessionStorage.getItem("key") || "";

  function add(kind, className, text) {
    const element = document.createElement(kind);
    element.className = className;
    element.textContent = text;
    log.append(element);
    log.scrollTop = log.scrollHeight;
    return element;
  }

  function showNumbers(begun) {
    const tokens = steps.slice(begun).reduce((sum, step) => sum + step.emitted.length, 0);
    const seconds = steps.slice(begun).reduce((sum, step) => sum + step.work_s, 0);
    const number = steps.length - begun;
    if (!number || !seconds) return;
    find("per-step").textContent = (tokens / number).toFixed(2);
    find("per-second").textContent = (tokens / seconds).toFixed(1);
    if (facts.plain_step_s) {
      find("speed").textContent = `${(tokens * facts.plain_step_s / seconds).toFixed(2)}\u00d7`;
    }
  }

  function show(number) {
    if (!steps.length) return;
    here = Math.min(Math.max(number, 0), steps.length - 1);
    for (const span of log.querySelectorAll("[data-step]")) {
      span.classList.toggle("here", Number(span.dataset.step) === here);
    }
    const step = steps[here];
    drawTree(tree, step);
    const [drafted, taken] = [step.tokens.length - 1, step.path.length - 1];
    const outcome = drafted ? `${drafted} drafted, ${taken} accepted. ` : "";
    const ms = (seconds) => `${(1000 * seconds).toFixed(1)} ms`;
    caption.replaceChildren();
    const bold = document.createElement("b");
    bold.textContent = `Step ${here + 1}: ${step.shape}. `;
    caption.append(bold, `${outcome}Draft ${ms(step.draft_s)}, score ${ms(step.score_s)}. ${step.why}`);
  }

  function addStep(text, step) {
    const number = steps.push(step) - 1;
    step.emitted.forEach((token, index) => {
      const author = index < step.path.length - 1 ? step.guesser : "target";
      const span = document.createElement("span");
      span.className = `by-${author}${index ? "" : " first"}`;
      span.dataset.step = number;
      span.title = `step ${number + 1}, by the ${author}`;
      span.textContent = token;
      text.append(span);
    });
    log.scrollTop = log.scrollHeight;
    show(number);
  }

  async function* events(response) {
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let held = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      held += value;
      const parts = held.split("\n\n");
      held = parts.pop();
      for (const part of parts) {
        if (part.startsWith("data: {")) yield JSON.parse(part.slice(6));
      }
    }
  }

  async function answer(text, begun) {
    const key = find("key").value;
    sessionStorage.setItem("key", key);
    const response = await fetch("v1/chat/completions", {
      method: "POST",
      signal: running.signal,
      headers: { "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${key}` }) },
      body: JSON.stringify({
        model: facts.model, messages, stream: true, return_steps: true,
        temperature: Number(find("temperature").value),
      }),
    });
    if (!response.ok) throw new Error((await response.json()).error.message);
    let content = "";
    for await (const chunk of events(response)) {
      if (chunk.error) throw new Error(chunk.error.message);
      content += (chunk.choices[0] && chunk.choices[0].delta.content) || "";
      if (chunk.step) addStep(text, chunk.step);
      showNumbers(begun);
    }
    return content;
  }

  async function ask() {
    const question = asked.value.trim();
    if (!question || running) return;
    asked.value = "";
    messages.push({ role: "user", content: question });
    add("p", "asked", question);
    const text = add("div", "text", "");
    running = new AbortController();
    [send.disabled, stop.disabled] = [true, false];
    try {
      messages.push({ role: "assistant", content: await answer(text, steps.length) });
    } catch (error) {
      messages.pop();
      add("p", "failed", error.name === "AbortError" ? "Stopped." : error.message);
    }
    running = null;
    [send.disabled, stop.disabled] = [false, true];
    asked.focus();
  }

  form.addEventListener("submit", (event) => { event.preventDefault(); ask(); });
  asked.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); ask(); }
  });
  stop.addEventListener("click", () => running && running.abort());
  clear.addEventListener("click", () => {
    if (running) running.abort();
    [messages, steps, here] = [[], [], -1];
    log.replaceChildren();
    tree.replaceChildren();
    asked.focus();
  });
  log.addEventListener("click", (event) => {
    if (event.target.dataset.step !== undefined) show(Number(event.target.dataset.step));
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && running) running.abort();
    if (/^(TEXTAREA|INPUT)$/.test(event.target.tagName)) return;
    if (event.key === "ArrowLeft") show(here - 1);
    if (event.key === "ArrowRight") show(here + 1);
  });
  const question = new URLSearchParams(location.search).get("ask");
  if (question) { asked.value = question; ask(); } else { asked.focus(); }
})();
