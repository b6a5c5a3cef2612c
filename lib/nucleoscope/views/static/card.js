// The tint and the card of a token, for the strips of a page and for the live notebook.
// Both draw from what cards.build_cards and cards.build_scale make.
const SVG = "http://www.w3.org/2000/svg";

function make(name, attributes = {}, ...content) {
  const element = name === "svg" || attributes.ns ? document.createElementNS(SVG, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) if (key !== "ns") element.setAttribute(key, value);
  element.append(...content); // inserted as text, never as HTML
  return element;
}

// With three significant digits, whole numbers too: 4.00; but 0, and 1234 instead of 1.23e+3.
const formatNumber = (value, digits = 3) =>
  value === null ? "–" : (value === 0 || (Number.isInteger(value) && Math.abs(value) >= 1000) ? String(value) : value.toPrecision(digits)).replace("-", "−");
const formatPercent = (p) => (p < 0.001 ? "<0.1" : p < 0.0995 ? (100 * p).toFixed(1) : (100 * p).toFixed(0)) + "%";
const formatCount = (value) => value.toLocaleString("en");

// The position of a value on its quantity's scale, from 0 to 1; null if there is no value.
function findShare({ count, low, high }, value) {
  if (value === null) return null;
  const along = count ? Math.log(value) / Math.log(high) : (value - low) / (high - low);
  return Math.min(Math.max(along, 0), 1);
}

// Tints the text of one token; that of several tokens, with a share each, gets a stripe for each.
function tintText(span, shares) {
  const mixColor = (share) => `rgb(var(--ns-tint) / calc(var(--ns-opacity) * ${(share || 0).toFixed(3)}))`;
  const stops = shares.map((share, i) => `${mixColor(share)} ${(100 * i) / shares.length}% ${(100 * (i + 1)) / shares.length}%`);
  span.style.background = shares.length > 1 ? `linear-gradient(to right, ${stops})` : mixColor(shares[0]);
  span.classList.toggle("ns-none", shares.includes(null));
}

function drawLegend(scale) {
  if (!scale.values.length) return [];
  const low = formatNumber(scale.low) + (scale.under ? " or less" : "");
  const high = (scale.count ? formatCount : formatNumber)(scale.high) + (scale.over ? " or more" : "");
  const reasons = [scale.undefined && "only one candidate", scale.missing && "missing"].filter(Boolean).join(" or ");
  const dotted = scale.values.includes(null) && `dotted: ${reasons}`;
  const note = [dotted, scale.count && "logarithmic scale"].filter(Boolean).join("; ");
  const end = make("span", { class: "ns-muted" }, note && `(${note})`);
  if (!scale.flat) return [low, make("span", { class: "ns-ramp", "aria-hidden": "true" }), high, end];
  const known = scale.values.filter((value) => value !== null); // all the same: without a scale to show
  const where = known.length > 1 && known.length === scale.values.length ? " for every token" : "";
  return known.length ? [`${(scale.count ? formatCount : formatNumber)(known[0])}${where}`, end] : [end];
}

// The headings of a list of candidates, [text, title], or only a text. In two lines they leave room for the names.
const TO_TAKEN = ["similar\nto ✓", "How similar each candidate is to the token that was taken (✓); at most 1"];
const TO_OTHERS = ["similar to\nthose above", "How similar each candidate is to each of those above it: a cell for each, in their order"];
const drawHeadings = (...headings) => headings.map((heading) => {
  const [text, title] = [heading].flat();
  return make("span", { class: "ns-muted ns-heading", ...(title && { title }) }, text);
});

const formatHundredths = (value) => (value / 100).toFixed(2).replace("-", "−");

