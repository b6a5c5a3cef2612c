// The card of a token, for the strips of a page and for the live notebook.
const SVG = "http://www.w3.org/2000/svg";

function make(name, attributes = {}, ...content) {
  const element = name === "svg" || attributes.ns ? document.createElementNS(SVG, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) if (key !== "ns") element.setAttribute(key, value);
  element.append(...content); // inserted as text, never as HTML
  return element;
}

const formatNumber = (value, digits = 3) =>
  value === null ? "–" : (Number.isInteger(value) ? String(value) : value.toPrecision(digits)).replace("-", "−");
const formatPercent = (p) => (p < 0.001 ? "<0.1" : p < 0.0995 ? (100 * p).toFixed(1) : (100 * p).toFixed(0)) + " %";
const formatCount = (value) => value.toLocaleString("en");

function drawCandidates({ words, card, cosines, whose }) {
  const [word, listed, probs, more, mass, held, place, p] = card;
  const list = make("div", { class: "ns-list" + (cosines ? " ns-cosines" : "") });
  if (cosines) list.append(...["candidate", "", "probability", `cosine to ${whose}`].map((title) => make("span", { class: "ns-muted" }, title)));
  function row(text, value, drawn, note, cosine) {
    const mark = drawn ? " ns-drawn" : "";
    const bar = make("span", { class: "ns-p" + mark, style: `width:${100 * value}%` });
    list.append(make("bdi", { class: mark, title: text }, text), bar,
      make("span", { class: "ns-value" + mark }, note + (drawn ? "✓ " : "") + (value === null ? "–" : formatPercent(value))));
    if (cosines) list.append(make("span", { class: "ns-value" + mark }, drawn ? "" : cosine.toFixed(3).replace("-", "−")));
  }
  listed.forEach((index, i) => row(words[index], probs[i], i === place, "", cosines?.[i]));
  if (p !== undefined) row(words[word], p, true, place < 0 ? "outside " : "");
  const inside = place >= 0 && p !== undefined; // listed below the others, and one of them
  const rest = more - inside;
  const others = rest > 0 ? `and ${formatCount(rest)} more with a total of ${formatPercent(Math.max(mass - (inside ? p : 0), 0))}` : "";
  const end = others || (listed.length > 1 ? "no other candidates" : "the only candidate");
  const note = `Probabilities refer to the full distribution. Entropy and cosine use only the nucleus, which has ${(100 * held).toFixed(1)} % of it.`;
  return make("div", { class: "ns-candidates" }, list, ...[end, note].map((line) => make("p", { class: "ns-muted" }, line)));
}

function drawFacts(facts, chosen) {
  const list = make("div", { class: "ns-numbers" });
  facts.forEach(([label, value, count], i) => {
    const now = i === chosen ? " ns-now" : "";
    const text = value === null ? "no pair" : count ? formatCount(value) : formatNumber(value);
    list.append(make("span", { class: now }, label), make("span", { class: "ns-value" + now }, text));
  });
  return list;
}

/** What a card shows, in two elements: the choice with its candidates, and the quantities.
 *
 * content: words (texts of tokens); card (see cards.py); facts ([label, value, whether it is a count]);
 * whose ("drawn" or "the text's"); step and total; perhaps cosines (of each listed candidate with the token).
 * chosen is the place of the fact to emphasise; whole the text of a character that several tokens make, of
 * which this is part [n, size]; close a button. */
function drawCard(content, { chosen = -1, part = null, whole = "", close = null } = {}) {
  const { words, card, whose, step, total } = content;
  const [word, listed, , more, , , place] = card;
  const of = `of ${formatCount(listed.length + more)}`;
  const rank = place < 0 ? `outside the nucleus ${of}` : `rank ${formatCount(place + 1)} ${of}`;
  const parts = part ? [`; part ${part[0]} of ${part[1]} of `, make("bdi", {}, whole)] : [];
  const head = make("p", { class: "ns-head" }, make("b", {}, make("bdi", {}, words[word])),
    make("span", { class: "ns-muted" }, `token ${step} (of 0 to ${total - 1})`), ...(close ? [close] : []));
  const choice = make("div", {}, head, make("p", { class: "ns-muted" }, `${whose}: ${rank}`, ...parts), drawCandidates(content));
  return [choice, drawFacts(content.facts, chosen)];
}
