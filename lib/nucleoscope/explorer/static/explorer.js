// The running text of notebooks/explore.py: tokens that can be pointed at, clicked and walked through.
// All text is set by textContent: a model's output is displayed, never executed.

const REST = 40; // milliseconds that a pointer must rest on a token before the kernel is asked for its card

function append(parent, name, type, text = "") {
  const element = make(name, type ? { class: type } : {}, text);
  parent.append(element);
  return element;
}

const ROW = 8; // tokens of each text in a row, at most

/** A span for a token, which is kept if it is there already, so that the focus is kept too. */
function drawToken(parent, place, piece, number) {
  const token = parent.children[place] ?? append(parent, "span", "nx-token");
  if (token.textContent !== piece) token.textContent = piece;
  const name = piece.trim() ? null : piece.includes("\n") ? "line break" : piece ? "space" : "part of a character";
  if (token.ariaLabel !== name) token.ariaLabel = name; // a token without readable text has a name
  if (!token.role) {
    token.role = "option";
    token.dataset.step = number;
    token.tabIndex = number ? -1 : 0; // one stop for the tab key; arrow keys move on from there
  }
  token.classList.toggle("nx-empty", piece === "");
  token.classList.toggle("nx-newline", piece.includes("\n"));
}

function drawTokens(text, pieces) {
  while (text.children.length > pieces.length) text.lastChild.remove();
  pieces.forEach((piece, step) => drawToken(text, step, piece, step));
}

/** The number of a token of the earlier text; controls.number_earlier. */
const numberEarlier = (step) => -2 - step;

/** Where the rows of two texts begin: at a word of the earlier one, which is complete, if there is one soon. */
function splitRows(earlier, length) {
  const starts = [];
  for (let at = 0; at < Math.max(earlier.length, length);) {
    starts.push(at);
    let next = at + ROW;
    while (next > at + ROW / 2 && next < earlier.length && !/^\s/.test(earlier[next])) next--;
    at = next > at + ROW / 2 ? next : at + ROW;
  }
  return starts;
}

/** Two texts: what they share, and then rows, in which tokens of the same steps are side by side. */
function drawFork(text, pieces, { cut, pieces: earlier, names }) {
  let [shared, head, rows] = text.children;
  if (!rows) {
    text.replaceChildren();
    [shared, head, rows] = ["nx-shared", "nx-names", "nx-rows"].map((type) => append(text, "div", type));
    for (const part of [shared, head, rows]) part.role = "presentation";
    shared.dir = "auto";
    head.append(...names.map((name, i) => make("bdi", { class: i ? "nx-now" : "nx-earlier" }, name)));
  }
  drawTokens(shared, pieces.slice(0, cut));
  const mine = pieces.slice(cut), starts = splitRows(earlier, mine.length);
  while (rows.children.length > starts.length) rows.lastChild.remove();
  starts.forEach((start, i) => {
    const row = rows.children[i] ?? append(rows, "div", "nx-row");
    const end = starts[i + 1] ?? Infinity;
    for (const [place, own] of [earlier, mine].entries()) {
      const cell = row.children[place] ?? append(row, "div", place ? "nx-now" : "nx-earlier");
      [row.role, cell.role, cell.dir, cell.ariaLabel] = ["presentation", "group", "auto", names[place]];
      const part = own.slice(start, end);
      while (cell.children.length > part.length) cell.lastChild.remove();
      part.forEach((piece, at) => drawToken(cell, at, piece, place ? cut + start + at : numberEarlier(cut + start + at)));
    }
  });
}

/** The card, with the focus where it was before: on the same tab or candidate. */
function showCard(card, content, options) {
  const key = card.contains(document.activeElement) ? document.activeElement.dataset.key : null;
  if (content.tokens) {
    const hint = content.hint ? [make("p", { class: "ns-muted nx-hint" }, content.hint)] : [];
    card.replaceChildren(...hint, ...drawCard(content, 0, options));
  } else {
    card.replaceChildren(make("p", { class: "ns-muted" }, content.note ?? ""));
  }
  if (!key) return;
  const keyed = [...card.querySelectorAll("[data-key]")];
  (keyed.find((part) => part.dataset.key === key) ?? keyed[0] ?? card).focus();
}