// The candidates with their probabilities and, if cosines are known, how similar each is to the token taken and to
// those listed above it: ``similar`` and ``matrix`` of the token, in hundredths. ``pick``, if there is one, is called with
// the place of a candidate that is clicked.
function drawCandidates(words, [word, listed, probs, more, mass, held, place, p], similar, matrix, pick) {
  const compared = similar?.length && listed.length + more > 1;
  const list = make("div", { class: "ns-list" + (compared ? " ns-compared" : "") });
  const names = listed.map((index) => words[index]);
  if (compared) {
    list.append(...drawHeadings("", "", "probability", TO_TAKEN, TO_OTHERS));
  }
  function addRow(text, value, taken, note, cosine, cells, row) {
    const mark = taken ? " ns-drawn" : "";
    const bar = make("span", { class: "ns-p" + mark, style: `width:${100 * value}%` });
    list.append(pick && !taken ? drawPick(text, () => pick(row)) : make("bdi", { class: mark, title: text }, text), bar,
      make("span", { class: "ns-value" + mark }, note + (taken ? "✓ " : "") + (value === null ? "–" : formatPercent(value))));
    if (compared) list.append(make("span", { class: "ns-value" + mark }, taken ? "itself" : formatHundredths(cosine)), cells);
  }
  const makeCell = (cosine, text) => make("i", { style: `--ns-share:${Math.max(cosine, 0) / 100}`, title: text });
  listed.forEach((index, i) => {
    const row = (matrix ?? []).slice((i * (i - 1)) / 2, (i * (i + 1)) / 2);
    const cells = row.map((cosine, j) => makeCell(cosine, `${names[j]} and ${names[i]}: ${formatHundredths(cosine)}`));
    addRow(names[i], probs[i], i === place, "", similar?.[i], make("span", { class: "ns-cells", "aria-hidden": "true" }, ...cells), i);
  });
  if (p !== undefined) addRow(words[word], p, true, place < 0 ? "outside " : "", null, make("span"));
  const inside = place >= 0 && p !== undefined; // listed below the others, and one of them
  const rest = more - inside;
  const others = `and ${formatCount(rest)} more, ${formatPercent(Math.max(mass - (inside ? p : 0), 0))}${rest === 1 ? "" : " in total"}`;
  const end = rest > 0 ? others : "no other candidates";
  const note = `Probabilities are those of the full distribution. Entropy and cosine similarity use only the nucleus, which has ${(100 * held).toFixed(1)}% of the probability.`;
  const invitation = pick && listed.length + more > 1 && "Click a candidate to use it here instead: the model continues the text from it.";
  const lines = [end, invitation, ...(compared ? [describeClosest(names, matrix)] : []), note];
  return make("div", { class: "ns-candidates" }, list, ...lines.filter(Boolean).map((line) => make("p", { class: "ns-muted" }, line)));
}

// A candidate that can be put in the place of its token.
function drawPick(text, pick) {
  const title = `Use "${text}" here and continue the text from it`;
  const button = make("button", { type: "button", class: "ns-pick", title, "aria-label": title, "data-key": `pick ${text}` }, make("bdi", {}, text));
  button.addEventListener("click", pick);
  return button;
}

// The candidates in groups with similar continuations, and how similar what follows them is: ``ahead`` is a
// cards.describe_ahead. ``size`` is the number of candidates, of which the names of the likeliest are ``listed``.
function drawContext(ahead, listed, size, { threshold, remark = "" }, pick) {
  const { names = listed, taken, similar, matrix, continuations, shares, groups, split } = ahead;
  const n = shares.length, list = make("div", { class: "ns-list ns-context" });
  list.append(...drawHeadings("group", "", "", "share", similar.length ? TO_TAKEN : "", TO_OTHERS));
  const drawName = (i) => {
    const mark = i === taken ? " ns-drawn" : "", name = listed[i] ?? names[i];
    return pick && !mark ? drawPick(name, () => pick(i)) : make("bdi", { class: mark, title: name }, name + (mark ? " ✓" : ""));
  };
  const above = [];
  for (const [mass, places, more = 0] of groups) {
    if (!places.length) continue; // see below
    const rows = `grid-row: 1 / span ${places.length + (more > 0)}`;
    const group = make("div", { class: "ns-group", role: "group", "aria-label": `Group of ${countCandidates(places.length + more)}, ${formatPercent(mass)}` },
      make("b", { class: "ns-value", style: rows }, formatPercent(mass)), make("i", { style: rows, "aria-hidden": "true" }));
    for (const i of places) {
      const cells = above.map((other) => {
        const [low, high] = [Math.min(i, other), Math.max(i, other)], value = matrix[(high * (high - 1)) / 2 + low];
        return make("i", { style: `--ns-share:${Math.max(value, 0) / 100}`, title: `${names[other]} and ${names[i]}: ${formatHundredths(value)}` });
      });
      above.push(i);
      const mark = i === taken ? " ns-drawn" : "";
      group.append(drawName(i), make("span", { class: "ns-value" + mark }, formatPercent(shares[i])),
        make("span", { class: "ns-value" + mark }, mark ? "itself" : similar.length ? formatHundredths(similar[i]) : ""),
        make("span", { class: "ns-cells", "aria-hidden": "true" }, ...cells));
    }
    if (more) group.append(make("span", { class: "ns-muted ns-rest" }, `and ${formatCount(more)} more`));
    list.append(group);
  }
  const drawRest = (...content) => list.append(make("div", { class: "ns-group" }, ...content));
  const others = groups.filter(([, places]) => !places.length);
  if (others.length) {
    const mass = others.reduce((sum, [each]) => sum + each, 0);
    const where = `${formatCount(others.reduce((sum, [, , more]) => sum + more, 0))} more in ${others.length} other ${others.length === 1 ? "group" : "groups"}`;
    drawRest(make("b", { class: "ns-value" }, formatPercent(mass)), make("i", { "aria-hidden": "true" }), make("span", { class: "ns-muted ns-rest" }, where));
  }
  const compared = groups.reduce((sum, [, places, more = 0]) => sum + places.length + more, 0);
  for (let i = compared; i < listed.length; i++) drawRest(make("span"), make("span"), drawName(i), make("span", { class: "ns-muted ns-apart" }, "not compared"));
  const lines = [describeGroups(groups.length, compared, threshold),
    compared < size && `Shares are those among the ${formatCount(compared)} likeliest of ${countCandidates(size)}; the others were not compared.`,
    describeClosest(names, matrix, "Cells: similarity in context, from 0 (no continuation in common) to 1 (the same)."),
    `Weighted by their probabilities, these ${n} candidates are equivalent to ${formatNumber(continuations, 2)} candidates with no continuation in common.`, remark];
  return make("div", { class: "ns-candidates" }, make("p", { class: "ns-split" }, ...formatSplit(split)), list,
    ...lines.filter(Boolean).map((line) => make("p", { class: "ns-muted" }, line)));
}

