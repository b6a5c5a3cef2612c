// The running text of notebooks/explore.py: tokens that can be pointed at, clicked and walked through.
// All text is set by textContent: a model's output is displayed, never executed.

const REST = 40; // milliseconds that a pointer must rest on a token before the kernel is asked for its card

function append(parent, name, type, text = "") {
  const element = make(name, type ? { class: type } : {}, text);
  parent.append(element);
  return element;
}

/** Spans for the tokens: unchanged ones are kept, so that the focus is kept too. */
function drawTokens(text, pieces) {
  while (text.children.length > pieces.length) text.lastChild.remove();
  pieces.forEach((piece, step) => {
    const token = text.children[step] ?? append(text, "span", "nx-token");
    if (token.textContent !== piece) token.textContent = piece;
    const name = piece.trim() ? null : piece.includes("\n") ? "line break" : piece ? "space" : "part of a character";
    if (token.ariaLabel !== name) token.ariaLabel = name; // a token without readable text has a name
    if (!token.role) {
      token.role = "option";
      token.dataset.step = step;
      token.tabIndex = step ? -1 : 0; // one stop for the tab key; arrow keys move on from there
    }
    token.classList.toggle("nx-empty", piece === "");
    token.classList.toggle("nx-newline", piece.includes("\n"));
  });
}

function showCard(card, content, chosen) {
  if (content.tokens) return void card.replaceChildren(...drawCard(content, 0, { chosen }));
  card.replaceChildren(...["Point at a token to see its other candidates.",
    "Click it (or press Enter) to see how similar its candidates are."].map((line) => make("p", { class: "ns-muted" }, line)));
}

/** The nearest token in the next line up (-1) or down (1), or this one. */
function findNeighbour(tokens, from, way) {
  const box = from.getBoundingClientRect();
  let best = from, nearest = Infinity;
  for (const token of tokens) {
    const { left, top, height } = token.getBoundingClientRect();
    const lines = (way * (top - box.top)) / Math.max(height, 1);
    const distance = 10000 * Math.round(lines) + Math.abs(left - box.left);
    if (lines > 0.5 && distance < nearest) [best, nearest] = [token, distance];
  }
  return best;
}

function findTarget(text, here, key) {
  const tokens = [...text.children], step = Number(here.dataset.step);
  const right = getComputedStyle(text).direction === "rtl" ? -1 : 1;
  const goal = {
    ArrowRight: tokens[step + right], ArrowLeft: tokens[step - right], Home: tokens[0], End: tokens.at(-1),
    ArrowUp: key === "ArrowUp" && findNeighbour(tokens, here, -1), ArrowDown: key === "ArrowDown" && findNeighbour(tokens, here, 1),
  };
  return key in goal ? goal[key] || here : null;
}