/** The texts from the first to the latest, of which ``place`` is shown. */
function drawTrail(trail, names, place, go) {
  const makeButton = (to, text) => {
    const button = make("button", { type: "button" }, text);
    button.addEventListener("click", () => go(to));
    return button;
  };
  const focused = trail.contains(document.activeElement);
  trail.hidden = names.length < 2;
  const back = makeButton(place - 1, "← back");
  back.disabled = !place;
  const list = make("ol");
  names.forEach((name, i) => {
    const button = makeButton(i, make("bdi", {}, name));
    if (i === place) button.setAttribute("aria-current", "true");
    list.append(make("li", {}, button));
  });
  trail.replaceChildren(back, list);
  if (focused) list.querySelector("[aria-current]").focus();
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

const listTokens = (text) => [...text.querySelectorAll(".nx-token")];

function findTarget(text, here, key) {
  const all = listTokens(text), number = Number(here.dataset.step);
  // of the text of this token: the earlier one begins with what both share
  const isOwn = (token) => number < -1 ? Number(token.dataset.step) < -1 || token.closest(".nx-shared") : Number(token.dataset.step) > -1;
  const tokens = all.filter(isOwn), step = tokens.indexOf(here);
  const right = getComputedStyle(here.parentElement).direction === "rtl" ? -1 : 1;
  const goal = {
    ArrowRight: tokens[step + right], ArrowLeft: tokens[step - right], Home: tokens[0], End: tokens.at(-1),
    ArrowUp: key === "ArrowUp" && findNeighbour(all, here, -1), ArrowDown: key === "ArrowDown" && findNeighbour(all, here, 1),
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
    if (model.get("clicked") !== -1) send("hovered", model.get("clicked")); // back to the token that was clicked
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

/** Of another text nothing is selected. Only the page knows of a selection; it is gone when the kernel sends points. */
function forget(figure) {
  if (!figure.layout) return;
  for (const trace of figure.data) delete trace.selectedpoints;
  figure.layout.selections = [];
  // or plotly would see a change, and select no point, which it draws as all points being pale
  if (figure._fullLayout) figure._fullLayout._previousSelections = figure.layout.selections;
}

function render({ model, el }) {
  el.classList.add("nucleoscope", "nx");
  const line = append(el, "div", "nx-line");
  const status = append(line, "span", "nx-status"), seconds = append(line, "span", "nx-seconds ns-muted");
  status.role = "status";
  seconds.ariaHidden = "true"; // a status that changes every second would be read every second
  const trail = append(el, "nav", "nx-trail");
  trail.ariaLabel = "Texts";
  const legend = append(el, "div", "ns-legend");
  const page = append(el, "div", "nx-text");
  const prompt = append(page, "div", "nx-prompt");
  const text = append(page, "div", "nx-tokens");
  const card = append(el, "div", "ns-card");
  prompt.dir = text.dir = "auto";
  card.tabIndex = -1; // it gets the focus if it has no button that could have it
  text.role = "listbox";
  text.ariaLabel = "Text, token by token. Arrow keys move; Enter shows how similar the candidates are.";
  text.ariaMultiSelectable = "true";
  el.dataset.lmSuppressShortcuts = "true"; // JupyterLab leaves the arrow keys to the tokens and tabs
  card.ariaLive = "polite";
  let since = null, timer, emphasised;
  const count = () => (seconds.textContent = since === null ? "" : `${Math.round((Date.now() - since) / 1000)} s`);
  const send = (name, value) => {
    model.set(name, value);
    model.save_changes();
  };
  const hide = () => (page.hidden = !model.get("prompt") && !model.get("pieces").length); // an empty box
  const tint = () => {
    const scale = model.get("scale"), marked = new Set(model.get("marked")), { cut } = model.get("earlier");
    listTokens(text).forEach((token) => {
      const step = Number(token.dataset.step);
      const value = step < -1 ? scale.earlier?.[numberEarlier(step) - cut] : scale.values?.[step];
      if (value !== undefined) tintText(token, [findShare(scale, value)]);
      token.classList.toggle("nx-here", step === model.get("hovered"));
      token.classList.toggle("nx-clicked", step === model.get("clicked"));
      token.classList.toggle("nx-marked", marked.has(step));
      token.ariaSelected = String(marked.has(step));
    });
  };
  const parts = {
    prompt: () => {
      prompt.textContent = model.get("prompt");
      hide();
    },
    scale: () => {
      const scale = model.get("scale");
      legend.replaceChildren(...(scale.values?.length ? [make("span", {}, scale.label), ...drawLegend(scale)] : []));
      tint();
      if (scale.name !== emphasised) parts.card(); // which emphasises the quantity of the tint
      emphasised = scale.name;
    },
    card: () => {
      const content = model.get("card");
      showCard(card, content, {
        chosen: model.get("scale").name,
        tab: model.get("tab"),
        choose: (name) => send("tab", name),
        pick: content.forks ? (place) => send("picked", [content.number, place, Date.now() % 1e9]) : null,
      });
    },
    status: () => {
      status.textContent = model.get("status");
      status.classList.toggle("nx-error", model.get("failed"));
    },
    busy: () => {
      if (!model.get("busy")) since = null;
      else since ??= Date.now();
      clearInterval(timer);
      if (since !== null) timer = setInterval(count, 500);
      count();
    },
    trail: () => drawTrail(trail, model.get("trail"), model.get("place"), (to) => send("wanted", [to, Date.now() % 1e9])),
    pieces: () => {
      const atEnd = page.scrollTop + page.clientHeight > page.scrollHeight - 30;
      const earlier = model.get("earlier"), forked = earlier.cut !== undefined;
      const kind = JSON.stringify([earlier.cut, earlier.names]);
      const another = text.dataset.kind !== kind;
      if (another) text.replaceChildren();
      text.dataset.kind = kind;
      page.classList.toggle("nx-forked", forked);
      if (forked) drawFork(text, model.get("pieces"), earlier);
      else drawTokens(text, model.get("pieces"));
      if (forked && another) page.scrollTop = text.querySelector(".nx-names").offsetTop - page.offsetTop - 60; // where they diverge
      else if (atEnd && !forked) page.scrollTop = page.scrollHeight; // scrolls along as the text grows
      hide();
      tint();
    },
    marked: tint, hovered: tint, clicked: tint,
    turned: () => followed.forEach(forget),
  };
  const others = { failed: parts.status, place: parts.trail, earlier: parts.pieces, tab: parts.card };
  const followed = new Set(), names = Object.entries(parts);
  for (const [name, draw] of names) model.on(`change:${name}`, draw);
  for (const [name, draw] of Object.entries(others)) model.on(`change:${name}`, draw);
  for (const [, draw] of names) draw();
  listen(text, model);
  // A figure is drawn before it is in the page, so the kernel must know how wide it will be.
  const measureRoom = () => {
    const room = el.closest(".nx-both")?.querySelector(".nx-figure")?.clientWidth;
    if (room && room !== model.get("room") && !model.get("figure")) send("room", room);
  };
  const watcher = new ResizeObserver(measureRoom);
  watcher.observe(el);
  // The place may have changed meanwhile: a figure of another width is drawn again, which takes long.
  let fitting;
  const fitFigure = ({ detail }) => {
    clearTimeout(fitting);
    fitting = setTimeout(() => {
      const drawn = detail?.element?.querySelector(".main-svg")?.getBoundingClientRect().width;
      if (!drawn || Math.abs(drawn - detail.element.clientWidth) > 1) window.dispatchEvent(new Event("resize"));
    }, 100);
    follow(detail?.element, model, followed);
  };
  document.addEventListener("plotlywidget-after-render", fitFigure);
  return () => { // anywidget calls this when the view is removed
    for (const [name, draw] of names) model.off(`change:${name}`, draw);
    for (const [name, draw] of Object.entries(others)) model.off(`change:${name}`, draw);
    clearInterval(timer);
    clearTimeout(fitting);
    watcher.disconnect();
    document.removeEventListener("plotlywidget-after-render", fitFigure);
  };
}

export default { render };