const countCandidates = (number) => `${formatCount(number)} ${number === 1 ? "candidate" : "candidates"}`;

// Both parts of the entropy of a choice, with their sum as they are shown.
function formatSplit([what, how]) {
  const write = (value) => value.toFixed(3);
  return [make("b", {}, "what"), ` ${write(what)} + `, make("b", {}, "how"), ` ${write(how)} = ${write(+write(what) + +write(how))} nats`];
}

// What the groups of a token's compared candidates say of its entropy.
function describeGroups(groups, compared, threshold) {
  if (groups === 1) return `${compared === 2 ? "Both candidates" : `All ${compared} candidates`} are one group, with a mean similarity of at least ${threshold}: the uncertainty is only about how it is put.`;
  if (groups === compared) return `Each is a group of its own, because no two have a similarity of ${threshold} or more: the uncertainty is only about what follows.`;
  return `${formatCount(groups)} groups with a mean similarity of at least ${threshold}. What: uncertainty about the group; how: about the candidate in it.`;
}

// The likeliest next tokens after each candidate.
function drawFollowing({ names, taken, following }, pick) {
  const list = make("div", { class: "ns-list ns-following" });
  names.forEach((name, i) => {
    const mark = i === taken ? " ns-drawn" : "";
    const next = following[i].map(([text, p]) => make("span", { class: "ns-next" }, make("bdi", { title: text }, text), make("span", { class: "ns-muted" }, formatPercent(p))));
    list.append(pick && !mark ? drawPick(name, () => pick(i)) : make("bdi", { class: mark, title: name }, name + (mark ? " ✓" : "")), make("div", { class: "ns-nexts" }, ...next));
  });
  return make("div", { class: "ns-candidates" }, list, make("p", { class: "ns-muted" }, `After each candidate, its ${following[0].length} likeliest next tokens, with their probabilities.`));
}

// The tabs of a card: [name, title, panel] each, of which ``open`` is shown; ``choose`` is called with the name of another.
function drawTabs(tabs, open, choose) {
  const bar = make("div", { class: "ns-tabs", role: "tablist", "aria-label": "What is shown of the candidates" });
  const now = tabs.find(([name]) => name === open) ?? tabs[0];
  const panel = make("div", { role: "tabpanel", "aria-label": now[1] }, now[2]());
  tabs.forEach(([name, title], i) => {
    const own = name === now[0];
    const tab = make("button", { type: "button", role: "tab", "aria-selected": String(own), tabindex: own ? "0" : "-1", "data-key": `tab ${name}` }, title);
    tab.addEventListener("click", () => choose(name));
    tab.addEventListener("keydown", (event) => {
      const way = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!way) return;
      event.preventDefault();
      event.stopPropagation();
      const next = tabs[(i + way + tabs.length) % tabs.length][0];
      bar.querySelector(`[data-key="tab ${next}"]`).focus();
      choose(next);
    });
    bar.append(tab);
  });
  return [bar, panel];
}

// The most similar two of the likeliest candidates, in words.
function describeClosest(names, matrix, cells = "Cosine similarity of each candidate to those above it: the stronger a cell's colour, the more similar.") {
  if (!matrix?.length) return "";
  const place = matrix.indexOf(Math.max(...matrix));
  const later = Math.floor((1 + Math.sqrt(1 + 8 * place)) / 2);
  const pair = `"${names[place - (later * (later - 1)) / 2]}" and "${names[later]}"`;
  return `${cells} Most similar: ${pair}, ${formatHundredths(matrix[place])}.`;
}