function listen(text, model) {
  let timer;
  const send = (name, step) => {
    model.set(name, step);
    model.save_changes();
  };
  const findToken = (event) => event.target.closest(".nx-token");
  const readStep = (event) => Number(findToken(event).dataset.step);
  text.addEventListener("pointerover", (event) => {
    if (!findToken(event)) return;
    const step = readStep(event);
    clearTimeout(timer);
    timer = setTimeout(() => send("hovered", step), REST);
  });
  text.addEventListener("pointerleave", () => {
    clearTimeout(timer);
    if (model.get("clicked") >= 0) send("hovered", model.get("clicked")); // back to the token that was clicked
  });
  text.addEventListener("click", (event) => findToken(event) && send("clicked", readStep(event)));
  text.addEventListener("focusin", (event) => {
    for (const other of text.querySelectorAll('[tabindex="0"]')) other.tabIndex = -1;
    findToken(event).tabIndex = 0;
    send("hovered", readStep(event));
  });
  text.addEventListener("keydown", (event) => {
    if (!findToken(event) || event.ctrlKey || event.metaKey || event.altKey) return;
    const goal = findTarget(text, findToken(event), event.key);
    if (goal) goal.focus();
    else if (event.key === "Enter" || event.key === " ") send("clicked", readStep(event));
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
}

/** Points selected in the scatter are marked, and a point is clicked as its token is.
 *
 * FigureWidget tells the kernel of such things as well, but a selection is lost there where the pointer
 * rests on a point: the message about that replaces it before it is sent. */
function follow(figure, model, followed) {
  if (!model.get("figure") || figure?.layout?.meta !== model.get("figure") || followed.has(figure)) return;
  followed.add(figure);
  const send = (name, value) => {
    model.set(name, value);
    model.save_changes();
  };
  const listSteps = (event) => (event?.points ?? []).map((point) => point.customdata).filter(Number.isInteger);
  figure.on("plotly_selected", (event) => send("marked", listSteps(event)));
  figure.on("plotly_deselect", () => send("marked", []));
  figure.on("plotly_click", (event) => listSteps(event).slice(0, 1).forEach((step) => send("clicked", step)));
}

function render({ model, el }) {
  el.classList.add("nucleoscope", "nx");
  const status = append(el, "div", "nx-status");
  status.role = "status";
  const legend = append(el, "div", "ns-legend");
  const page = append(el, "div", "nx-text");
  const prompt = append(page, "div", "nx-prompt");
  const text = append(page, "div", "nx-tokens");
  const card = append(el, "div", "ns-card");
  prompt.dir = text.dir = "auto";
  text.role = "listbox";
  text.ariaLabel = "Text, token by token. Arrow keys move; Enter shows how similar the candidates are.";
  text.ariaMultiSelectable = "true";
  page.dataset.lmSuppressShortcuts = "true"; // JupyterLab leaves the arrow keys to the tokens
  card.ariaLive = "polite";
  const tint = () => {
    const scale = model.get("scale"), marked = new Set(model.get("marked"));
    [...text.children].forEach((token, step) => {
      if (step < (scale.values?.length ?? 0)) tintText(token, [findShare(scale, scale.values[step])]);
      token.classList.toggle("nx-here", step === model.get("hovered"));
      token.classList.toggle("nx-clicked", step === model.get("clicked"));
      token.classList.toggle("nx-marked", marked.has(step));
      token.ariaSelected = String(marked.has(step));
    });
  };
  const parts = {
    prompt: () => (prompt.textContent = model.get("prompt")),
    scale: () => {
      const scale = model.get("scale");
      legend.replaceChildren(...(scale.name ? [make("span", {}, scale.label), ...drawLegend(scale)] : []));
      tint();
      parts.card(); // which emphasises the quantity of the tint
    },
    card: () => showCard(card, model.get("card"), model.get("scale").name),
    status: () => {
      status.textContent = model.get("status");
      status.classList.toggle("nx-error", model.get("failed"));
    },
    pieces: () => {
      const atEnd = page.scrollTop + page.clientHeight > page.scrollHeight - 30;
      drawTokens(text, model.get("pieces"));
      if (atEnd) page.scrollTop = page.scrollHeight; // scrolls along as the text grows
      tint();
    },
    marked: tint, hovered: tint, clicked: tint,
  };
  const names = Object.entries(parts);
  for (const [name, draw] of names) model.on(`change:${name}`, draw);
  model.on("change:failed", parts.status);
  for (const [, draw] of names) draw();
  listen(text, model);
  // A figure is drawn before it is in the page, 700 pixels wide; once it is there it takes the width it has.
  const followed = new WeakSet();
  const fitFigure = ({ detail }) => {
    setTimeout(() => window.dispatchEvent(new Event("resize")), 100);
    follow(detail?.element, model, followed);
  };
  document.addEventListener("plotlywidget-after-render", fitFigure);
  return () => { // anywidget calls this when the view is removed
    for (const [name, draw] of names) model.off(`change:${name}`, draw);
    model.off("change:failed", parts.status);
    document.removeEventListener("plotlywidget-after-render", fitFigure);
  };
}

export default { render };