// The quantities of a token with ``size`` candidates.
function drawQuantities(quantities, at, chosen, size) {
  const list = make("div", { class: "ns-numbers" });
  for (const scale of quantities) {
    const now = scale.name === chosen ? " ns-now" : "";
    list.append(make("span", { class: now }, scale.label), make("span", { class: "ns-value" + now }, describeValue(scale, at, size)));
  }
  return list;
}

function describeValue(scale, at, size) {
  const value = scale.values[at];
  if (value !== null) return (scale.count ? formatCount : formatNumber)(value);
  return scale.undefined && size === 1 ? "undefined" : "missing"; // describePlace says why it is undefined
}

const NOT_YET = "How it compares with the other tokens is shown when the text is complete.";

// How a token compares with the others of its text.
function describePlace(place, pairs, size) {
  if (size === 1) return "With only one candidate there is no cosine similarity, so this token is not compared with the others.";
  if (!place) return "This token is not compared with the others: a value is missing.";
  if (pairs === 1) return "The only token of this text with more than one candidate.";
  const [entropy, cosine, others] = [...place, pairs - 1].map(formatCount);
  const compare = (lower) => (lower ? "lower" : "equal or higher");
  if (pairs === 2) return `The only other token of this text with more than one candidate has ${compare(place[0])} entropy and ${compare(place[1])} cosine similarity.`;
  const name = (number, text) => (number > 1 ? `${text} have` : number ? "1 has" : "none has");
  return `Of the ${others} other tokens of this text with more than one candidate, ${name(place[0], entropy)} lower entropy and ${name(place[1], cosine)} lower cosine similarity.`;
}

/** The card of the token at place ``at`` of content, in two elements: the choice, and the quantities.
 *
 * content: what cards.build_cards makes. chosen is the name of the quantity to emphasise; close is a button. content.context
 * may have a cards.describe_ahead for the token, or null if it has no choice, or content.waiting says why there is none yet: then the card has tabs, of
 * which tab is the name of the open one, and choose is called with another. content.remark is what to say below its groups.
 * pick is called with a candidate's place. */
function drawCard(content, at, { chosen = "", close = null, tab = "", choose = () => {}, pick = null } = {}) {
  const { words, mode, first, total } = content;
  const token = content.tokens[at];
  const [word, listed, , more, , , place] = token;
  const size = listed.length + more;
  const candidates = countCandidates(size);
  const rank = place < 0 ? `outside the nucleus of ${candidates}` : size === 1 ? "the only candidate" : `rank ${formatCount(place + 1)} of ${candidates}`;
  const part = content.parts[at];
  const parts = part ? [`; part ${part[0]} of the ${part[1]} that form `, make("bdi", {}, part[2])] : [];
  const head = make("p", { class: "ns-head" }, make("b", {}, make("bdi", {}, words[word])),
    make("span", { class: "ns-muted" }, `token ${first + at}${total === null ? "" : ` of ${total}`}, counted from 0`), ...(close ? [close] : []));
  const others = total === null && size > 1 ? NOT_YET : describePlace(content.places[at], content.pairs, size);
  const origin = { score: "in the text", fork: "put in" }[mode] ?? "drawn";
  const drawChoice = () => drawCandidates(words, token, content.similar?.[at], content.matrix?.[at], pick);
  const ahead = content.context?.[at], wait = () => make("p", { class: "ns-muted ns-wait" }, content.waiting);
  const drawNote = (line) => make("div", { class: "ns-candidates" }, make("p", { class: "ns-muted ns-wait" }, line));
  const tabs = [["", "candidates", drawChoice]];
  // In a text where some tokens have this tab, all do: what is below it stays where it is.
  const say = () => drawNote(size === 1 ? "With only one candidate there is nothing to compare." : "This was not measured for this token.");
  if (ahead || content.context || content.waiting) tabs.push(["context", "similar in context", ahead ? () => drawContext(ahead, listed.map((index) => words[index]), size, content, pick) : content.waiting ? wait : say]);
  if (ahead?.following?.length || content.waiting) tabs.push(["following", "what follows", ahead ? () => drawFollowing(ahead, pick) : wait]);
  const choice = tabs.length > 1 ? drawTabs(tabs, tab, choose) : [drawChoice()];
  return [
    make("div", {}, head, make("p", { class: "ns-muted" }, `${origin}: ${rank}`, ...parts), ...choice),
    make("div", {}, drawQuantities(content.quantities, at, chosen, size), make("p", { class: "ns-muted ns-place" }, others)),
  ];
}
